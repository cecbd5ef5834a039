import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor
from minivit.ops import add, div, exp, log, mul, power, scale, sqrt, sub
from tests.strategies import CASES


@given(CASES["add"])
def test_a_cotangent_is_summed_over_the_axes_that_were_broadcast(case):
    """Each copy of an element adds its share: with a cotangent of ones, x receives the number of its copies."""
    x, y = (Tensor(a, requires_grad=True) for a in case.args)
    z = add(x, y)
    z.backward(np.ones(z.shape))
    for a in (x, y):
        assert a.grad.shape == a.shape
        np.testing.assert_array_equal(a.grad, np.full(a.shape, z.size / a.size))


@given(CASES["div"])
def test_inverse_operations(case):
    x, y = map(Tensor, case.args)
    np.testing.assert_allclose(mul(div(x, y), y).data, x.data + 0 * y.data, rtol=1e-14)
    np.testing.assert_allclose(add(sub(x, y), y).data, x.data + 0 * y.data, atol=1e-14)


@given(CASES["log"])
def test_inverse_functions(case):
    (x,) = map(Tensor, case.args)
    for same in (exp(log(x)), log(exp(x)), power(sqrt(x), 2), sqrt(power(x, 2))):
        np.testing.assert_allclose(same.data, x.data, rtol=1e-14)


@pytest.mark.parametrize("exponent", ["2", None, np.ones(2), Tensor([2.0])], ids=["str", "None", "array", "Tensor"])
def test_power_takes_numbers_only(exponent):
    with pytest.raises(TypeError, match="power needs a number as exponent, got"):
        power(Tensor([1.0]), exponent)


def test_shapes_that_do_not_fit():
    for op in (add, sub, mul, div):
        with pytest.raises(ValueError, match=r"shapes \(2,\) \(3,\)"):
            op(Tensor([1.0, 2.0]), Tensor([1.0, 2.0, 3.0]))


def test_scale_computes_no_cotangent_for_the_factor():
    x, factor = Tensor([1.0, 2.0], requires_grad=True), np.array([3.0, 4.0], np.float32)
    _, pullback = scale.raw(x.data, factor)
    assert isinstance(pullback(np.ones(2, np.float32)), np.ndarray)
    with pytest.raises(TypeError, match="scale is not differentiable in argument 1"):
        scale(x, Tensor(factor, requires_grad=True)).sum().backward()
