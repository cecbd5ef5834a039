"""``mae_few_labels.py``: three ways to the same few labels, compared over seeds; what is printed, drawn and kept."""

import json

import numpy as np
import pytest

from minivit.training import load_checkpoint
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run


@pytest.mark.slow
def test_the_comparison_from_start_to_end_and_once_more_from_its_files(tmp_path):
    write_set(tmp_path / "data" / "mnist")
    arguments = ("--dataset", "mnist", "--labels", 10, "--pretrain-epochs", 1, "--blr", 0.004)
    arguments += ("--visits", 4, "--seeds", 2, "--crop", 0, "--augment", "mixup=.4")
    code, out, _ = run("mae_few_labels.py", *arguments, cwd=tmp_path)
    assert code == 0, out
    figures, folder = json.loads(out.splitlines()[-1]), tmp_path / "runs" / "few-labels-mnist"
    for variant in ("pretrained", "scratch", "time"):
        assert len(figures[f"{variant}_accuracy"]) == len(figures[f"{variant}_seconds"]) == 2
    assert {"better_than_scratch", "better_than_time"} <= figures.keys()
    check_picture(folder / "few_labels.png")
    assert load_checkpoint(folder / "pretrained-mae_nano_patch4_28-1-0.004-False-0" / "last.npz").meta["model"]

    jobs = [json.loads(path.read_text()) for path in (folder / "figures").glob("*.json")]
    names = ("pretrain", "pretrained", "scratch", "time")
    parts = {part: [j for j in jobs if j["job"]["part"] == part] for part in names}
    assert [len(found) for found in parts.values()] == [2, 2, 2, 2]
    assert {(j["job"]["crop"], j["job"]["augment"]) for j in parts["scratch"] + parts["time"]} == {(0, "mixup=.4")}
    steps = [{j["figures"]["steps"] for j in parts[part]} for part in ("pretrained", "scratch")]
    assert steps[0] == steps[1]
    assert all(j["job"]["visits"] > 4 for j in parts["time"])  # more steps in the time of both

    again = json.loads(run("mae_few_labels.py", *arguments, cwd=tmp_path)[1].splitlines()[-1])
    figures.pop("seconds"), again.pop("seconds")
    assert again == figures


@pytest.mark.parametrize(("gain", "held"), [(0.05, True), (-0.05, False), (0.0, False)])
def test_a_claim_holds_where_the_numbers_say_so(gain, held):
    from mae_few_labels import as_text, judge

    seeds = np.array([0.90, 0.91, 0.92])
    others = {name: {"accuracy": seeds, "steps": np.ones(3), "seconds": np.ones(3)} for name in ("scratch", "time")}
    table = {"pretrained": {"accuracy": seeds + gain, "steps": np.ones(3), "seconds": np.ones(3)}} | others
    assert [claim.held for claim in judge(table)] == [held, held]
    assert f"{100 * (0.91 + gain):.1f} ± 1.0" in as_text(table)


def test_a_change_that_there_is_not_gets_a_sentence_at_once(tmp_path):
    write_set(tmp_path / "data" / "mnist")
    line = fails("mae_few_labels.py", "--dataset", "mnist", "--augment", "mixdown", cwd=tmp_path)
    assert "mixdown" in line and not (tmp_path / "runs").exists()


def test_too_few_visits_get_a_sentence(tmp_path):
    assert "--visits must be 4 or more, --seeds 1 or more, got 3 and 1" in fails(
        "mae_few_labels.py", "--visits", 3, "--seeds", 1, cwd=tmp_path
    )
