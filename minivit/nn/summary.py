"""How large is each layer, and how much does it compute?"""

from dataclasses import dataclass

from minivit.autograd import no_grad
from minivit.nn.module import Module, observe


@dataclass(frozen=True)
class LayerSummary:
    """One layer: name, type, output shape, numbers in its Parameters and FLOPs of a forward pass, parts included."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


class Summary(list):
    """The layers of a model in the order of their names; printed as a table."""

    def __str__(self) -> str:
        width = max(len("(model)"), *(len(layer.name) for layer in self))
        lines = [f"{'layer':{width}}  {'type':18} {'output':>20} {'parameters':>14} {'MFLOP':>12}"]
        lines += [
            f"{layer.name or '(model)':{width}}  {layer.kind:18} {layer.shape!s:>20} "
            f"{layer.parameters:14,} {layer.flops / 1e6:12,.2f}"
            for layer in self
        ]
        return "\n".join(lines)


def summary(model: Module, *inputs) -> Summary:
    """Run the model once and count. FLOPs are those of matrix products, a multiply-add being two.

    >>> from minivit.nn import Mlp
    >>> print(summary(Mlp(2, 4), Tensor([[1.0, 2.0]])))
    layer    type      output  parameters  MFLOP
    (model)  Mlp       (1, 2)          22   0.00
    fc1    Linear    (1, 4)          12   0.00
    drop1  Dropout   (1, 4)           0   0.00
    fc2    Linear    (1, 2)          10   0.00
    drop2  Dropout   (1, 2)           0   0.00
    """
    names = {id(module): name for name, module in model.named_modules()}
    flops = dict.fromkeys(names.values(), 0)
    shapes: dict[str, tuple[int, ...]] = {}

    def count(module: Module, inputs: tuple, output) -> None:
        name = names[id(module)]
        shapes[name] = (output[0] if isinstance(output, tuple) else output).shape
        flops[name] += module.flops(inputs, output)

    with no_grad(), observe(count):
        model(*inputs)

    def total(name: str) -> int:
        return sum(n for other, n in flops.items() if not name or other == name or other.startswith(name + "."))

    return Summary(
        LayerSummary(name, type(module).__name__, shapes[name], module.num_parameters(), total(name))
        for name, module in model.named_modules()
        if name in shapes
    )
