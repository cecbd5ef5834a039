"""``inductive_bias.py``: what is done to images, what networks as they are built make of it, and what is concluded."""

import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.data import Loader
from minivit.data.shapes import shapes
from minivit.training import evaluate
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run
from tests.examples.test_figures import has_colour, random_bytes

JOB = {
    "dataset": "shapes", "data_dir": "data", "size": 16, "train_images": 20, "test_images": 20, "epochs": 1, "seed": 1,
}  # fmt: skip
ROUNDING = 1e-5


@pytest.fixture
def bias():
    import inductive_bias

    return inductive_bias


# --- a sweep from start to end -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_prints_its_tables_and_claims_and_draws(tmp_path, bias):
    from figures import LINES

    write_set(tmp_path / "data" / "mnist")
    code, out, err = run("inductive_bias.py", "--dataset", "mnist", "--epochs", 1, "--seeds", 2, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "inductive_bias-mnist"
    assert sorted(path.name for path in folder.iterdir()) == [
        "equivariance.png", "figures", "images.png", "robustness.png",
    ]  # fmt: skip
    for picture in folder.glob("*.png"):
        check_picture(picture)
    assert all(has_colour(folder / "equivariance.png", colour) for colour in LINES)
    assert [has_colour(folder / "robustness.png", colour) for colour in LINES] == 3 * [True] + 2 * [False]
    assert len(list((folder / "figures").iterdir())) == 2 * len(bias.VARIANTS)

    last = json.loads(out.splitlines()[-1])
    said = {"example": "inductive_bias", "dataset": "mnist", "train_images": 30, "epochs": 1, "seeds": 2}
    assert {name: last[name] for name in said} == said
    assert (last["shifts"], last["sides"]) == (list(range(9)), [14, 7, 4])
    means, sds = last["vit_shifted"], last["vit_shifted_sd"]
    (row,) = [line for line in out.splitlines() if line.startswith("shifted by 3 px")]
    assert f"{100 * means[3]:.1f} ± {100 * sds[3]:.1f}" in row
    assert last["vit_none_shuffled"][:2] == pytest.approx(2 * [last["vit_none_shifted"][0]])
    held = re.findall(r"^  (It held|It did not hold): ", out, re.MULTILINE)
    assert held.count("It held") == sum(value for name, value in last.items() if name.startswith("held_"))


# --- what is done to images ----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(by=st.integers(0, 12), height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_shift_takes_each_pixel_from_a_diagonal_neighbour_or_from_the_edge(by, height, width):
    from inductive_bias import shifted

    images = random_bytes(6, 2, height, width)
    moved = shifted(images, by)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    for image, found in zip(images, moved):
        candidates = [
            image[:, np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)]
            for down in (by, -by)
            for right in (by, -by)
        ]
        assert any((found == candidate).all() for candidate in candidates)


def test_directions_are_drawn_by_the_index_of_the_image_and_all_four_occur(bias):
    image = random_bytes(1, 1, 9, 9)
    moved = {by: bias.shifted(image.repeat(40, 0), by) for by in (0, 1, 3)}
    assert (moved[0] == image).all()
    assert len(np.unique(moved[1], axis=0)) == len(np.unique(moved[3], axis=0)) == 4
    for i in range(40):  # by three pixels an image goes where it went by one
        same = [(moved[by] == moved[by][i]).all((1, 2, 3)) for by in (1, 3)]
        np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(bias.shifted(image.repeat(7, 0), 3), moved[3][:7])  # whatever else is there


