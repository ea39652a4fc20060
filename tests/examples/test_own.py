"""Someone's own network, data, estimator, loss and metric, from a folder that is not the repository's."""

import json
import shutil
import sys

import numpy as np
import pytest

import decoupled
from decoupled.analysis.page import analyse
from decoupled.training import Workdir, read_metrics, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.predict import load_predictor
from decoupled.training.saved_config import read_config
from tests.commands import ROOT, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere") / "mine"
    shutil.copytree(ROOT / "examples" / "own", folder)
    done = run(
        [sys.executable, ROOT / "train.py", "--config=config.py", "--workdir=run"]
        + ["--config.epochs=3", "--config.model.options.width=24"]
        + ["--config.optimizer.schedule=constant", "--config.estimator_optimizer.schedule=constant"],
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def there(trained, monkeypatch):
    """In the folder that the command was run in."""
    monkeypatch.chdir(trained.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield trained
    sys.modules.pop("rings", None)


def test_it_is_trained_without_an_edit(trained):
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    assert (summary["dataset"], summary["model"]) == ("rings:data", "rings:network")
    assert (summary["metric"], summary["larger_is_better"]) == ("worst_error", False)
    assert summary["loss"] == "rings:huber"
    assert "test_accuracy" not in summary
    assert summary["modules"][0]["output"] == [24]
    # The mean distance itself, for all points, is off by 0.5.
    assert summary["test_worst_error"] < 0.2
    lines = [line for line in read_metrics(trained) if line["kind"] == "validation"]
    best = min(lines, key=lambda line: line["worst_error"])
    assert summary["best_validation"] == {"worst_error": best["worst_error"], "step": best["step"]}
    assert "smaller is better" in (trained / "report.html").read_text(encoding="utf-8")


def test_it_predicts_from_its_workdir(there):
    summary = json.loads((there / "summary.json").read_text(encoding="utf-8"))
    predict = load_predictor("run")
    points = np.random.default_rng(1).normal(size=(500, 2)).astype(np.float32)
    told = np.abs(np.asarray(predict(points))[:, 0] - np.linalg.norm(points, axis=1)).mean()
    assert told == pytest.approx(summary["test_worst_error"], abs=1e-5)
    with pytest.raises(decoupled.UsageError, match=r"takes float32 of shape \(examples, 2\)"):
        predict(np.ones((3, 2), np.uint8))


@pytest.mark.slow
def test_its_figures_are_drawn(there):
    """But for those of classes, of which it has none."""
    text = analyse("run", examples=100).read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert "Alignment" in text


def test_it_is_trained_further_as_its_config_was_left(there):
    config = read_config(there / "config.json")
    config.epochs = 4
    with Workdir("run", config.to_dict()) as workdir:
        summary = train_and_evaluate(build(config), workdir)
    assert (summary["resumed_at"], summary["steps"]) == (108, 144)
    assert summary["best_validation"]["step"] in (36, 72, 108, 144)
