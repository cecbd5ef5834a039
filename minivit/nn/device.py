"""One device at a time: the one where the model lies, and its data with it."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np

from minivit.backend import Array, device_of
from minivit.nn.module import Module


def on_device_of(model: Module) -> AbstractContextManager:
    """Inside, arrays are made, and kernels started, where the model's Parameters lie.

    CuPy works on its *current* GPU, the first one unless it is told otherwise. A program that moves a model to another
    one, ``"cuda:1"``, makes its optimizer inside of this; ``fit``, ``train_step``, ``evaluate`` and ``predict`` see to
    it themselves.

    >>> from minivit.nn import Linear
    >>> with on_device_of(Linear(2, 2)):
    ...     pass
    """
    some = next((parameter.data for _, parameter in model.named_parameters()), None)
    return nullcontext() if some is None or isinstance(some, np.ndarray) else some.device


def check_device(model: Module, **arrays: Array) -> None:
    """Raise TypeError, with the ways out, where one of ``arrays`` lies on another device than the model's Parameters.

    >>> from minivit.nn import Linear
    >>> check_device(Linear(2, 2), images=np.zeros((1, 2), np.float32))
    """
    device = model.device
    for name, array in arrays.items():
        if (there := device_of(array)) != device:
            raise TypeError(
                f"the {name} are on {there}, the model is on {device}: move them with to_device({name}, {device!r}), a "
                f"Batch or a Loader with .to({device!r}), or the model with model.to({there!r})"
            )
