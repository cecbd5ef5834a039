"""``heads.py``: a sweep of tiny networks from start to end, and what is concluded from figures that are made up."""

import json
import re
import runpy
import sys

import numpy as np
import pytest

from minivit.analysis.heads import entropy, measure_heads
from minivit.data import Loader
from minivit.diversity import PENALTIES
from tests.data.test_idx import write_set
from tests.examples import ROOT, check_picture, fails, run
from tests.examples.test_figures import colours, has_colour

TINY = ("--dataset", "mnist", "--epochs", 1, "--seeds", 2, "--patch-size", 14)
JOB = {
    "dataset": "shapes", "data_dir": "data", "size": 16, "patch_size": 8, "train_images": 30, "test_images": 10,
    "epochs": 1, "seed": 1, "penalty": 0.0, "include_diagonal": True, "variant": "softmax",
}  # fmt: skip


@pytest.fixture
def heads():
    import heads

    return heads


@pytest.fixture
def figures():
    import figures

    return figures


# --- a sweep from start to end -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_prints_its_table_and_claims_draws_and_is_not_run_twice(tmp_path, heads):
    write_set(tmp_path / "data" / "mnist")
    code, out, err = run("heads.py", *TINY, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "heads-mnist"
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "maps.png", "similarity.png"]
    for picture in ("maps.png", "similarity.png"):
        check_picture(folder / picture)

    last = json.loads(out.splitlines()[-1])
    said = {"example": "heads", "dataset": "mnist", "train_images": 30, "epochs": 1, "seeds": 2, "penalty": 0.1}
    assert {name: last[name] for name in said} == said
    for variant in heads.VARIANTS:
        (row,) = [line for line in out.splitlines() if line.startswith(f"{variant} ")]
        assert f"{last[f'{variant}_similarity']:.3f} ± {last[f'{variant}_similarity_sd']:.3f}" in row
        assert 0 <= last[f"{variant}_accuracy"] <= 1 and last[f"{variant}_distance"] > 0
    assert last["rela_sparsity"] > 0.2 and last["softmax_sparsity"] == 0
    assert last["lsa_sparsity"] == pytest.approx(1 / 4)  # of four tokens none looks at itself
    assert last["disagreement_output_similarity"] != last["softmax_similarity"]
    held = re.findall(r"^  (It held|It did not hold): ", out, re.MULTILINE)
    assert len(held) == sum(name.startswith("held_") for name in last)
    assert held.count("It held") == sum(value for name, value in last.items() if name.startswith("held_"))

    paths = list((folder / "figures").iterdir())
    assert len(paths) == 2 * len(heads.VARIANTS)
    times = {path: path.stat().st_mtime_ns for path in paths}
    paths[0].unlink()
    code, again, err = run("heads.py", *TINY, cwd=tmp_path)
    assert (code, err) == (0, "")
    again = json.loads(again.splitlines()[-1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in last.items() if k != "seconds"}
    assert [path for path in paths if path.stat().st_mtime_ns != times[path]] == [paths[0]]


def test_a_run_measures_the_network_it_trained(heads, monkeypatch):
    trained = []
    train = heads.train
    monkeypatch.setattr(heads, "train", lambda *args, **options: trained.append(train(*args, **options)) or trained[0])
    found = heads.run(JOB | {"variant": "rela", "seed": 0})
    (model, _, test_set, result) = trained[0]
    assert found["accuracy"] == result.test_accuracy
    measured = measure_heads(model, Loader(test_set, 10, shuffle=False), progress=False)
    assert found["similarity"] == pytest.approx(measured.similarity.mean())
    assert found["entropy"] == pytest.approx(np.mean(measured.entropy))
    assert np.shape(found["maps"]) == (4, 8, 2, 2)
    assert json.loads(json.dumps(found)) == found


def test_variants_are_what_their_names_say(heads, monkeypatch):
    seen = {}

    def train(job, folder, penalties, **options):
        seen[job["variant"]] = (options, penalties and dict(penalties.weights))
        diagonal.append(penalties and penalties.include_diagonal)
        raise KeyError

    diagonal = []
    monkeypatch.setattr(heads, "train", train)
    for variant in heads.VARIANTS:
        with pytest.raises(KeyError):
            heads.run(JOB | {"variant": variant, "penalty": 0.3, "include_diagonal": False})
    assert diagonal == 4 * [None] + 4 * [False]
    assert seen["softmax"] == ({}, None) and seen["qk_norm"] == ({"qk_norm": True}, None)
    assert seen["rela"] == ({"attn_layer": "rela"}, None) and seen["lsa"] == ({"attn_layer": "lsa"}, None)
    assert {name: seen[name] for name in PENALTIES} == {name: ({}, {name: 0.3}) for name in PENALTIES}


def test_all_seeds_see_the_same_images_and_start_from_other_weights(heads):
    train_sets, test_sets = zip(*(heads.load_images(JOB | {"seed": seed}) for seed in (0, 1)))
    np.testing.assert_array_equal(train_sets[0].images, train_sets[1].images)
    np.testing.assert_array_equal(test_sets[0].images, test_sets[1].images)
    assert len(train_sets[0]) == 30 and len(test_sets[0]) == 10
    options = [heads.model_options(JOB | {"seed": seed}, train_sets[0]) for seed in (0, 1)]
    weights = [heads.create_model(heads.MODEL, **o).head.weight.numpy() for o in options]
    assert (weights[0] != weights[1]).any()


# --- conclusions ---------------------------------------------------------------------------------------------------


def made_up(heads, **changes):
    """A table in which all variants are alike, but for changes {variant: {measure: values}}."""
    table = {v: {m: np.array([0.5, 0.52, 0.51]) for m in heads.MEASURES} for v in heads.VARIANTS}
    for variant, measures in changes.items():
        table[variant] |= {measure: np.array(values) for measure, values in measures.items()}
    return table


def test_claims_follow_the_numbers(heads):
    from claims import tell

    alike = {claim.key: claim for claim in heads.judge(made_up(heads))}
    assert alike["softmax_alike"].held and alike["rela_accuracy"].held and alike["margin_accuracy"].held
    assert not alike["rela_sparse"].held and not alike["margin_parts"].held and not alike["rela_diverse"].held
    other = made_up(
        heads, softmax={"similarity": [-0.1, 0.1, 0.05]},
        margin={"similarity": [-0.3, -0.31, -0.32], "accuracy": [0.4] * 3},
        disagreement_position={"divergence": [0.9, 0.91, 0.92]}, disagreement_output={"similarity": [0.2, 0.3, 0.1]},
        rela={"sparsity": [0.7, 0.8, 0.75], "accuracy": [0.1, 0.2, 0.15], "divergence": [0.4, 0.41, 0.42]},
    )  # fmt: skip
    other = {claim.key: claim for claim in heads.judge(other)}
    assert other["margin_parts"].held and other["disagreement_position_parts"].held and other["rela_sparse"].held
    for key in ("softmax_alike", "margin_accuracy", "disagreement_output_parts", "rela_accuracy", "rela_diverse"):
        assert not other[key].held, key
    assert other["rela_sparse"].numbers == "sparsity 75.0 ± 5.0 % against 51.0 ± 1.0 % of softmax"
    assert "ReLA gives weights that are exactly zero.\n  It held: sparsity 75.0" in tell([other["rela_sparse"]], 3)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 1.2], [2.0, 2.2], -1),
        ([2.0, 2.2], [1.0, 1.2], 1),
        ([1.0, 2.0], [1.5, 2.5], 0),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.5, 0.5], [0.0, 0.0], 1),
    ],
)
def test_ranges_that_overlap_are_not_told_apart(a, b, expected):
    from claims import compare

    assert compare(np.array(a), np.array(b)) == expected


