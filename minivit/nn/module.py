"""Module: a network is an object whose attributes are Parameters and other Modules.

There is no registration. A Module finds its parts by walking its attributes in the order in which they were set,
through lists, tuples and dicts; the path of attribute names is the part's name: ``blocks.0.attn.qkv.weight``.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minivit.autograd import Buffer, Parameter, Tensor, no_grad
from minivit.backend import to_device


class _Observers(threading.local):
    def __init__(self):
        self.callbacks: list[Callable] = []


_observers = _Observers()


@contextmanager
def observe(callback: Callable[["Module", tuple, Any], None]) -> Iterator[None]:
    """Inside: ``callback(module, inputs, output)`` is called after every Module of this thread has run.

    This is how features, attention maps and shapes are read without touching the layers' code.

    >>> from minivit.nn import Linear
    >>> with observe(lambda module, inputs, output: print(type(module).__name__, output.shape)):
    ...     y = Linear(3, 2)(Tensor([[1.0, 2.0, 3.0]]))
    Linear (1, 2)
    """
    _observers.callbacks.append(callback)
    try:
        yield
    finally:
        _observers.callbacks.remove(callback)


def observing() -> bool:
    """Does a callback of ``observe`` look on in this thread? Then it is shown every layer, and none may be fused.

    >>> with observe(print):
    ...     observing()
    True
    """
    return bool(_observers.callbacks)


@contextmanager
def unobserved() -> Iterator[None]:
    """Inside: no callback of ``observe`` is called in this thread.

    >>> from minivit.nn import Linear
    >>> with observe(print), unobserved():
    ...     y = Linear(3, 2)(Tensor([[1.0, 2.0, 3.0]]))
    """
    outer, _observers.callbacks = _observers.callbacks, []
    try:
        yield
    finally:
        _observers.callbacks = outer


@contextmanager
def evaluating(model: "Module") -> Iterator[None]:
    """Inside: evaluation mode, and nothing is recorded. After: each layer's own mode again.

    >>> from minivit.nn import Dropout
    >>> layer = Dropout(0.5)
    >>> with evaluating(layer):
    ...     layer(Tensor([1.0, 2.0])).numpy()
    array([1., 2.], dtype=float32)
    >>> layer.training
    True
    """
    with _in_evaluation_mode(model), no_grad():
        yield


@contextmanager
def frozen(model: "Module") -> Iterator[None]:
    """Inside: evaluation mode, and Parameters take no gradient; what depends on other Tensors is recorded.

    >>> from minivit.nn import Linear
    >>> layer = Linear(2, 1)
    >>> with frozen(layer):
    ...     layer(Tensor([1.0, 2.0])).requires_grad, layer(Tensor([1.0, 2.0], requires_grad=True)).requires_grad
    (False, True)
    """
    wants = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wants:
            parameter.requires_grad = False
        with _in_evaluation_mode(model):
            yield
    finally:
        for parameter, wanted in wants:
            parameter.requires_grad = wanted


@contextmanager
def _in_evaluation_mode(model: "Module") -> Iterator[None]:
    modes = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Module:
    """Base of every layer and model: write ``__init__``, which sets the parts, and ``forward``, which uses them.

    >>> from minivit.nn import Linear
    >>> class Twice(Module):
    ...     def __init__(self):
    ...         self.fc = Linear(2, 2)
    ...     def forward(self, x):
    ...         return self.fc(self.fc(x))
    >>> [name for name, _ in Twice().named_parameters()]
    ['fc.weight', 'fc.bias']
    """

    training = True
    whole_batch = False  # in training, does this layer need numbers of the whole batch? See minivit/shared.py

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *inputs, **options):
        output = self.forward(*inputs, **options)
        self.observed(inputs, output)
        return output

    def observed(self, inputs: tuple, output: Any) -> None:
        """Show to those who ``observe`` what went in and what came out: a method that runs in place of a call tells."""
        for callback in _observers.callbacks:
            callback(self, inputs, output)

    def flops(self, inputs: tuple, output: Any) -> int:
        """Operations of this layer's own matrix products, a multiply-add being two; those of its parts not included."""
        return 0

    # --- walking the tree -------------------------------------------------------------------------------------------

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(name, Module) of this Module (its name is ``prefix``) and of all its parts, depth first."""
        yield prefix, self
        for name, part in _parts(self):
            if isinstance(part, Module):
                yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, Parameter) in the order of the attributes; a shared Parameter comes once, under its first name."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, part in _parts(module):
                if isinstance(part, Parameter) and id(part) not in seen:
                    seen.add(id(part))
                    yield f"{prefix}.{name}" if prefix else name, part

    def parameters(self) -> list[Parameter]:
        """All Parameters, in the order of ``named_parameters``."""
        return [parameter for _, parameter in self.named_parameters()]

    def buffers(self) -> list[Buffer]:
        """Those among the Parameters that layers keep for themselves, and no optimizer trains."""
        return [parameter for parameter in self.parameters() if isinstance(parameter, Buffer)]

    def num_parameters(self) -> int:
        """How many numbers the Parameters hold, Buffers not counted."""
        return sum(parameter.size for parameter in self.parameters() if not isinstance(parameter, Buffer))

    @property
    def device(self) -> str:
        """Where the Parameters lie, ``"cpu"`` or ``"cuda:0"``; ``"cpu"`` where there are none.

        >>> from minivit.nn import Linear
        >>> Linear(3, 2).device
        'cpu'
        """
        return next((parameter.device for _, parameter in self.named_parameters()), "cpu")

    # --- changing all parts -----------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Set training mode (dropout and drop-path act) everywhere, or with False the evaluation mode."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Evaluation mode: dropout and drop-path pass their input on."""
        return self.train(False)

    def to(self, device: str) -> "Module":
        """Move all Parameters, with gradients that they have, to ``"cpu"``, ``"cuda"`` or ``"cuda:<number>"``.

        Call it before making an optimizer, which lays them out anew. Raises RuntimeError with the way out where CuPy
        or a GPU is missing.
        """
        for parameter in self.parameters():
            parameter.data = to_device(parameter.data, device)
            if parameter.grad is not None:
                parameter.grad = to_device(parameter.grad, device)
        return self

    def astype(self, dtype: Any) -> "Module":
        """Convert all Parameters to ``dtype``, as gradient checks need it: ``model.astype(np.float64)``."""
        for parameter in self.parameters():
            parameter.data = parameter.data.astype(dtype)
        return self

    def zero_grad(self) -> None:
        """Forget the gradients that ``backward`` has added up."""
        for parameter in self.parameters():
            parameter.grad = None

    # --- saving and loading -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every Parameter, by name, on the host."""
        return {name: np.array(to_device(p.data, "cpu")) for name, p in self.named_parameters()}

    def load_state_dict(self, state: dict[str, np.ndarray], strict: bool = True) -> None:
        """Copy arrays into the Parameters of the same names, in place, keeping device and dtype.

        Raises ValueError with every missing, unexpected and mis-shaped name; with ``strict=False`` only mis-shaped
        names are errors. Nothing is copied where anything is wrong.

        >>> from minivit.nn import Linear
        >>> Linear(2, 1).load_state_dict({"weight": np.zeros((1, 3)), "scale": np.ones(1)})
        Traceback (most recent call last):
        ValueError: state does not fit Linear: missing bias; unexpected scale; weight is (1, 3), expected (1, 2)
        """
        own = dict(self.named_parameters())
        missing = [name for name in own if name not in state and strict]
        unexpected = [name for name in state if name not in own and strict]
        problems = [f"missing {', '.join(missing)}"] if missing else []
        problems += [f"unexpected {', '.join(unexpected)}"] if unexpected else []
        for name, p in own.items():
            if name in state and state[name].shape != p.shape:
                problems.append(f"{name} is {state[name].shape}, expected {p.shape}")
        if problems:
            raise ValueError(f"state does not fit {type(self).__name__}: {'; '.join(problems)}")
        for name, p in own.items():
            if name in state:
                p.data[...] = to_device(np.asarray(state[name], p.dtype), p.device)

    # --- looking at it ----------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What a subclass wants to show of itself besides its Parameters."""
        return ""

    def __repr__(self) -> str:
        return "\n".join(_tree(self))


