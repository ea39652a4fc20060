"""What is in results/, and that the docs' tables are those."""

import json

import pytest

from decoupled.errors import UsageError
from experiments.accuracy import recorded


def study(network, accuracy, epochs=4):
    run = {
        "test_accuracy": accuracy,
        "test_loss": 1.0,
        "training_loss": 0.5,
        "validation": [0.1, accuracy],
        "cosine": None,
    }
    method = {
        "method": "backprop",
        "rates": {"optimizer.learning_rate": 0.1},
        "tried": [accuracy],
        "runs": [run, run],
        "costs": {"time": 1.0, "flops": 1.0, "memory": 1.0},
    }
    return {
        "command": f"python -m experiments.accuracy --network={network}",
        "network": network,
        "epochs": epochs,
        "seeds": 2,
        "device": {"kind": "cpu", "devices": 1, "cores": 2, "processor": ""},
        "versions": {"jax": "0.10.2"},
        "methods": [method],
    }


def test_a_study_takes_the_place_of_one_of_its_kind(tmp_path):
    path = tmp_path / "results" / "cifar10.json"
    for told in (study("vgg8b", 0.9), study("small_cnn", 0.5), study("small_cnn", 0.6)):
        recorded.keep(told, path)
    kept = json.loads(path.read_text(encoding="utf-8"))["studies"]
    assert [(s["network"], s["methods"][0]["runs"][0]["test_accuracy"]) for s in kept] == [
        ("small_cnn", 0.6),
        ("vgg8b", 0.9),
    ]
    assert all(s["commit"] for s in kept)


def test_a_document_has_the_tables_it_names(tmp_path):
    recorded.keep(study("small_cnn", 0.5321), tmp_path / "results" / "cifar10.json")
    text = "a\n<!-- results/cifar10.json: small_cnn, 4 epochs -->\nold\n<!-- end of results -->\nb\n"
    new = recorded.with_tables(text, tmp_path)
    assert "| backprop | 53.21 ± 0.00 |" in new
    assert "`python -m experiments.accuracy --network=small_cnn` on 2 CPU cores, jax 0.10.2" in new
    assert "old" not in new
    assert new.startswith("a\n")
    assert new.endswith("\nb\n")
    assert recorded.with_tables(new, tmp_path) == new
    with pytest.raises(UsageError, match="has no study of small_cnn, 5 epochs"):
        recorded.with_tables(text.replace("4 epochs", "5 epochs"), tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        recorded.with_tables(text.replace("cifar10", "cifar100"), tmp_path)


def test_documents_say_what_is_recorded():
    for path in recorded.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert recorded.with_tables(text) == text, f"python -m experiments.accuracy.recorded for {path}"
