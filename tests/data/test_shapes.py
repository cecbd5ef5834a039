from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.data.shapes import RELATIONS, SHAPES, TEXTURES, oklch, palette, shapes

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])[:, None, None]  # of red, green and blue


def grid(side):
    axis = np.linspace(-side, side, 65, dtype=np.float32)
    return np.meshgrid(axis, -axis)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from(RELATIONS))
def test_an_image_depends_on_seed_split_and_number_alone(n, fewer, seed, relation):
    n, fewer = max(n, fewer), min(n, fewer)
    whole, part = shapes(n, seed, size=12, relation=relation), shapes(fewer, seed, size=12, relation=relation)
    np.testing.assert_array_equal(part.labels, whole.labels[:fewer])
    np.testing.assert_array_equal(part.extra["texture"], whole.extra["texture"][:fewer])
    # one level of tolerance: vectorised sines may round differently at another place in memory
    assert np.abs(part.images.astype(int) - whole.images[:fewer]).max() <= 1


def test_images_drawn_in_several_pieces_are_those_drawn_in_one():
    size = 160  # 20 images a piece
    assert np.abs(shapes(50, size=size).images[:15].astype(int) - shapes(15, size=size).images).max() <= 1


def test_seeds_and_splits_give_different_images():
    sets = [shapes(10, seed, size=16, split=split).images for seed in (0, 1) for split in ("train", "test")]
    for a, b in combinations(sets, 2):
        assert all((x != y).mean() > 0.2 for x, y in zip(a, b))


def test_classes_are_equally_frequent_and_named():
    data = shapes(70, size=12)
    np.testing.assert_array_equal(np.bincount(data.labels), 7)
    assert data.classes == list(SHAPES) and len(SHAPES) == len(TEXTURES) == 10


def test_texture_agrees_with_shape_is_independent_of_it_or_conflicts():
    n = 5000
    same = {}
    for relation in RELATIONS:
        data = shapes(n, size=8, relation=relation)
        same[relation] = (data.labels == data.extra["texture"]).mean()
        if relation != "agree":
            pairs = np.zeros((10, 10), int)
            np.add.at(pairs, (data.labels, data.extra["texture"]), 1)
            expected = n / (100 if relation == "independent" else 90)
            allowed = pairs if relation == "independent" else pairs[~np.eye(10, dtype=bool)]
            assert np.abs(allowed - expected).max() < 5 * expected**0.5
    assert same["agree"] == 1 and same["conflict"] == 0
    assert abs(same["independent"] - 0.1) < 0.02


def test_images_of_two_relations_differ_in_texture_alone():
    free, tied = shapes(200, size=16), shapes(200, size=16, relation="agree")
    equal = (free.images == tied.images).all((1, 2, 3))
    same_texture = free.extra["texture"] == tied.extra["texture"]
    assert same_texture.any()
    assert equal[same_texture].all()
    assert not equal[~same_texture].all()


@pytest.mark.parametrize("size", [8, 28, 32, 50])
def test_any_size_gives_the_same_pictures(size):
    data = shapes(20, size=size)
    assert (data.images.shape, data.images.dtype) == ((20, 3, size, size), np.uint8)
    fine = shapes(20, size=4 * size).images
    pooled = fine.reshape(20, 3, size, 4, size, 4).mean((3, 5))
    assert np.abs(pooled - data.images).mean() < (12 if size == 8 else 5)


def test_silhouettes_lie_in_the_unit_circle_or_nearly_and_fill_it_well():
    x, y = grid(1.5)
    for name, field in SHAPES.items():
        inside = field(x, y) > 0
        assert not inside[np.hypot(x, y) > 1.12].any(), name
        assert inside[np.hypot(x, y) <= 1].mean() > 0.2, name


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_silhouettes_are_clearly_different_even_when_mirrored():
    x, y = grid(1.1)
    inside = {name: field(x, y) > 0 for name, field in SHAPES.items()}
    for a, b in combinations(inside, 2):
        assert max(overlap(inside[a], inside[b]), overlap(inside[a], inside[b][:, ::-1])) < 0.85, (a, b)


def test_textures_are_clearly_different_and_all_but_plain_use_both_inks():
    x, y = grid(2.0)
    second = {name: field(x, y) > 0 for name, field in TEXTURES.items()}
    assert not second.pop("plain").any()
    for name, ink in second.items():
        assert 0.2 < ink.mean() < 0.6, name
    for a, b in combinations(second, 2):
        assert overlap(second[a], second[b]) < 0.7, (a, b)


@pytest.mark.parametrize("fields", [SHAPES, TEXTURES])
def test_fields_grow_like_the_distance_from_the_edge(fields):
    """Within a factor of 2.5 at the edge: there the slope decides how sharp the figure is drawn."""
    step = 1e-3
    x, y = (axis.astype(np.float64) for axis in grid(1.05))
    for name, field in fields.items():
        value = field(x, y)
        slope = np.hypot(field(x + step, y) - value, field(x, y + step) - value) / step
        edge = np.abs(value) < 0.02
        if edge.any():
            assert 0.4 < np.median(slope[edge]) < 2.5, name


def test_figure_and_paper_and_the_two_inks_always_contrast():
    numbers = np.random.default_rng(0).random((6, 2000), dtype=np.float32)
    paper, ink, second = (((colour**2.2) * LUMINANCE).sum((1, 2, 3)) ** (1 / 2.2) for colour in palette(*numbers))
    for a, b in combinations((paper, ink, second), 2):
        assert np.abs(a - b).min() > 0.12


@pytest.mark.parametrize(
    ("lightness", "chroma", "hue", "srgb"),
    [
        (1, 0, 0, [1, 1, 1]),
        (0, 0, 0, [0, 0, 0]),
        (0.62796, 0.25768, 29.234, [1, 0, 0]),
        (0.86644, 0.29483, 142.495, [0, 1, 0]),
        (0.45201, 0.31321, 264.052, [0, 0, 1]),
    ],
)
def test_oklch_knows_the_corners_of_srgb(lightness, chroma, hue, srgb):
    colour = oklch(np.array([lightness]), chroma, np.array([hue / 360]))
    np.testing.assert_allclose(colour[0, :, 0, 0], srgb, atol=5e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 10, "relation": "opposed"}, "relation must be one of agree, independent, conflict, got 'opposed'"),
        ({"n": 0}, "n must be at least 1 .* got n = 0"),
        ({"n": 10, "size": 4}, "size = 4"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        shapes(**arguments)