def _parts(module: Module) -> Iterator[tuple[str, Any]]:
    """(name, Module or Parameter) directly held by a Module, through lists, tuples and dicts."""
    return _found(vars(module), "")


def _found(entries: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, (Module, Parameter)):
            yield f"{prefix}{name}", value
        elif isinstance(value, (list, tuple)):
            yield from _found(dict(enumerate(value)), f"{prefix}{name}.")
        elif isinstance(value, dict):
            yield from _found(value, f"{prefix}{name}.")


def _tree(module: Module) -> list[str]:
    """The lines of ``repr``: one a part, with shapes and counts; equal neighbours of a list are shown once."""
    count = module.num_parameters()
    lines = [f"{type(module).__name__}({module.extra_repr()})" + (f": {count:,} parameters" if count else "")]
    runs: list[tuple[str, str, list[str]]] = []  # first name, last name, lines
    for name, part in _parts(module):
        body = [str(part.shape)] if isinstance(part, Parameter) else _tree(part)
        stem, _, index = name.rpartition(".")
        if runs and index.isdigit() and runs[-1][1].rpartition(".")[0] == stem and runs[-1][2] == body:
            runs[-1] = (runs[-1][0], name, body)
        else:
            runs.append((name, name, body))
    for first, last, body in runs:
        title = first if first == last else f"{first} … {last}"
        lines += [f"  {title}: {body[0]}", *("  " + line for line in body[1:])]
    return lines


def as_tensor(x: Any) -> Tensor:
    """``x`` itself if it is a Tensor, else a constant Tensor of the array."""
    return x if isinstance(x, Tensor) else Tensor(x)
