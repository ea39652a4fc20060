"""The accuracy study, small: trials, choice, table and page; nothing is run twice."""

import json

import pytest

from configs import digits
from experiments.accuracy import __main__, costs, page, runs, settings, study


@pytest.fixture
def small(monkeypatch):
    """Digits in one epoch, one run after the other; counts the runs that are really made."""
    made = []

    def train(job, workdir):
        made.append(workdir.path)
        return train_and_evaluate(job, workdir)

    train_and_evaluate = runs.train_and_evaluate
    monkeypatch.setattr(runs, "train_and_evaluate", train)
    monkeypatch.setattr(study, "run_all", lambda folder, wanted, _: [runs.run(folder, f) for f in wanted])
    monkeypatch.setattr(study, "trials", lambda *of: settings.trials(*of)[:2])
    tiny = {"model.mlp.depth": 1, "model.mlp.width": 8}
    monkeypatch.setitem(settings.NETWORKS, "mlp", settings.Network(digits, tiny, "mlp"))
    return made


@pytest.mark.slow
def test_a_study_writes_its_table_and_its_page_and_keeps_its_runs(small, tmp_path, capsys):
    arguments = ["--methods=probe", "--epochs=1", "--seeds=2", "--turns=1", f"--out={tmp_path}"]
    for _ in range(2):
        __main__.main(arguments)
    # Two trials and two seeds of two methods; one of the seeds is that of the trials.
    assert len(small) == len(set(small)) == 2 * (2 + 1)
    study_told = json.loads((tmp_path / "mlp-1.json").read_text(encoding="utf-8"))
    assert study_told["versions"].keys() >= {"jax", "numpy"}
    told = study_told["methods"]
    assert [found["method"] for found in told] == ["backprop", "probe"]
    for found in told:
        best = found["tried"].index(max(found["tried"]))
        assert found["rates"] == settings.trials("mlp", found["method"])[best]
        assert len(found["runs"]) == 2
    assert told[0]["costs"]["flops"] == 1
    header, _, first, second, _ = capsys.readouterr().out.splitlines()[-5:]
    assert header.count("|") == first.count("|") == second.count("|") == len(page.HEADER) + 1
    assert "never" in first
    html = (tmp_path / "mlp-1.html").read_text(encoding="utf-8")
    assert "<svg" in html
    assert "python -m experiments.accuracy --methods=probe" in html


def test_the_first_epoch_at_an_accuracy_is_told():
    curves = ([0.5, 0.86, 0.84], [0.9, 0.9, 0.9], [0.1, 0.2, 0.85])
    found = study.Finding(
        "probe", {}, [], [runs.Run(0.9, 0.3, 0.2, curve, None) for curve in curves], costs.Costs(1, 1, 1)
    )
    assert found.epochs_to(0.85) == 2
    assert found.epochs_to(0.88) == float("inf")


def test_every_method_is_given_the_same_number_of_trials():
    each = [(network, method) for network in settings.NETWORKS for method in settings.METHODS]
    assert len({len(settings.trials(*of)) for of in each}) == 1


def test_an_unknown_method_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["--methods=nothing"])
    assert "choose from backprop" in capsys.readouterr().err
