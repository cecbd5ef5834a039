"""``memory.py``: what it prints and draws is what the report says."""

import re
import sys

import pytest

from minivit.analysis import MemoryReport
from minivit.analysis.memory import Kept
from minivit.models import create_model
from tests.examples import check_picture, fails, run, succeeds
from tests.examples.test_figures import has_colour

SMALL = ("--model", "vit_nano_patch7_28", "--batch", 3)


@pytest.fixture
def memory():
    import memory

    return memory


def report(*cells):
    """A report of rows (layer, op, bytes)."""
    rows = [Kept(layer, op, "x", (size // 4,), size, "activation") for layer, op, size in cells]
    return MemoryReport(rows, sum(size for *_, size in cells), 10**6)


def test_the_table_the_totals_and_the_figures(tmp_path, memory):
    code, out, err = run("memory.py", *SMALL, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "memory-vit_nano_patch7_28"
    assert [path.name for path in folder.iterdir()] == ["memory.png"]
    check_picture(folder / "memory.png")

    model = create_model("vit_nano_patch7_28")
    expected = memory.measure(model, 3, recompute=False)
    lines = out.splitlines()
    assert lines[: len(expected.activations) + 1] == str(expected).splitlines()
    for by in ("op", "block"):
        start = lines.index(f"by {by}") + 1
        for line, (name, size) in zip(lines[start:], expected.totals(by).items()):
            assert re.fullmatch(rf"{re.escape(name)} +{size / 1e6:,.2f} MB +{size / expected.kept:.1%}", line)


def test_the_last_line_has_both_ways(tmp_path, memory):
    plain = succeeds("memory.py", *SMALL, cwd=tmp_path)
    again = succeeds("memory.py", *SMALL, "--recompute", "--run-dir", tmp_path / "a" / "b", cwd=tmp_path)
    check_picture(tmp_path / "a" / "b" / "memory.png")
    assert (plain.pop("recompute"), again.pop("recompute")) == (False, True)
    assert (plain.pop("run_dir"), again.pop("run_dir")) == ("runs/memory-vit_nano_patch7_28", str(tmp_path / "a" / "b"))
    for figures_ in (plain, again):
        assert figures_.pop("peak_bytes") > figures_["kept_bytes"]
        assert figures_.pop("peak_bytes_recompute") > figures_["kept_bytes_recompute"]
    assert plain == again
    model = create_model("vit_nano_patch7_28")
    assert plain == {
        "example": "memory", "model": "vit_nano_patch7_28", "batch": 3, "parameters": model.num_parameters(),
        "kept_bytes": memory.measure(model, 3, False).kept,
        "kept_bytes_recompute": memory.measure(model, 3, True).kept,
        "traced_bytes": plain["traced_bytes"], "traced_bytes_recompute": plain["traced_bytes_recompute"],
    }  # fmt: skip
    for name in ("bytes", "bytes_recompute"):
        assert abs(plain[f"traced_{name}"] - plain[f"kept_{name}"]) < 100  # the loss and the labels
    assert plain["kept_bytes"] > 8 * plain["kept_bytes_recompute"]


def test_with_recompute_the_table_is_that_of_recomputed_blocks(tmp_path):
    tables = [run("memory.py", *SMALL, *more, cwd=tmp_path)[1] for more in ((), ("--recompute",))]
    rows = [[line.split()[:3] for line in out.partition("\n\n")[0].splitlines()] for out in tables]
    assert ["blocks.2", "recompute", "inputs"] in rows[1] and ["blocks.2", "recompute", "inputs"] not in rows[0]
    plain, again = ({row[1] for row in table} for table in rows)
    assert {"self_attention", "gelu"} <= plain and not {"self_attention", "gelu"} & again


def test_bars_are_the_embedding_the_blocks_and_the_head(memory):
    ours = report(
        ("patch_embed.proj", "linear", 100), ("blocks.0.norm1", "layer_norm", 30), ("blocks.0.mlp", "gelu", 40),
        ("blocks.1.attn", "self_attention", 50), ("blocks.1.attn", "scaled_dot_product_attention", 10),
        ("blocks.1.mlp.fc1", "linear", 60), ("blocks.1.mlp", "relu", 70), ("norm", "layer_norm", 20),
        ("(loss)", "cross_entropy", 8),
    )  # fmt: skip
    bars, stacks = memory.stack(ours)
    assert bars == ["embed", "0", "1", "head"]
    assert {kind: sizes.tolist() for kind, sizes in stacks.items()} == {
        "linear": [100, 0, 60, 0], "attention": [0, 0, 60, 0], "gelu": [0, 40, 0, 0],
        "layer norm": [0, 30, 0, 20], "other": [0, 0, 70, 8],
    }  # fmt: skip
    assert sum(sizes.sum() for sizes in stacks.values()) == ours.kept


def test_a_share_that_cannot_be_seen_is_left_out(memory):
    bars, stacks = memory.stack(report(("blocks.0", "recompute", 10**6), ("head", "linear", 4000), ("a", "gelu", 40)))
    assert bars == ["0", "head"] and list(stacks) == ["input of a block"]


@pytest.mark.parametrize("depth", [1, 12, 40])
def test_the_picture(memory, tmp_path, depth):
    plain = report(("patch_embed", "linear", 10**6), *((f"blocks.{i}", "gelu", 10**7) for i in range(depth)))
    again = report(("patch_embed", "linear", 10**6), *((f"blocks.{i}", "recompute", 10**6) for i in range(depth)))
    memory.draw(plain, again, tmp_path / "memory.png")
    check_picture(tmp_path / "memory.png")
    for kind, colour in memory.COLOURS.items():
        shown = kind in ("linear", "gelu", "input of a block")
        if shown or kind == "attention":
            assert has_colour(tmp_path / "memory.png", colour) == shown, kind


def test_without_matplotlib_there_is_no_picture_and_all_else(memory, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "figures", None)
    printed = memory.main([*map(str, SMALL), "--run-dir", str(tmp_path)])
    assert "no picture was drawn: it needs matplotlib" in capsys.readouterr().out
    assert printed["kept_bytes"] > 0 and list(tmp_path.iterdir()) == []


def test_what_cannot_be_gets_a_sentence(tmp_path):
    assert fails("memory.py", "--batch", 0, cwd=tmp_path) == "memory: --batch must be at least 1, got 0"
    assert fails("memory.py", "--model", "vit_nana", cwd=tmp_path).startswith("memory: there is no model 'vit_nana'")
    (tmp_path / "file").write_text("")
    assert fails("memory.py", *SMALL, "--run-dir", tmp_path / "file", cwd=tmp_path).startswith("memory: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_sizes_are_in_millions_of_bytes(memory):
    assert memory.mega(1_234_567_890) == "1,234.57 MB"
    assert memory.table("op", report(("a", "gelu", 750_000), ("b", "linear", 250_000))).splitlines() == [
        "by op",
        "gelu         0.75 MB   75.0%",
        "linear       0.25 MB   25.0%",
    ]


def test_one_image_more_costs_its_patches_and_the_input_of_each_block(memory):
    model = create_model("vit_nano_patch7_28", global_pool="avg")
    two, three = (memory.measure(model, batch, recompute=True).kept for batch in (2, 3))
    patches, inputs = 16 * 49 * 4, 4 * 17 * 64 * 4
    assert patches + inputs < three - two < patches + inputs + 1000
