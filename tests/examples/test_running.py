"""``running.py``: how a program ends, and the options that several have."""

import argparse
import json

import pytest

from minivit.training import CheckpointError, NonFiniteLoss


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "name: stopped at once; what was saved before is as it was"),
        (MemoryError("1 byte"), r"name: the memory is full \(1 byte\); a smaller --micro-batch, or --recompute, needs"),
        (CheckpointError("no run"), "name: no run"),
        (FileNotFoundError("no file"), "name: no file"),
        (ValueError("wrong"), "name: wrong"),
    ],
)
def test_what_the_user_can_change_gets_one_line(error, line):
    from running import sentences

    with pytest.raises(SystemExit, match=f"^{line}"), sentences("name"):
        raise error


def test_a_mistake_of_the_program_is_shown_as_it_is():
    from running import sentences

    with pytest.raises(ZeroDivisionError), sentences("name"):
        raise ZeroDivisionError


def test_figures_are_printed_and_a_loss_that_is_no_number_ends_the_program(monkeypatch, capsys):
    from running import on_all_ranks

    monkeypatch.setattr("minivit.backend.reuse_freed_memory", lambda: False)
    on_all_ranks("name", lambda ranks: {"ranks": ranks.size})
    assert json.loads(capsys.readouterr().out) == {"ranks": 1}

    def diverges(ranks):
        raise NonFiniteLoss("the loss is nan", "the output")

    with pytest.raises(SystemExit, match=r"^name: the loss is nan$"):
        on_all_ranks("name", diverges)


def test_options_have_the_names_that_every_program_knows():
    from running import augmentation_options, data_options, machine_options, run_options

    parser = argparse.ArgumentParser()
    for options in (data_options, augmentation_options, machine_options):
        options(parser)
    run_options(parser, "runs/somewhere")
    args = parser.parse_args(["--img-size", "48", "--no-flip", "--workers", "2"])
    assert (args.dataset, args.size, args.flip, args.crop, args.workers) == ("shapes", 48, False, None, 2)
    assert (args.device, args.precision, args.seed, args.run_dir, args.resume) == ("cpu", "fp32", 0, None, False)
    assert "runs/somewhere" in parser.format_help()
