import math

import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor, no_grad
from minivit.nn import AvgPool2d, Conv2d, MaxPool2d, PatchEmbed, init
from minivit.nn.init import deferred
from tests.nn.test_gradients import convolutions, randomise
from tests.nn.test_patch_embed import images
from tests.rules import cotangent
from tests.strategies import CASES, generators, sizes
from tests.twins import TWINS


@given(convolutions(), generators)
def test_it_is_the_sum_at_every_place(layer_and_x, rng):
    layer, x = layer_and_x
    randomise(layer, rng)
    with no_grad():
        expected = TWINS["conv2d"](Tensor(x), layer.weight, layer.bias, layer.stride, layer.padding, layer.groups)
    np.testing.assert_allclose(layer(Tensor(x)).data, expected.data, rtol=1e-10, atol=1e-12)


@given(images(), sizes, generators)
def test_patch_embedding_is_a_convolution_whose_stride_is_its_kernel(drawn, width, rng):
    """Forward and backward: tokens are places row by row, and the weight is the same."""
    x, patch_size = drawn
    embed = randomise(PatchEmbed(x.shape[2:], patch_size, x.shape[1], width), rng)
    layer = Conv2d(x.shape[1], width, patch_size, stride=patch_size)
    layer.weight.data, layer.bias.data = embed.proj.weight.data, embed.proj.bias.data
    results = []
    for module, axes in ((embed, (0, 1, 2)), (layer, (0, 2, 3, 1))):
        image = Tensor(x, requires_grad=True)
        tokens = module(image).transpose(*axes).reshape(len(x), -1, width)
        tokens.backward(cotangent(tokens.data))
        results.append([tokens.data, image.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_pytorchs_names_and_shapes(bias):
    layer = Conv2d(6, 4, (3, 5), groups=2, bias=bias)
    shapes = {name: p.shape for name, p in layer.named_parameters()}
    assert shapes == {"weight": (4, 3, 3, 5)} | ({"bias": (4,)} if bias else {})
    assert (layer.stride, layer.padding) == ((1, 1), (0, 0))


def test_a_layer_on_its_own_starts_as_pytorchs_and_unlike_its_neighbour():
    first, second = Conv2d(8, 500, (5, 10), groups=4), Conv2d(8, 500, (5, 10), groups=4)
    for p in (*first.parameters(), *second.parameters()):
        assert p.dtype == np.float32
        assert 0.095 < abs(p.data).max() <= 0.1  # 1 / √fan_in, of the inputs of a group
        assert abs(p.data.std() * 3**0.5 - 0.1) < 0.01
    assert (first.weight.data == second.weight.data).mean() < 0.01
    with deferred():
        assert not any(p.data.any() for p in Conv2d(3, 2, 1).parameters())


def test_kaiming_weights_keep_the_size_of_cotangents_through_a_relu():
    weight = init.kaiming_normal((64, 16, 3, 5), np.random.default_rng(0))
    assert weight.dtype == np.float32
    assert abs(weight.std() / math.sqrt(2 / (64 * 3 * 5)) - 1) < 0.01
    assert abs(weight.mean()) < 0.001
    assert abs(weight).max() > 3.5 * weight.std()  # not uniform, not cut


def test_flops_are_two_for_each_weight_of_a_group_and_place():
    layer, x = Conv2d(6, 4, (3, 5), stride=2, padding=1, groups=2), Tensor(np.ones((2, 6, 9, 9), np.float32))
    y = layer(x)
    assert y.shape == (2, 4, 5, 4)
    assert layer.flops((x,), y) == 2 * (2 * 4 * 5 * 4) * (3 * 3 * 5)


@pytest.mark.parametrize("groups", [0, 2, 3])
def test_groups_that_do_not_divide_the_channels(groups):
    with pytest.raises(ValueError, match=rf"groups {groups} must divide in_channels 3 and out_channels 4"):
        Conv2d(3, 4, 1, groups=groups)


@given(CASES["max_pool2d"], CASES["avg_pool2d"])
def test_pooling_layers_are_their_ops(largest, average):
    for kind, case in ((MaxPool2d, largest), (AvgPool2d, average)):
        (x,) = case.args
        name = "max_pool2d" if kind is MaxPool2d else "avg_pool2d"
        expected = TWINS[name](Tensor(x), **case.options)
        np.testing.assert_allclose(kind(**case.options)(Tensor(x)).data, expected.data, rtol=1e-12, atol=1e-14)


def test_layers_show_what_they_do():
    assert repr(Conv2d(2, 4, 3, 2, 1, bias=False)).startswith("Conv2d(stride=(2, 2), padding=(1, 1)): 72 parameters")
    assert "padding=(0, 0), groups=2)" in repr(Conv2d(2, 4, 3, groups=2))
    assert repr(MaxPool2d(3, 2, 1)) == "MaxPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))"
    assert repr(AvgPool2d((1, 2))) == "AvgPool2d(kernel_size=(1, 2), stride=(1, 2), padding=(0, 0))"
    assert repr(AvgPool2d(2, count_include_pad=False)).endswith("padding=(0, 0), count_include_pad=False)")
