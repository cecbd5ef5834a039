"""``distill.py``: a teacher and its students from start to end, and what is concluded from figures that are made up."""

import json
import re

import numpy as np
import pytest

from minivit.distillation import FeatureDistillation, HardDistillation, SoftDistillation
from minivit.models import ResNet, VisionTransformer
from minivit.models.deit import VisionTransformerDistilled
from minivit.training import load_model
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run
from tests.examples.test_figures import has_colour

TINY = ("--dataset", "mnist", "--epochs", 1, "--teacher-epochs", 1, "--seeds", 2)


@pytest.fixture
def distill():
    import distill

    return distill


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run of all forms: its folder, and what it printed."""
    cwd = tmp_path_factory.mktemp("distill")
    write_set(cwd / "data" / "mnist")
    code, out, err = run("distill.py", *TINY, cwd=cwd)
    assert (code, err) == (0, "")
    return cwd, out


@pytest.mark.slow
def test_all_forms_are_trained_drawn_and_not_run_twice(taught, distill):
    cwd, out = taught
    figures, folder = json.loads(out.splitlines()[-1]), cwd / "runs" / "distill-mnist"
    said = {"example": "distill", "dataset": "mnist", "train_images": 30, "teacher": "resnet8", "seeds": 2}
    assert {name: figures[name] for name in said} == said
    assert figures["teacher_accuracy"] == load_best(folder / "resnet8-30-1")
    for form, (title, *_) in distill.FORMS.items():
        (row,) = [line for line in out.splitlines() if re.match(rf"{re.escape(title)}  +\d", line)]
        assert f"{100 * figures[f'{form}_accuracy']:.1f} ± {100 * figures[f'{form}_accuracy_sd']:.1f}" in row
    held = re.findall(r"^  (It held|It did not hold): ", out, re.MULTILINE)
    assert len(held) == sum(name.startswith("held_") for name in figures) == len(distill.FORMS) + 1
    check_picture(folder / "distill.png")
    model, meta = load_model(folder / "resnet8-30-1" / "last.npz")
    assert isinstance(model, ResNet) and meta["dataset"] == "mnist"

    before = {path: path.stat().st_mtime_ns for path in (folder / "figures").iterdir()}
    assert len(before) == 2 * len(distill.FORMS)
    code, again, err = run("distill.py", *TINY, cwd=cwd)
    assert (code, err) == (0, "")
    again = json.loads(again.splitlines()[-1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in figures.items() if k != "seconds"}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def load_best(folder):
    last = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][-1]
    return last["test_accuracy"]


@pytest.mark.parametrize(
    ("form", "student", "objective"),
    [
        ("alone", VisionTransformer, type(None)),
        ("soft", VisionTransformer, SoftDistillation),
        ("hard", VisionTransformer, HardDistillation),
        ("token", VisionTransformerDistilled, HardDistillation),
        ("soft_token", VisionTransformerDistilled, SoftDistillation),
        ("features", VisionTransformer, FeatureDistillation),
    ],
)
def test_each_form_has_its_student_and_its_objective(taught, distill, form, student, objective):
    cwd, _ = taught
    (path,) = [p for p in (cwd / "runs" / "distill-mnist" / "figures").iterdir() if is_job(p, form)]
    job = json.loads(path.read_text())["job"]
    assert set(distill.FORMS) == {"alone", "soft", "hard", "token", "soft_token", "features"}
    job |= {"data_dir": str(cwd / "data"), "teacher": str(cwd / job["teacher"])}
    lesson = distill.prepare(job | {"alpha": 0.3, "temperature": 2.0, "weight": 0.7})
    assert type(lesson.student) is student and type(lesson.objective) is objective
    if objective is SoftDistillation:
        assert (lesson.objective.alpha, lesson.objective.temperature) == (0.3, 2.0)
    if objective is FeatureDistillation:
        assert lesson.objective.weight == 0.7
    assert list(lesson.train_set.mean) == load_model(job["teacher"])[1]["mean"]


def is_job(path, form):
    job = json.loads(path.read_text())["job"]
    return (job["form"], job["seed"]) == (form, 1)


def made_up(distill, **changes):
    """All forms alike, but for the accuracies in ``changes``."""
    table = {form: {"accuracy": np.array([0.5, 0.52, 0.51]), "seconds": np.ones(3)} for form in distill.FORMS}
    for form, values in changes.items():
        table[form]["accuracy"] = np.array(values)
    return table


def test_claims_follow_the_numbers(distill):
    alike = {claim.key: claim.held for claim in distill.judge(made_up(distill), 0.6)}
    assert not any(alike.values()) and len(alike) == len(distill.FORMS) + 1
    table = made_up(distill, token=[0.7, 0.71, 0.72], soft=[0.3, 0.31, 0.32], hard=[0.6, 0.61, 0.62])
    other = {claim.key: claim.held for claim in distill.judge(table, 0.65)}
    assert {key for key, held in other.items() if held} == {
        "token_helps", "hard_helps", "token_over_hard", "beats_teacher",
    }  # fmt: skip
    assert not {c.key: c.held for c in distill.judge(table, 0.73)}["beats_teacher"]
    text = distill.as_text(table, 0.65)
    assert re.search(r"hard, with a token +71\.0 ± 1\.0 +\+20\.0", text) and re.search(r"soft +31\.0 ± 1\.0 +-20", text)


def test_the_picture_has_a_row_for_each_form_and_a_line_for_the_teacher(distill, tmp_path):
    import figures

    distill.draw(made_up(distill), 0.6, tmp_path / "distill.png")
    check_picture(tmp_path / "distill.png")
    for colour in (figures.TRAIN, figures.TEST, figures.WRONG):
        assert has_colour(tmp_path / "distill.png", colour)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1$"),
        ("--forms alone,cold", "--forms must be some of alone,soft,.*, got cold$"),
        ("--forms soft,hard", "--forms must be alone, which the others are compared with, and others; got"),
        ("--teacher resnet9", "--teacher must be one of resnet8, .*, or a file that is there; got resnet9$"),
        ("--augment rotate", "there is no augmentation 'rotate': choose from "),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, tmp_path):
    line = fails("distill.py", *arguments.split(), cwd=tmp_path)
    assert re.match(f"distill: {sentence}", line), line


def test_a_teacher_of_other_classes_gets_one_line(taught):
    cwd, _ = taught
    teacher = cwd / "runs" / "distill-mnist" / "resnet8-30-1" / "last.npz"
    line = fails("distill.py", "--teacher", teacher, "--train-images", 20, cwd=cwd)
    assert re.match(r"distill: the teacher knows the classes 0, 1, .*, not those of Dataset\('shapes', ", line), line
