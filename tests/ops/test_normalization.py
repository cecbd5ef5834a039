import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor
from minivit.ops import layer_norm
from tests.strategies import CASES


@given(CASES["layer_norm"])
def test_rows_are_centred_and_have_the_variance_that_eps_leaves(case):
    """Of each row the mean is 0 and the mean square v / (v + eps), v the biased variance."""
    x, eps = case.args[0], case.options["eps"]
    y = layer_norm.raw(x, np.ones(x.shape[-1]), np.zeros(x.shape[-1]), eps)[0]
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose((y * y).mean(-1), x.var(-1) / (x.var(-1) + eps), rtol=1e-9)


@given(CASES["layer_norm"])
def test_shift_and_scale_of_the_input_do_not_matter(case):
    """layer_norm(a x + b; a² eps) = layer_norm(x; eps), so the pullback is orthogonal to constants."""
    x, weight, bias = case.args
    eps = case.options["eps"]
    y, pullback = layer_norm.raw(x, weight, bias, eps)
    np.testing.assert_allclose(layer_norm.raw(2 * x + 3, weight, bias, 4 * eps)[0], y, rtol=1e-8, atol=1e-10)
    dx = pullback(np.random.default_rng(0).standard_normal(x.shape))[0]
    np.testing.assert_allclose(dx.sum(-1), 0, atol=1e-9)


@pytest.mark.parametrize(("weight", "bias"), [((3,), (4,)), ((4,), (3,)), ((1, 4), (4,)), ((), (4,))])
def test_shapes_that_do_not_fit(weight, bias):
    with pytest.raises(ValueError, match=r"weight and bias of shape \(4,\), got"):
        layer_norm(Tensor(np.ones((2, 4))), Tensor(np.ones(weight)), Tensor(np.ones(bias)))
