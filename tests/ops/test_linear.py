import weakref

import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor
from minivit.ops import linear, matmul
from tests.strategies import CASES


@given(CASES["linear"])
def test_linear_is_a_product_with_the_transposed_weight(case):
    x, weight, bias = case.args
    expected = np.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias)
    np.testing.assert_allclose(linear.raw(*case.args)[0], expected, rtol=1e-11, atol=1e-13)


def test_the_bias_may_be_named_or_left_out():
    x, weight, bias = Tensor([[1.0, 2.0]]), Tensor([[3.0, 4.0]], requires_grad=True), Tensor([5.0], requires_grad=True)
    assert linear(x, weight).item() == linear(x, weight, bias=None).item() == 11
    linear(x, weight=weight, bias=bias).backward()
    np.testing.assert_array_equal(weight.grad, [[1, 2]])
    np.testing.assert_array_equal(bias.grad, [1])


@pytest.mark.parametrize(("frozen", "freed"), [(True, True), (False, False)])
def test_the_input_of_a_frozen_weight_is_freed(frozen, freed):
    x, weight = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones((4, 3)), requires_grad=not frozen)
    doubled = x * 2
    data = weakref.ref(doubled.data)
    y = linear(doubled, weight)
    del doubled
    assert (data() is None) == freed
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 8))
    assert (weight.grad is None) == frozen


@pytest.mark.parametrize(
    ("x", "weight", "bias", "words"),
    [
        ((2, 3), (4, 2), (4,), r"x \(…, I\) and weight \(O, I\), got x \(2, 3\) and weight \(4, 2\)"),
        ((2, 3), (3,), None, r"got x \(2, 3\) and weight \(3,\)"),
        ((2, 3), (4, 3), (3,), r"bias of shape \(4,\), got \(3,\)"),
        ((2, 3), (4, 3), (1, 4), r"bias of shape \(4,\), got \(1, 4\)"),
    ],
)
def test_linear_names_the_shapes_that_do_not_fit(x, weight, bias, words):
    with pytest.raises(ValueError, match=words):
        linear(Tensor(np.ones(x)), Tensor(np.ones(weight)), None if bias is None else Tensor(np.ones(bias)))


@pytest.mark.parametrize(("x", "y"), [((2, 3), (2, 3)), ((3,), (3, 2)), ((2, 3), (3,)), ((1, 2, 3), (1, 2, 3))])
def test_matmul_names_the_shapes_that_do_not_fit(x, y):
    with pytest.raises(ValueError, match=r"matmul needs shapes \(…, M, K\) and \(…, K, N\), got"):
        matmul(Tensor(np.ones(x)), Tensor(np.ones(y)))
