"""``positions.py``: a sweep of tiny networks from start to end, and what is concluded from figures that are made up."""

import doctest
import json
import runpy
import sys

import numpy as np
import pytest

from minivit.models.vit import POSITIONS
from minivit.nn.position import absolute_table
from tests.data.test_folder import write_tree
from tests.data.test_idx import write_set
from tests.examples import ROOT, check_picture, fails, run
from tests.examples.test_figures import has_colour

TINY = ("--train-images", 40, "--test-images", 30, "--epochs", 1, "--seeds", 2, "--patch-size", 8)
JOB = {
    "dataset": "places", "data_dir": "data", "size": 16, "larger": None, "patch_size": 8, "train_images": 60,
    "test_images": 50, "epochs": 1, "seed": 1, "position": "learn",
}  # fmt: skip


@pytest.fixture
def positions():
    import positions

    return positions


@pytest.fixture
def pictures():
    import position_pictures

    return position_pictures


# --- a sweep from start to end -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_prints_its_table_and_claims_draws_and_is_not_run_twice(tmp_path):
    arguments = (*TINY, "--positions", "learn,none,rel_bias")
    code, out, err = run("positions.py", *arguments, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "positions-places"
    made = ["accuracy.png", "bias.png", "similarity.png", "sinusoids.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*made, "figures"])
    for picture in made:
        check_picture(folder / picture)

    last = json.loads(out.splitlines()[-1])
    said = {"example": "positions", "dataset": "places", "train_images": 40, "epochs": 1, "seeds": 2, "pixels": 24,
            "pixels_larger": 32}  # fmt: skip
    assert {name: last[name] for name in said} == said
    for name in ("learn", "none", "rel_bias"):
        (row,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        for measure in ("", "_larger", "_larger_near"):
            mean, sd = last[f"accuracy{measure}_{name}"], last[f"spread{measure}_{name}"]
            assert 0 <= mean <= 1 and f"{100 * mean:.1f} ± {100 * sd:.1f}" in row
    claims = [line for line in out.splitlines() if line.startswith(("  It held: ", "  It did not hold: "))]
    assert len(claims) == 2 and {"held_positions_matter", "held_learned_grid"} < last.keys()

    before = {path.name: path.stat().st_mtime_ns for path in (folder / "figures").iterdir()}
    assert len(before) == 6
    code, again, err = run("positions.py", *arguments, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "figures").iterdir()} == before
    assert json.loads(again.splitlines()[-1]) | {"seconds": 0} == last | {"seconds": 0}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--positions learn,rop", f"--positions must be some of {','.join(POSITIONS)}, got rop"),
        ("--dataset imagenet", "data set must be shapes, mnist, "),
        ("--patch-size 5", "--patch-size must divide the images of 24 × 24 pixels, got 5"),
        ("--larger 30", "--larger must be a multiple of the patch size, 4 pixels, got 30"),
        ("--seeds 0", "--seeds must be at least 1, got 0"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, tmp_path):
    assert fails("positions.py", *arguments.split(), cwd=tmp_path).startswith(f"positions: {sentence}")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_gets_one_line(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("minivit.data.places.places", interrupted)
    monkeypatch.setattr("sys.argv", ["positions.py"])
    with pytest.raises(SystemExit, match=r"^positions: stopped; the same command goes on with the runs that are miss"):
        runpy.run_path(str(ROOT / "examples" / "positions.py"), run_name="__main__")


def test_without_matplotlib_no_pictures_are_drawn(positions, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "position_pictures", None)
    positions.draw({}, (2, 2), 0.1, [], tmp_path)
    assert "no pictures were drawn: they need matplotlib, pip install " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# --- one run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POSITIONS)
def test_a_run_of_every_position_embedding(positions, name):
    figures = positions.run(JOB | {"position": name})
    accuracies = {"accuracy", "accuracy_larger", "accuracy_larger_near"}
    assert all(0 <= figures[measure] <= 1 for measure in accuracies)
    assert figures.keys() - accuracies == {"learn": {"table", "added"}, "rel_bias": {"bias"}, "rel_t5": {"bias"}}.get(
        name, set()
    )
    assert np.shape(figures.get("table", np.zeros((4, 64)))) == (4, 64)
    assert np.shape(figures.get("bias", np.zeros((3, 4, 2, 2)))) == (3, 4, 2, 2)
    assert figures == positions.run(JOB | {"position": name}), "the same job gives the same figures"


def test_training_changes_the_table_and_learns_the_images(positions):
    job = JOB | {"train_images": 40, "epochs": 30, "size": 16}
    train_set, *_ = positions.load_sets(job)
    model = positions.make_model(job, train_set)
    start = model.pos_embed.numpy().copy()
    positions.train(model, train_set, job)
    assert positions.correct(model, train_set).mean() > 0.9
    assert abs(model.pos_embed.numpy() - start).max() > 0.01


def test_near_are_the_distances_of_the_training_set(positions, monkeypatch):
    train_set, test_set, larger = positions.load_sets(JOB)
    assert (test_set.images.shape[2], larger.images.shape[2]) == (16, 24)
    near = larger.extra["distance"] <= train_set.extra["distance"].max()
    assert 0 < near.mean() < 1
    monkeypatch.setattr(positions, "train", lambda *args: None)
    monkeypatch.setattr(positions, "correct", lambda model, data: near if len(data.images[0, 0]) == 24 else ~near)
    figures = positions.run(JOB)
    assert figures["accuracy_larger_near"] == 1 and figures["accuracy_larger"] == near.mean()


def test_real_images_are_scaled_up_as_pictures(positions, tmp_path):
    write_set(tmp_path / "mnist")
    train_set, test_set, larger = positions.load_sets(
        JOB | {"dataset": "mnist", "data_dir": str(tmp_path), "size": None, "patch_size": 4, "test_images": 7}
    )
    assert train_set.images.shape[2:] == (28, 28) and larger.images.shape == (len(test_set), 1, 40, 40)
    assert len(test_set) == 7 and (larger.labels == test_set.labels).all() and larger.mean == train_set.mean
    small, large = (data.images.astype(float) for data in (test_set, larger))
    assert abs(small.mean((1, 2, 3)) - large.mean((1, 2, 3))).max() < 3
    assert (positions.scaled(test_set, 28).images == test_set.images).all()


def test_colours_and_order_survive_scaling(positions, tmp_path):
    write_tree(tmp_path, count=20)
    _, test_set, larger = positions.load_sets(JOB | {"dataset": f"folder:{tmp_path}", "size": 8, "patch_size": 4})
    small, large = (data.images.mean((2, 3)) for data in (test_set, larger))
    assert larger.images.shape[1:] == (3, 12, 12) and abs(small - large).max() < 12


# --- what is concluded ---------------------------------------------------------------------------------------------


def figures(*values, **others):
    return {name: np.array(v) for name, v in {"accuracy": values, "accuracy_larger": values, **others}.items()}


def test_positions_matter_where_all_are_better_than_none(positions):
    table = {"none": figures(0.12, 0.13), "learn": figures(0.8, 0.9), "rel_t5": figures(0.5, 0.6)}
    (claim,) = positions.claims(table, 1 / 8)
    assert (claim.key, claim.held) == ("positions_matter", True)
    assert "12.5 ± 0.7 % without, 85.0 ± 7.1 % with learn; chance is 12.5%" in claim.numbers
    (claim,) = positions.claims(table | {"rel_bias": figures(0.125, 0.135)}, 1 / 8)
    assert not claim.held and claim.numbers.endswith("; no better than none: rel_bias")
    assert positions.claims({"none": figures(0.1)}, 1 / 8) == []


def test_a_table_of_the_grid_is_told_from_one_of_the_row_and_from_none(positions):
    grid, row = (absolute_table(name, 64, (6, 6))[0] for name in ("sincos_mae", "sincos_1d"))
    chance = np.random.default_rng(0).standard_normal((2, 36, 64))
    for tables, held in (([grid, grid], True), ([row, row], False), (chance, False)):
        (claim,) = positions.claims({"learn": figures(0.9, 0.9, added=tables)}, 1 / 8)
        assert (claim.key, claim.held) == ("learned_grid", held) and isinstance(claim.held, bool)
    in_grid, in_row = positions.nearness(grid, (6, 6))
    assert in_grid > 0.8 > in_row > 0
    assert positions.nearness(row, (6, 6))[1] > positions.nearness(row, (6, 6))[0]


def test_what_is_kept_at_the_larger_resolution(positions):
    learned = figures(0.9, 0.9, accuracy_larger=[0.5, 0.5])
    table = {
        "learn": learned,
        "sincos_mae": figures(0.9, 0.9, accuracy_larger=[0.9, 0.9]),
        "rope_axial": learned,
        "rel_t5": figures(0.2, 0.2),  # has nothing to lose
    }
    chance = 0.1
    assert positions.share_kept(table, positions.FAMILIES["absolute"], chance) == pytest.approx([0.75, 0.75])
    assert positions.share_kept(table, positions.FAMILIES["relative"], chance) == pytest.approx([0.5, 0.5])
    (claim,) = positions.claims(table, chance)
    assert (claim.key, claim.held) == ("relative_keeps", False)
    (claim,) = positions.claims(table | {"rope_axial": table["sincos_mae"]}, chance)
    assert claim.held
    assert positions.claims({"learn": learned, "rel_t5": table["rel_t5"]}, chance) == []


def test_the_examples_in_the_docstrings(positions, pictures):
    for module in (positions, pictures):
        failed, tried = doctest.testmod(module)
        assert tried > 0 and failed == 0


def test_every_embedding_belongs_to_a_family(positions):
    names = [name for family in positions.FAMILIES.values() for name in family]
    assert sorted([*names, "none"]) == sorted(POSITIONS)


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [True, False])
def test_the_accuracies_are_drawn_in_the_colours_of_their_families(pictures, positions, tmp_path, near):
    others = {"accuracy_larger_near": [0.8, 0.7]} if near else {}
    table = {"learn": figures(0.5, 0.6, **others), "none": figures(0.1, 0.2, **others)}
    pictures.draw_accuracy(table, positions.FAMILIES, [24, 36], 1 / 8, tmp_path / "a.png")
    check_picture(tmp_path / "a.png")
    for family, colour in pictures.COLOURS.items():
        assert has_colour(tmp_path / "a.png", colour) == (family != "relative")


def test_maps_lie_where_their_patches_do(pictures):
    maps = np.arange(36.0).reshape(2, 3, 2, 3)
    picture = pictures.mosaic(maps)
    assert picture.shape == (5, 11) and np.isnan(picture[2]).all() and np.isnan(picture[:, [3, 7]]).all()
    np.testing.assert_array_equal(picture[3:, 4:7], maps[1, 1])


@pytest.mark.parametrize("kinds", [1, 2])
def test_the_other_pictures(pictures, tmp_path, kinds):
    names = ("rel_bias", "rel_t5")[:kinds]
    rng = np.random.default_rng(0)
    pictures.draw_bias({name: rng.standard_normal((3, 4, 5, 5)) for name in names}, tmp_path / "bias.png")
    pictures.draw_similarity({name: rng.uniform(-1, 1, (4, 4, 4, 4)) for name in names}, tmp_path / "similarity.png")
    pictures.draw_sinusoids(absolute_table("sincos_1d", 16, (4, 5))[0], tmp_path / "sinusoids.png")
    for path in tmp_path.iterdir():
        check_picture(path)