@settings(max_examples=30)
@given(side=st.integers(1, 5), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_a_shuffle_is_a_permutation_of_the_squares(side, rows, columns):
    from inductive_bias import shuffled

    def squares(image):  # each as bytes
        cut = [image[:, side * r : side * (r + 1), side * c : side * (c + 1)] for r, c in np.ndindex(rows, columns)]
        return [square.tobytes() for square in cut]

    images = random_bytes(3, 2, side * rows, side * columns)
    moved = shuffled(images, side)
    assert moved.shape == images.shape and moved.dtype == images.dtype
    for before, after in zip(images, moved):
        assert sorted(squares(before)) == sorted(squares(after))
    if rows == columns == 1:
        np.testing.assert_array_equal(moved, images)


def test_each_image_has_an_order_of_its_own_drawn_by_its_index(bias):
    images = random_bytes(1, 1, 8, 8).repeat(20, 0)
    moved = bias.shuffled(images, 2)
    assert len(np.unique(moved, axis=0)) == 20
    np.testing.assert_array_equal(bias.shuffled(images[:5], 2), moved[:5])
    with pytest.raises(ValueError, match="side must divide images of 8 × 8 pixels, got 3"):
        bias.shuffled(images, 3)


@pytest.mark.parametrize(("size", "sides"), [((32, 32), [16, 8, 4]), ((28, 28), [14, 7, 4]), ((24, 32), [8, 4])])
def test_squares_are_those_that_divide_the_images(bias, size, sides):
    assert bias.sides_of(random_bytes(1, 1, *size)) == sides


# --- networks as they are built ------------------------------------------------------------------------------------


def test_parts_are_equivariant_to_shifts_by_their_steps_and_to_no_others(bias):
    found = bias.shift_errors(shapes(2, size=8), "shapes")
    steps = {
        "convolution": 1, "convolution, stride 2": 2, "max pooling, 2 × 2": 2, "CNN, stage 1": 1, "CNN, stage 2": 2,
        "CNN, stage 3": 4, "CNN, logits": 4, "patch embedding": 8, "ViT, logits": None,
        "ViT without positions, logits": 8,
    }  # fmt: skip
    assert found.keys() == steps.keys() and set(bias.DRAWN) <= steps.keys()
    for title, step in steps.items():
        assert found[title][0] == 0
        for by in bias.SHIFTS[1:]:
            exact = step is not None and by % step == 0
            assert (found[title][by] < ROUNDING) == exact, (title, by)
            assert exact or found[title][by] > 1e-4, (title, by)


def test_only_without_positions_a_transformer_does_not_see_the_order_of_patches(bias):
    found = bias.shuffle_errors(shapes(4, size=32), "shapes")
    exact = {  # so many of its parts, from the images on, before the first that knows a place
        "none": len(bias.PARTS), "learn": 1, "sincos_timm": 1, "rope_axial": 2,
    }  # fmt: skip
    assert found.keys() == exact.keys() == set(bias.POSITIONS)
    for position, parts in exact.items():
        errors = np.array(found[position])
        assert (errors[:parts] < ROUNDING).all() and (errors[parts:] > 1e-3).all(), position


def test_small_errors_are_printed_as_what_they_are(bias):
    by_shift = {"convolution": [0.0, 2e-7, 0.0, 0.5] + 5 * [0.004]}
    text = bias.errors_as_text(by_shift, {"none": [1e-7] * 6, "learn": [0.25] * 6}).splitlines()
    assert text[2].split() == ["convolution", "2e-07", "0", "0.50"] + 5 * ["4e-03"]
    assert text[-1].split() == ["logits", "1e-07", "0.25"]


# --- one run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["cnn", "vit", "vit_none"])
def test_a_run_trains_without_augmentation_and_measures_that_network(bias, monkeypatch, variant):
    def train(model, train_set, test_set, job, **options):
        seen.append((model, test_set, options))  # which stays as it was built

    seen = []
    monkeypatch.setattr(bias, "train", train)
    found = bias.run(JOB | {"variant": variant})
    ((model, test_set, options),) = seen
    assert options == {"augment": []}
    assert found["shifted"][0] == evaluate(model, Loader(test_set, 20, shuffle=False)).accuracy
    assert [len(found[change]) for change in ("shifted", "shuffled")] == [9, 3]
    assert (getattr(model, "position", None), getattr(model, "global_pool", None)) == {
        "cnn": (None, None), "vit": ("learn", "token"), "vit_none": ("none", "avg"),
    }[variant]  # fmt: skip


# --- conclusions ---------------------------------------------------------------------------------------------------

SIDES = [16, 8, 4]


def made_up(bias, **accuracies):
    """A table in which all are right on 90 %, whatever is done, but for {variant: ([9 shifts], [3 sides])}."""
    luck = np.array([[-0.01], [0.0], [0.01]])  # of three seeds
    return {
        variant: {
            change: np.array(mean) + (luck if change == "shifted" else 0 * luck)
            for change, mean in zip(("shifted", "shuffled"), accuracies.get(variant, ([0.9] * 9, [0.9] * 3)))
        }
        for variant in bias.VARIANTS
    }


def test_claims_follow_the_numbers(bias):
    def held(**accuracies):
        return {claim.key for claim in bias.judge(made_up(bias, **accuracies), SIDES, 8, 0.1) if claim.held}

    assert held() == set()
    falls = [0.9] + 8 * [0.5]
    assert held(vit=(falls, [0.9] * 3)) == {"cnn_shifts", "none_shifts"}
    assert held(cnn=(falls, [0.9] * 3)) == set()
    assert held(vit=([0.9] * 9, [0.9, 0.3, 0.9])) == {"cnn_squares", "vit_order"}
    assert held(cnn=([0.9] * 9, [0.1, 0.3, 0.1])) == {"cnn_order"}
    waves = [0.9, 0.8, 0.7, 0.6, 0.5, 0.6, 0.7, 0.8, 0.85]
    assert "none_patch" in held(vit_none=(waves, [0.9] * 3))
    assert "none_patch" not in held(vit_none=(falls, [0.9] * 3))


def test_an_order_that_is_not_seen_changes_no_seed(bias):
    table = made_up(bias)
    table["vit_none"]["shuffled"] = table["vit_none"]["shifted"][:, :3].copy()
    (claim,) = [c for c in bias.judge(table, SIDES, 8, 0.1) if c.key == "none_order"]
    assert claim.held and claim.numbers == "ViT without positions keeps 100 ± 0 % (90.0 ± 1.0 % right)"
    table["vit_none"]["shuffled"][2, 1] += 0.01  # one seed, squares of a patch
    (claim,) = [c for c in bias.judge(table, SIDES, 8, 0.1) if c.key == "none_order"]
    assert not claim.held


def test_a_network_that_learned_nothing_gives_no_infinite_shares(bias):
    table = made_up(bias, cnn=([0.1] * 9, [0.1] * 3))
    assert all("inf" not in claim.numbers and "nan" not in claim.numbers for claim in bias.judge(table, SIDES, 8, 0.1))


def test_a_row_for_each_change(bias):
    lines = bias.as_text(made_up(bias, vit=([0.8] * 9, [0.7, 0.6, 0.5])), SIDES).splitlines()
    assert len(lines) == 1 + 9 + 3
    assert lines[1].split() == "shifted by 0 px 90.0 ± 1.0 80.0 ± 1.0 90.0 ± 1.0".split()
    assert lines[-2].split() == "squares of 8 px 90.0 ± 0.0 60.0 ± 0.0 90.0 ± 0.0".split()


# --- pictures ------------------------------------------------------------------------------------------------------


def test_a_line_of_several_seeds_is_their_mean_with_a_band_of_a_standard_deviation(monkeypatch, tmp_path):
    import figures

    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    lines = {"seeds": [[1.0, 2.0], [3.0, 6.0]], "one": [5.0, 4.0]}
    figures.draw_lines({"x": (["a", "b"], lines), "y": (["c", "d"], lines)}, tmp_path, "up", {"level": 0.5})
    for axes, marks in zip(kept[0].axes, (["a", "b"], ["c", "d"])):
        seeds, one, level = (line.get_ydata() for line in axes.lines)
        assert list(seeds) == [2, 4] and list(one) == [5, 4] and set(level) == {0.5}
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == pytest.approx((2 - 2**0.5, 4 + 8**0.5))
        assert [label.get_text() for label in axes.get_xticklabels()] == marks
    assert [axes.get_legend() is not None for axes in kept[0].axes] == [True, False]
    figures.plt.close(kept[0])


def test_without_matplotlib_no_pictures_are_drawn(bias, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "figures", None)
    bias.draw({}, {}, {}, None, None)
    assert "no pictures were drawn: they need matplotlib, pip install " in capsys.readouterr().out


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1$"),
        ("--epochs 0", "epochs must be at least 1, got 0$"),
        ("--train-images 10 --size 20", r"patch_size \(8, 8\) must divide img_size \(20, 20\)$"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, sentence, tmp_path, bias):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        bias.main([*arguments.split(), "--run-dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_it_is_said_in_one_line(tmp_path):
    assert fails("inductive_bias.py", "--seeds", 1, cwd=tmp_path).startswith("inductive_bias: --seeds must be")
