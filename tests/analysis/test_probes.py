"""Probes on points for which the best linear classifier is known."""

import numpy as np
import pytest

from decoupled.analysis.probes import Labelled, probe_accuracies, probe_accuracy

RNG = np.random.default_rng(0)


def classes_in_a_row(n=60):
    """Three classes, told apart by the first of four units; the others are noise."""
    y = np.arange(n) % 3
    h = RNG.normal(size=(n, 2, 2)).astype(np.float32)
    h[:, 0, 0] = 10 * y + RNG.uniform(-1, 1, n)
    return h, y


def test_accuracy_is_that_on_examples_held_out():
    h, y = classes_in_a_row()
    held_out, labels = classes_in_a_row(12)
    assert probe_accuracy(Labelled(h, y), Labelled(held_out, labels)) == 1
    wrong = np.where(np.arange(12) < 3, (labels + 1) % 3, labels)
    assert probe_accuracy(Labelled(h, y), Labelled(held_out, wrong)) == pytest.approx(9 / 12)


def test_units_are_standardised():
    h, y = classes_in_a_row()
    faint = h * np.array([[1e-6, 1], [1, 1]], np.float32) + 3
    assert probe_accuracy(Labelled(faint, y), Labelled(faint, y)) == 1


def test_a_probe_is_linear():
    exclusive_or = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    points = Labelled(exclusive_or, np.array([0, 1, 1, 0]))
    assert probe_accuracy(points, points) <= 0.75


def test_probes_of_all_layers():
    h, y = classes_in_a_row()
    held_out, labels = classes_in_a_row(90)
    found = probe_accuracies([h, np.zeros((60, 1))], y, [held_out, np.zeros((90, 1))], labels)
    assert found == [1, pytest.approx(1 / 3)]
