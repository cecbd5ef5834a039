import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor
from minivit.nn import Linear
from minivit.nn.init import deferred
from tests.nn.test_gradients import randomise
from tests.strategies import arrays, flags, generators, sizes, some_axes


@given(some_axes.flatmap(arrays), sizes, flags, generators)
def test_it_is_x_times_the_transposed_weight_plus_the_bias(x, outputs, bias, rng):
    layer = randomise(Linear(x.shape[-1], outputs, bias), rng)
    expected = np.tensordot(x, layer.weight.data, (-1, 1)) + (layer.bias.data if bias else 0)
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_pytorchs_names_and_shapes(bias):
    shapes = {name: p.shape for name, p in Linear(3, 2, bias).named_parameters()}
    assert shapes == {"weight": (2, 3)} | ({"bias": (2,)} if bias else {})


def test_a_layer_on_its_own_starts_as_pytorchs_and_unlike_its_neighbour():
    first, second = Linear(100, 500), Linear(100, 500)
    for p in (*first.parameters(), *second.parameters()):
        assert p.dtype == np.float32
        assert 0.095 < abs(p.data).max() <= 0.1  # 1 / √fan_in
        assert abs(p.data.std() * 3**0.5 - 0.1) < 0.02
    assert (first.weight.data == second.weight.data).mean() < 0.01


def test_inside_deferred_a_layer_starts_at_zero():
    with deferred():
        layer = Linear(3, 2)
    assert not any(p.data.any() for p in layer.parameters())


def test_flops_are_two_for_each_weight_and_row():
    layer, x = Linear(3, 2), Tensor(np.ones((4, 5, 3), np.float32))
    assert layer.flops((x,), layer(x)) == 2 * (4 * 5) * 3 * 2