# --- pictures ------------------------------------------------------------------------------------------------------


def test_every_variant_has_a_colour_and_a_marker_in_the_picture(heads, figures, tmp_path):
    assert len(set(heads.COLOURS)) == len(set(heads.VARIANTS)) == len(heads.COLOURS) == len(heads.MARKERS)
    table = made_up(heads)
    for number, variant in enumerate(table):
        table[variant]["similarity"] = table[variant]["similarity"] + number
    heads.draw_similarity(figures, table, tmp_path / "similarity.png")
    check_picture(tmp_path / "similarity.png")
    for colour in heads.COLOURS:
        assert has_colour(tmp_path / "similarity.png", colour)


@pytest.mark.parametrize("zero", [True, False])
def test_exact_zeros_have_a_colour_of_their_own(heads, figures, tmp_path, zero):
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 24), dtype=np.uint8)
    maps = [np.random.default_rng(i).uniform(0.1, 1, (3, 2, 2, 3)) for i in range(2)]
    if zero:
        maps[1][1] = 0  # a layer that looks at nothing
    heads.draw_maps(figures, image, maps, 8, tmp_path / "maps.png")
    check_picture(tmp_path / "maps.png")
    share = (abs(colours(tmp_path / "maps.png").astype(int) - (0xD5, 0xDB, 0xE3)).max(-1) < 4).mean()
    assert (share > 0.02) == zero and (share < 0.002) != zero


def test_the_maps_are_the_rows_of_the_patch_in_the_middle(heads):
    model = heads.create_model(heads.MODEL, **heads.SHAPE, img_size=(8, 12), patch_size=4)
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 12)).astype(np.float32)
    rows = heads.central_rows(model, image)
    assert rows.shape == (4, 8, 2, 3)
    np.testing.assert_allclose(rows.sum((2, 3)), 1, rtol=1e-5)
    whole = heads.attention_maps(model, image)[2]
    np.testing.assert_array_equal(rows[2].reshape(8, 6), whole[0, :, 4])  # second row, second column
    assert entropy(whole).shape == (1, 8)


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1$"),
        ("--test-images 2", "--test-images must be at least 3, got 2$"),
        ("--penalty -1", "the weight of margin must be at least 0, got -1.0$"),
        ("--dataset imagenet", "data set must be shapes, mnist, .* or folder:PATH, got 'imagenet'$"),
        ("--train-images 10 --patch-size 5", r"patch_size \(5, 5\) must divide img_size \(24, 24\)$"),
        ("--train-images 10 --epochs 0", "epochs must be at least 1, got 0$"),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, tmp_path):
    line = fails("heads.py", *arguments.split(), cwd=tmp_path)
    assert re.match(f"heads: {sentence}", line), line


def test_ctrl_c_gets_one_line(monkeypatch, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sweep.sweep", interrupted)
    write_set(tmp_path / "data" / "mnist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["heads.py", *map(str, TINY)])
    with pytest.raises(SystemExit, match=r"^heads: stopped; the same command goes on with the runs that are missing$"):
        runpy.run_path(str(ROOT / "examples" / "heads.py"), run_name="__main__")


def test_without_matplotlib_no_pictures_are_drawn(heads, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "figures", None)
    heads.draw({}, [], None, None)
    assert "no pictures were drawn: they need matplotlib, pip install " in capsys.readouterr().out
