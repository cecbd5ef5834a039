"""The operators and methods of Tensor are ops under another name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from tests.strategies import arrays, permutations, positive

X, Y = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([5.0, 6.0], np.float32)
BINARY = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
}
UNARY = {
    "negation": lambda x: -x,
    "power": lambda x: x**2,
    "getitem": lambda x: x[1:, ..., None, 0],
    "exp": lambda x: np.exp(x) if isinstance(x, np.ndarray) else x.exp(),
    "log": lambda x: np.log(x) if isinstance(x, np.ndarray) else x.log(),
    "sqrt": lambda x: np.sqrt(x) if isinstance(x, np.ndarray) else x.sqrt(),
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(axis=(0, 1)),
    "amax": lambda x: np.amax(x, 1, keepdims=True) if isinstance(x, np.ndarray) else x.amax(1, keepdims=True),
    "reshape": lambda x: x.reshape(4, 1).reshape((2, -1)).reshape(-1),
    "transpose": lambda x: x.transpose(1, 0) * 2 + x.transpose((0, 1)) + x.transpose(),
    "T": lambda x: x.T,
    "matmul": lambda x: x @ x.T,
}


@pytest.mark.parametrize("symbol", BINARY)
@pytest.mark.parametrize(
    ("x", "y"),
    [(X, Y), (Y, X), (X, 2), (X, 2.5), (2, X), (2.5, X), (X, np.float64(3)), (np.float64(3), X), (X, np.int64(3))],
    ids=lambda value: type(value).__name__,
)
def test_binary_operators_take_tensors_arrays_and_numbers(symbol, x, y):
    """In each of the possible pairs; the result is NumPy's, and float32 stays float32, beside a np.float64 too."""
    f = BINARY[symbol]
    expected = f(x, y).astype(np.float32)
    candidates = [(Tensor(x), y)] if isinstance(x, np.ndarray) else []
    candidates += [(x, Tensor(y))] if isinstance(y, np.ndarray) else []
    candidates += [(Tensor(x), Tensor(y))] if len(candidates) == 2 else []
    for a, b in candidates:
        z = f(a, b)
        assert isinstance(z, Tensor) and z.dtype == np.float32
        np.testing.assert_allclose(z.data, expected, rtol=1e-6)


@pytest.mark.parametrize("name", UNARY)
def test_unary_operators_and_methods_are_those_of_numpy(name):
    y = UNARY[name](Tensor(X))
    assert isinstance(y, Tensor) and y.dtype == np.float32
    np.testing.assert_allclose(y.data, UNARY[name](X), rtol=1e-6)


def test_matmul_of_an_array_and_a_tensor():
    for z in (X @ Tensor(X), Tensor(X) @ X):
        assert isinstance(z, Tensor)
        np.testing.assert_array_equal(z.data, X @ X)


@given(permutations())
def test_transpose_without_axes_reverses_them(case):
    x = case.args[0]
    np.testing.assert_array_equal(Tensor(x).T.data, x.T)
    np.testing.assert_array_equal(Tensor(x).transpose().data, x.T)


@given(arrays((3,), positive), st.sampled_from(list(BINARY.values())))
def test_gradients_through_operators_with_numbers(x, f):
    """x ∘ 2 and 2 ∘ x agree with the same operation on a Tensor of twos."""
    for number_first in (False, True):
        grads = []
        for two in (2.0, Tensor(np.full(3, 2.0))):
            t = Tensor(x, requires_grad=True)
            (f(two, t) if number_first else f(t, two)).sum().backward()
            grads.append(t.grad)
        np.testing.assert_allclose(*grads, rtol=1e-12)
