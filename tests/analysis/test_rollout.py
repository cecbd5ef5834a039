"""Rollout against a product taken by hand, and what must come of attention that is uniform, or looks at itself."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.analysis import attention_maps, class_rollout, rollout
from minivit.models.resnet import ResNet
from tests.cupy_twin import wrap
from tests.models import test_deit
from tests.models.test_vit import close, images, small
from tests.strategies import generators, sizes


@st.composite
def attention(draw):
    """Maps of one to four layers that may differ in heads; rows sum to 1, or as they come, some of them null."""
    rng, batch, tokens = draw(generators), draw(sizes), draw(st.integers(1, 5))
    shapes = [(batch, heads, tokens, tokens) for heads in draw(st.lists(sizes, min_size=1, max_size=4))]
    maps = [rng.exponential(size=shape) for shape in shapes]
    if draw(st.booleans()):
        return [a / a.sum(-1, keepdims=True) for a in maps]
    return [a * (rng.uniform(size=(*a.shape[:3], 1)) < 0.7) for a in maps]


@given(attention(), st.sampled_from(["mean", "min", "max"]))
def test_it_is_the_product_of_all_layers_the_last_one_leftmost(maps, heads):
    product = rollout(maps, heads)
    for image in range(len(product)):
        expected = np.eye(product.shape[-1])
        for a in reversed(maps):
            mixed = getattr(a[image], heads)(0) * 0.5
            mixed += np.diag(np.full(len(mixed), 0.5))
            expected = expected @ np.array([row / sum(row) for row in mixed])
        close(product[image], expected)


@given(attention())
def test_rows_are_shares(maps):
    product = rollout(maps)
    assert (product >= 0).all()
    np.testing.assert_allclose(product.sum(-1), 1, rtol=1e-12)


@given(sizes, sizes, st.integers(1, 6), sizes)
def test_uniform_attention_stays_uniform_but_for_what_stays_itself(batch, heads, tokens, depth):
    """(U + I)/2, L times, is 2⁻ᴸ I + (1 − 2⁻ᴸ) U."""
    product = rollout([np.full((batch, heads, tokens, tokens), 1 / tokens)] * depth)
    close(product - np.eye(tokens) / 2**depth, np.full(product.shape, (1 - 0.5**depth) / tokens))


@given(sizes, sizes, st.integers(1, 6), sizes)
def test_tokens_that_look_at_themselves_stay_themselves(batch, heads, tokens, depth):
    identity = np.eye(tokens) * np.ones((batch, heads, 1, 1))
    np.testing.assert_array_equal(rollout([identity] * depth), identity[:, 0])


def test_two_layers_by_hand():
    """Token 0 looks at 1, then token 1 at 0: half of token 0 came from 1, but a quarter of token 1 from 0."""
    first, second = np.eye(2)[[1, 1]], np.eye(2)[[0, 0]]
    close(rollout([first[None, None], second[None, None]])[0], [[0.5, 0.5], [0.25, 0.75]])


def test_over_heads():
    """Two heads of which each looks at another token, and both a little at the third."""
    a = np.array([[[0.8, 0, 0.2]] * 3, [[0, 0.8, 0.2]] * 3])[None]
    close(rollout([a])[0, 2], [0.2, 0.2, 0.6])
    close(rollout([a], "min")[0, 2], [0, 0, 1])
    close(rollout([a], "max")[0, 2], np.array([0.8, 0.8, 1.2]) / 2.8)


def test_float32_stays_float32():
    assert rollout([np.ones((1, 2, 3, 3), np.float32)]).dtype == np.float32


@pytest.mark.parametrize(
    "shapes", [[], [(1, 2, 3)], [(1, 2, 1, 3)], [(1, 2, 3, 3), (1, 2, 4, 4)], [(1, 2, 3, 3), (2, 2, 3, 3)]]
)
def test_maps_that_do_not_fit_get_a_sentence(shapes):
    with pytest.raises(ValueError, match=r"maps must be arrays \(B, H, N, N\), one a layer"):
        rollout([np.ones(shape) for shape in shapes])


def test_other_ways_over_heads_get_a_sentence():
    with pytest.raises(ValueError, match="heads must be one of mean, min, max, got 'median'"):
        rollout([np.ones((1, 1, 2, 2))], "median")


# --- of a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_layer", ["softmax", "rela", "lsa"])
@pytest.mark.parametrize(("class_token", "reg_tokens"), [(True, 0), (True, 2), (False, 0), (False, 3)])
def test_the_class_tokens_row_over_the_patches(attn_layer, class_token, reg_tokens):
    model = small(class_token=class_token, reg_tokens=reg_tokens, global_pool="avg", attn_layer=attn_layer)
    x, prefix = images(), class_token + reg_tokens
    for heads in ("mean", "max"):
        seen, product = class_rollout(model, x, heads), rollout(attention_maps(model, x), heads)
        assert seen.shape == (4, 2, 3)
        for row in range(2):
            for column in range(3):
                patch = product[:, :, prefix + 3 * row + column]  # of all tokens
                close(seen[:, row, column], patch[:, 0] if class_token else patch[:, prefix:].mean(1))


def test_the_distillation_token_is_left_out():
    model, x = test_deit.small(reg_tokens=1), images()
    product = rollout(attention_maps(model, x))
    assert product.shape == (4, 9, 9)
    close(class_rollout(model, x).reshape(4, 6), product[:, 0, 3:])


def test_a_bright_patch_is_seen_where_it_is():
    model = small(depth=2, pos_embed="none")
    x = np.zeros((6, 1, 8, 12))
    for n in range(6):
        x[n, 0, n // 3 * 4 : n // 3 * 4 + 4, n % 3 * 4 : n % 3 * 4 + 4] = 1
    for n, seen in enumerate(class_rollout(model, x)):
        dark = np.delete(seen.ravel(), n)
        close(dark, dark[:1].repeat(5))
        assert abs(seen[n // 3, n % 3] - dark[0]) > 1e-3


def test_a_model_without_attention_gets_a_sentence():
    with pytest.raises(ValueError, match="ResNet has no attention layer"):
        class_rollout(ResNet("basic", (1,), (2,), stem="3x3"), np.zeros((1, 3, 4, 4), np.float32))


def test_on_the_twin_of_a_gpu(cupy_twin):
    model, x = small(), images()
    here, there = class_rollout(model, x), class_rollout(copy.deepcopy(model).to("cuda"), wrap(x))
    assert type(there) is np.ndarray
    close(there, here)
