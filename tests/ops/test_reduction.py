import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.ops import amax, mean, sum
from tests.strategies import CASES


def test_equal_maxima_receive_equal_parts():
    x = Tensor([[3.0, 1.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True)
    x.amax(axis=1).backward(np.array([1.0, 3.0], np.float32))
    np.testing.assert_array_equal(x.grad, [[0.5, 0, 0.5], [1, 1, 1]])


@pytest.mark.parametrize("op", [sum, mean, amax])
@given(case=CASES["amax"], data=st.data())
def test_axes_one_by_one_or_together(op, case, data):
    """A reduction over two axes is one over the last axis, then over the other."""
    x = case.args[0]
    if x.ndim < 2:
        return
    first, second = sorted(data.draw(st.permutations(range(x.ndim)))[:2])
    together = op.raw(x, (first, second))[0]
    np.testing.assert_allclose(together, op.raw(op.raw(x, second)[0], first)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", [sum, mean, amax])
def test_axes_that_are_not_there(op):
    with pytest.raises((np.exceptions.AxisError, IndexError), match=r"out of bounds|out of range"):
        op(Tensor(np.ones((2, 3))), axis=2)
