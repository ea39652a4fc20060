"""`python -m decoupled.analysis`: the figures of a finished run."""

import json
import sys

import pytest

from configs import digits
from decoupled.analysis.page import analyse
from decoupled.errors import DataError
from decoupled.training import Workdir, train_and_evaluate
from decoupled.training.builder import build
from tests.commands import run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    config = digits.get_config()
    config.model.mlp.depth, config.model.mlp.width, config.epochs = 2, 8, 1
    path = tmp_path_factory.mktemp("analysis") / "run"
    with Workdir(path, config.to_dict()) as opened:
        train_and_evaluate(build(config), opened)
    # As if two devices had shared each batch, which ends in the same network.
    saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
    saved["parallel"] |= {"mode": "mesh", "devices": 2}
    (path / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    return path


def test_every_figure_is_drawn(workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    page = analyse(f"~/{workdir.name}", examples=100).read_text(encoding="utf-8")
    for title in ("Representational dissimilarity", "Linear probes", "CKA of", "Alignment of"):
        assert title in page
    assert page.count("<svg") == 4
    assert "loss_shaped on digits" in page


def test_a_run_that_did_not_finish_has_no_network(workdir, tmp_path):
    config = (workdir / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(DataError, match="holds no trained network"):
        analyse(tmp_path, examples=100)


def test_a_folder_without_a_run_is_a_usage_error(tmp_path):
    done = run([sys.executable, "-m", "decoupled.analysis", str(tmp_path)])
    assert done.returncode == 2
    assert (
        done.stderr == f"analysis: {tmp_path} holds no run of train.py: cannot read {tmp_path}/config.json:"
        " No such file or directory\n"
    )
