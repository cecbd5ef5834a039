"""Activation recomputation: forget what a layer computed on the way forward, and compute it again on the way back.

    plain        forward keeps what each op of the layer needs                   memory: layers × ops of a layer
    checkpoint   forward keeps the layer's inputs, backward runs it once more    memory: layers + ops of a layer

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv:1604.06174). The price is a second forward
pass. The field calls it gradient checkpointing.
"""

from collections.abc import Callable
from typing import Any

from minivit import random
from minivit.autograd import Tensor, no_grad, op, wanted
from minivit.backend import array_module
from minivit.nn.module import Module, unobserved


def checkpoint(module: Module, *inputs: Any, **options: Any) -> Tensor:
    """``module(*inputs, **options)``, the same value and the same gradients, while only ``inputs`` are kept.

    Gradients go to the Tensors among ``inputs`` and to the Parameters of ``module``; one of them that makes no
    difference to the result gets zeros. Dropout and drop-path draw the same numbers both times; BatchNorm's running
    estimates follow in the second run only. ``observe`` sees the first run, in which nothing is recorded: the outputs
    that it is given have no graph. The second run is not observed. Until it is over the module has to stay as it is, in
    its weights and in its mode.

    Raises TypeError where the module does not return a Tensor, or an option is one. ``backward`` raises RuntimeError
    where the module read another Tensor, whose gradient would be lost, and where the second run recorded nothing.

    >>> from minivit.nn import Mlp
    >>> mlp, x = Mlp(2, 64), Tensor([[1.0, 2.0]], requires_grad=True)
    >>> y = checkpoint(mlp, x)
    >>> y.node.op, y.shape
    ('recompute', (1, 2))
    >>> y.sum().backward()
    >>> x.grad.shape, mlp.fc1.weight.grad.shape
    ((1, 2), (64, 2))
    """
    for name, option in options.items():
        if isinstance(option, Tensor):
            raise TypeError(f"checkpoint takes Tensors as inputs only: no gradient would reach the option {name}")
    tensors = [isinstance(x, Tensor) for x in inputs]

    def run(arrays: tuple, wants: list[bool]) -> tuple[list, Tensor]:
        """The inputs as leaves of a new graph, and the module's result."""
        leaves = [Tensor(x, want) if lift else x for x, lift, want in zip(arrays, tensors, wants)]
        y = module(*leaves, **options)
        if not isinstance(y, Tensor):
            raise TypeError(f"checkpoint needs a module that returns one Tensor, got {type(y).__name__}")
        return leaves, y

    parameters = module.parameters()
    return recompute(*inputs, *parameters, run=run, parameters=parameters)


@op
def recompute(*arrays, run: Callable, parameters: list):
    """``run`` without a graph; on the way back once more, with one. ``arrays`` are its inputs, then the parameters."""
    inputs = arrays[: len(arrays) - len(parameters)]
    wants = [wanted(i) for i in range(len(arrays))]
    place = random.bookmark()
    with no_grad():
        _, value = run(inputs, wants)

    def pullback(dy):
        with random.replaying(place), unobserved():
            leaves, y = run(inputs, wants)
        if not y.requires_grad:
            raise RuntimeError(
                "checkpoint ran its module once more, and nothing was recorded: either backward() was called inside "
                "no_grad(), or the result depends on no input and no Parameter that needs a gradient"
            )
        sources, found = [*leaves, *parameters], {}
        y.backward(dy, into=found)
        if set(found) - {x for x in sources if isinstance(x, Tensor)}:
            raise RuntimeError(
                "the module of a checkpoint read a Tensor that is neither an input nor one of its Parameters: "
                "its gradient would be lost; pass it as an input"
            )
        xp = array_module(dy)
        return tuple(
            None if not want else found[x] if x in found else xp.zeros(x.shape, x.dtype)
            for x, want in zip(sources, wants)
        )

    return value.data, pullback
