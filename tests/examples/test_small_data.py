"""``small_data.py``: tiny networks on few images, what each sees, and what is concluded from made-up figures."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minivit.autograd import no_grad
from minivit.data import Dataset
from minivit.distillation import HardDistillation, SoftDistillation, Teacher
from minivit.nn import ShiftedPatchEmbed
from minivit.nn.lsa import LocalitySelfAttention
from minivit.training import load_model, save_checkpoint
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run
from tests.examples.test_figures import has_colour

TINY = ("--dataset", "mnist", "--sizes", "10,20", "--images-seen", 20, "--seeds", 2)
JOB = {"dataset": "noise", "epochs": 1, "images": 10, "images_seen": 25, "seed": 1, "kind": "vit"}
NOISE = Dataset(
    "noise",
    np.random.default_rng(0).integers(0, 256, (80, 3, 16, 16), np.uint8),
    np.arange(80) % 10,
    list("abcdefghij"),
)


@pytest.fixture
def small_data():
    import small_data

    return small_data


# --- from start to end ---------------------------------------------------------------------------------------------


def test_all_of_it_and_once_more_from_its_files(tmp_path, small_data, monkeypatch, capsys):
    write_set(tmp_path / "data" / "mnist", train=200)
    code, out, err = run("small_data.py", *TINY, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "small_data-mnist"
    teachers = [f"resnet8-{size}-20-{seed}" for size in (10, 20) for seed in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == ["figures", *teachers, "small_data.png"]
    check_picture(folder / "small_data.png")

    last = json.loads(out.splitlines()[-1])
    said = {"example": "small_data", "dataset": "mnist", "sizes": [10, 20], "images_seen": 20, "seeds": 2}
    assert {name: last[name] for name in said} == said
    for kind, title in small_data.KINDS.items():
        [row] = [line for line in out.splitlines() if re.match(rf"{title}  .*±", line)]
        means = [f"{100 * last[f'{kind}_accuracy_{size}']:.1f} ±" for size in (10, 20)]
        assert re.findall(r"[\d.]+ ±", row) == means
    held = re.findall(r"^  (It held|It did not hold): ", out, re.MULTILINE)
    assert len(held) == sum(name.startswith("held_") for name in last) == 8
    assert held.count("It held") == sum(value for name, value in last.items() if name.startswith("held_"))

    records = [json.loads(path.read_text()) for path in (folder / "figures").iterdir()]
    assert len(records) == 2 * 2 * len(small_data.KINDS)
    assert {record["figures"]["steps"] for record in records} == {1}
    taught = [record["job"] for record in records if record["job"]["kind"] == "distilled"]
    assert sorted(Path(job["teacher"]).name for job in taught) == teachers
    assert all(job["teacher"].endswith(f"resnet8-{job['images']}-20-{job['seed']}") for job in taught)
    for name in teachers:
        assert load_model(folder / name / "last.npz")[1]["model"] == "resnet8"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(small_data, "run", None)  # nothing is left to do
    again = small_data.main([*map(str, TINY)])
    assert again | {"seconds": 0} == last | {"seconds": 0}
    assert "It held" in capsys.readouterr().out or not held.count("It held")


# --- what is trained, on what --------------------------------------------------------------------------------------


@pytest.fixture
def watched(small_data, monkeypatch):
    """Trainings are not done; what they would have been is noted: (model, training set, objective, other options)."""
    seen = []

    def train(model, train_set, test_set, job, objective=None, **options):
        seen.append((model, train_set, objective, options))
        return SimpleNamespace(test_accuracy=0.5, steps=1, seconds=2.0)

    monkeypatch.setattr(small_data, "train", train)
    monkeypatch.setattr(small_data, "load_images", lambda job: (NOISE, NOISE))
    return seen


def test_the_images_of_a_number_are_among_those_of_the_next_and_the_seed_chooses(small_data, watched):
    def images(**changes):
        small_data.run(JOB | changes)
        return watched[-1][1]

    def different(data):
        return {image.tobytes() for image in data.images}

    sets = [images(images=size) for size in (10, 15, 25)]
    assert [len(data) for data in sets] == [25, 25, 25]  # as many steps
    assert [len(different(data)) for data in sets] == [10, 15, 25]
    assert different(sets[0]) < different(sets[1]) < different(sets[2])
    assert sorted(set(sets[0].labels.tolist())) == list(range(10))
    assert different(images(seed=2)) != different(sets[0])
    np.testing.assert_array_equal(images(kind="vit_small_data").images, sets[0].images)


def test_kinds_are_what_their_names_say(small_data, watched, tmp_path):
    for kind in ("cnn", "vit", "vit_small_data", "from_mae"):
        small_data.run(JOB | {"kind": kind, "model": "resnet8", "folder": str(tmp_path)})
    cnn, vit, local, autoencoder, start = (model for model, *_ in watched)
    assert type(cnn).__name__ == "ResNet" and watched[0][3]["folder"] == tmp_path
    assert type(vit.blocks[0].attn) is not LocalitySelfAttention is type(local.blocks[0].attn)
    assert type(vit.patch_embed) is not ShiftedPatchEmbed is type(local.patch_embed)
    assert type(autoencoder).__name__ == "MaskedAutoencoderViT" and type(start) is type(vit)
    assert [objective is None for _, _, objective, _ in watched] == [True, True, True, False, True]
    np.testing.assert_array_equal(watched[3][1].images, watched[4][1].images)
    assert watched[4][3]["folder"] is None


def test_pretraining_goes_on_from_the_vit_and_the_vit_from_there(small_data, watched, monkeypatch):
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    features, train = [], small_data.train

    def look(model, *args, **options):
        with no_grad():
            features.append(model.forward_features(images).numpy())
        model.blocks[0].attn.qkv.weight.data *= 1.5  # so much for training
        return train(model, *args, **options)

    monkeypatch.setattr(small_data, "train", look)
    small_data.run(JOB)
    assert small_data.run(JOB | {"kind": "from_mae"}) == {"accuracy": 0.5, "steps": 1, "seconds": 4.0}
    vit, autoencoder, pretrained = features
    np.testing.assert_allclose(autoencoder, vit, rtol=1e-5, atol=1e-5)
    assert abs(pretrained - vit).max() > 0.01
    _, painter, model = (model for model, *_ in watched)
    assert len(model.blocks) == len(painter.blocks) and model.pos_embed.requires_grad
    model.blocks[0].attn.qkv.weight.data /= 1.5
    with no_grad():
        np.testing.assert_allclose(painter.forward_features(images).numpy(), pretrained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("form", "kind"), [("hard", HardDistillation), ("soft", SoftDistillation)])
def test_the_teacher_is_the_network_in_the_folder(small_data, watched, tmp_path, form, kind):
    name, options = small_data.network(JOB | {"kind": "cnn", "model": "resnet8", "seed": 7}, NOISE)
    model = small_data.create_model(name, **options)
    save_checkpoint(tmp_path / "last.npz", model, meta={"model": name, "arguments": options})
    small_data.run(JOB | {"kind": "distilled", "teacher": str(tmp_path), "form": form})
    student, _, objective, _ = watched[0]
    assert type(objective) is kind and objective.alpha == 0.5
    assert repr(objective.teacher) == repr(Teacher(model))  # with a checksum of its weights
    assert student.dist_token is not None


# --- conclusions ---------------------------------------------------------------------------------------------------

SIZES = [100, 1000, 10_000]


def made_up(small_data, **gains):
    """A ViT that learns from more images, and others that are so many points above it at each size."""
    vit = np.array([[0.5], [0.7], [0.9]]) + np.array([-0.05, 0.0, 0.05])  # seeds differ by more than kinds do
    noise = np.array([-0.001, 0.0, 0.001])
    return {kind: vit + noise + np.array(gains.get(kind, [0, 0, 0]))[:, None] / 100 for kind in small_data.KINDS} | {
        "vit": vit
    }


def test_claims_follow_the_numbers(small_data):
    alike = small_data.judge(made_up(small_data), SIZES)
    assert [claim.held for claim in alike] == [False] * 8
    better = dict(cnn=[9, 5, 1], vit_small_data=[3, 1, 0], distilled=[0, 2, 4], from_mae=[-6, 1, 2])
    held = {claim.key: claim for claim in small_data.judge(made_up(small_data, **better), SIZES)}
    assert {key: claim.held for key, claim in held.items()} == {
        "cnn_ahead": True, "lead_shrinks": True, "vit_small_data_helps": True, "vit_small_data_helps_few": True,
        "distilled_helps": True, "distilled_helps_few": False, "from_mae_helps": False, "from_mae_helps_few": False,
    }  # fmt: skip
    assert held["cnn_ahead"].numbers == "59.0 ± 5.1 % against 50.0 ± 5.0 %, 9.0 ± 0.1 points between them"
    assert held["lead_shrinks"].numbers == "9.0 ± 0.1 points with 100 images, 1.0 ± 0.1 with 10,000"
    assert held["distilled_helps"].numbers == (
        "2.0 ± 0.1 points: 0.0 ± 0.1 with 100, 2.0 ± 0.1 with 1,000, 4.0 ± 0.1 with 10,000"
    )
    behind = small_data.judge(made_up(small_data, cnn=[-9, -5, -1]), SIZES)
    assert [claim.held for claim in behind[:2]] == [False, False]


def test_figures_come_into_the_row_of_their_number_and_the_column_of_their_seed(small_data):
    results = [
        ({"kind": kind, "images": size, "seed": seed}, {"accuracy": 100 * k + size + seed})
        for seed in range(2)
        for size in (20, 10)
        for k, kind in enumerate(small_data.KINDS)
    ]
    table = small_data.tabulate(results, "accuracy", [10, 20])
    assert table["cnn"].tolist() == [[10, 11], [20, 21]] and table["vit"].tolist() == [[110, 111], [120, 121]]


def test_every_kind_has_its_line_in_the_picture(small_data, tmp_path):
    gains = dict(cnn=[9, 5, 1], vit_small_data=[3, 1, -3], distilled=[-5, 2, 4], from_mae=[-9, -5, -8])
    small_data.draw(made_up(small_data, **gains), SIZES, tmp_path / "small_data.png")
    check_picture(tmp_path / "small_data.png")
    for colour in small_data.COLOURS.values():
        assert has_colour(tmp_path / "small_data.png", colour)


def test_without_matplotlib_no_picture_is_drawn(small_data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "figures", None)
    small_data.draw({}, [], None)
    assert "no picture was drawn: it needs matplotlib, pip install " in capsys.readouterr().out


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--sizes many", "--sizes must be numbers, such as 100,300,1000, got 'many'"),
        ("--sizes 100", "--sizes must be two numbers or more, from the smallest to the largest, got '100'"),
        ("--sizes 300,100", "--sizes must be two numbers or more, from the smallest to the largest, got '300,100'"),
        ("--sizes 10,50 --images-seen 40", "--images-seen must be at least 50, the largest of --sizes, got 40"),
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1"),
    ],
)
def test_arguments_that_cannot_be_get_a_sentence(small_data, arguments, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        small_data.parse(arguments.split())


def test_more_images_than_the_rarest_class_has_get_a_line(small_data, tmp_path):
    data = Dataset("blank", np.zeros((8, 1, 1, 1), np.uint8), np.array([0] * 5 + [1] * 3), ["a", "b"])
    small_data.check_sizes([2, 6], data)
    for sizes in ([1, 6], [2, 7]):
        with pytest.raises(ValueError, match=rf"^--sizes must be 2 to 6 for .*; got {sizes[0]},{sizes[1]}$"):
            small_data.check_sizes(sizes, data)
    write_set(tmp_path / "data" / "mnist", train=200)
    line = fails("small_data.py", "--dataset", "mnist", cwd=tmp_path)
    assert re.match(
        r"small_data: --sizes must be 10 to \d+0 for Dataset\('mnist', .*; got 100,300,1000,3000,10000$", line
    )
