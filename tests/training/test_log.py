"""The log file."""

import math

import pytest

from minivit.training import append_log, read_log
from minivit.training.log import cut_log


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    for step in range(4):
        append_log(path, {"step": step, "loss": 1 / 3 + step, "name": "Größe\u2028"})
    return path


def test_numbers_come_back_exactly(log):
    assert read_log(log) == [{"step": step, "loss": 1 / 3 + step, "name": "Größe\u2028"} for step in range(4)]


def test_what_json_lacks_becomes_null(log):
    append_log(log, {"loss": math.nan, "other": math.inf})
    assert read_log(log)[-1] == {"loss": None, "other": None}


@pytest.mark.parametrize("lines", [0, 2, 4, 9])
def test_cut(log, lines):
    before = read_log(log)
    cut_log(log, lines)
    assert read_log(log) == before[:lines]
    assert [p.name for p in log.parent.iterdir()] == ["log.jsonl"]


def test_cutting_a_missing_log_is_no_error(tmp_path):
    cut_log(tmp_path / "none", 3)
    assert not list(tmp_path.iterdir())


def test_a_half_written_last_line_is_passed_over_and_cut(log):
    with open(log, "a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in read_log(log)] == [0, 1, 2, 3]
    cut_log(log, 10)
    append_log(log, {"step": 4})
    assert [record["step"] for record in read_log(log)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("line", ["{'step': 1}", "[1, 2]", ""])
def test_a_foreign_line_is_named(log, line):
    with open(log, "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"line 5 of .*log.jsonl is not a JSON object"):
        read_log(log)
