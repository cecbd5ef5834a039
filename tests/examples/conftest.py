import json

import pytest

from tests.examples import ROOT, run


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run of ``train_vit.py`` on 200 small shapes: its folder, and what it printed."""
    cwd = tmp_path_factory.mktemp("trained")
    code, out, err = run(
        "train_vit.py", "--train-images", 200, "--size", 16, "--epochs", 1, "--batch-size", 20, cwd=cwd
    )
    assert (code, err) == (0, "")
    return cwd / json.loads(out.splitlines()[-1])["run_dir"], out
