"""The tool that tests the tests, on a few ops; ``python -m tests.mutation`` runs it on all."""

import json
from pathlib import Path

import pytest

from minivit.ops import activation, reduction
from tests import mutation


def figures(capsys):
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


def test_every_mutant_of_an_op_is_killed(capsys):
    assert mutation.main(["softmax", "div"]) == 0
    _, found = figures(capsys)
    assert found["mutants"] == found["killed"] > 60
    assert found["survived"] == found["equivalent"] == 0
    assert (found["ops"], found["examples"]) == (2, 2 * mutation.EXAMPLES)
    assert 0 < found["worst_gradcheck_error"] < 1e-7


def test_blind_rules_let_mutants_survive(capsys, monkeypatch):
    """A tool that cannot report a survivor would prove nothing."""
    monkeypatch.setattr(mutation, "check", lambda op, case: 0.0)
    assert mutation.main(["neg"]) == 1
    lines, found = figures(capsys)
    assert found["survived"] == found["mutants"] > 0
    assert ["survived, in neg:", "- lambda dy: -dy", "+ lambda dy: dy"] in [lines[i : i + 3] for i in range(len(lines))]


def test_excuses_must_be_needed(capsys, monkeypatch):
    monkeypatch.setitem(mutation.EQUIVALENT, "no reason", [("neg", "lambda dy: -dy", "lambda dy: dy")])
    assert mutation.main(["neg"]) == 1
    lines, found = figures(capsys)
    assert found["survived"] == 0
    assert "is listed as equivalent, but does not survive, in neg:" in lines


def test_mutants_change_one_line_on_the_way_back_too():
    made = {mutant.key for mutant in mutation.mutants(Path(activation.__file__), ["softmax", "relu"])}
    line = "dx -= y * dx.sum(axis=axis, keepdims=True)"
    for changed in (
        "dx += y * dx.sum(axis=axis, keepdims=True)",
        "dx -= y / dx.sum(axis=axis, keepdims=True)",
        "dx -= dx.sum(axis=axis, keepdims=True)",
        "dx -= y",
        "dx -= y * dx.mean(axis=axis, keepdims=True)",
        "dx -= y * dx.sum(axis=axis)",
        "dx -= y * dx",
        "pass",
    ):
        assert ("softmax", line, changed) in made
    assert ("softmax", "return dx", "return -dx") in made
    assert ("relu", "lambda dy: dy * (y > 0)", "lambda dy: dy * (y < 0)") in made


def test_helpers_are_tested_by_the_ops_that_use_them():
    users = {mutant.function: mutant.ops for mutant in mutation.mutants(Path(reduction.__file__), ["mean", "sum"])}
    assert users == {"sum": {"sum"}, "mean": {"mean"}, "_axes": {"sum", "mean"}, "_spread": {"sum", "mean"}}


def test_unknown_ops(capsys):
    with pytest.raises(SystemExit):
        mutation.main(["sofmax"])
    assert "no such op: sofmax" in capsys.readouterr().err
