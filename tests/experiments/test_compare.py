"""`make compare`, cut short: its files, its table against the estimators, and the published orderings."""

import html
import json
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import decoupled
from configs import compare as compare_config
from configs import digits
from decoupled import estimators
from decoupled.errors import UsageError
from decoupled.training import Workdir, train_and_evaluate
from decoupled.training.methods import METHODS
from experiments import compare
from experiments.compare_page import cosines_figure
from experiments.forms import form_of
from tests.commands import run

pytestmark = pytest.mark.usefixtures("undrawn")


def command(*arguments):
    return run([sys.executable, "-m", "experiments.compare", *arguments])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    chosen = "direct_feedback_alignment,noise"
    options = ["--config.seeds=2", "--config.epochs=6", "--config.timing_turns=0"]
    options += ["--config.model.mlp.depth=2"]
    done = command(f"--out={out}", f"--config.methods={chosen}", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    return (
        {row["name"]: row for row in result["rows"]},
        (out / "compare.html").read_text(encoding="utf-8"),
        result,
    )


@pytest.mark.slow
def test_published_orderings_come_out(compared):
    rows, _, _ = compared
    accuracy = {name: statistics.mean(row["test_accuracy"]) for name, row in rows.items()}
    # The table of docs/methods.md, which a test reads too, has more of them.
    assert accuracy["backprop"] > accuracy["direct_feedback_alignment"] > accuracy["noise"] + 0.05
    cosine = {name: statistics.mean(row["cosine"]) for name, row in rows.items()}
    assert cosine["backprop"] == pytest.approx(1, abs=1e-4)
    assert 1 > cosine["direct_feedback_alignment"] > 0.02 > abs(cosine["noise"])


@pytest.mark.slow
def test_the_table_says_what_each_method_is(compared):
    rows, page, result = compared
    locks = {name: tuple(row["locks"].values()) for name, row in rows.items()}
    assert locks["backprop"] == (True, True, True)
    assert locks["direct_feedback_alignment"] == (True, True, False)
    assert locks["noise"] == (True, False, False)
    assert [name for name, row in rows.items() if row["direct_error"]] == ["direct_feedback_alignment"]
    assert not any(row["trained"] or row["target"] or row["diverged"] for row in rows.values())
    assert all(row["step_time"] is None and len(row["cosine"]) == 2 for row in rows.values())
    assert result["config"]["epochs"] == 6
    for name, row in rows.items():
        assert len(row["test_accuracy"]) == result["seeds"] == 2
        form = html.escape(row["form"])
        assert f"<td>{name}</td><td>{form}</td>" in page
    assert page.count("<svg") == 2


def test_every_row_has_a_form_of_its_own():
    config = compare.sized(compare_config.get_config())
    forms = {name: form_of(compare.config_of(config, row)) for name, row in compare.all_rows().items()}
    assert len({*forms.values()}) == len(forms)
    assert forms.keys().isdisjoint(forms.values())  # the name of a method that has none
    # What each is, docs/methods.md says too: tests/test_docs.py.


def test_every_method_has_a_row():
    rows = compare.all_rows()
    assert METHODS.keys() - rows.keys() == {"convolutional"}
    assert next(iter(rows)) == "backprop"
    config = compare.sized(compare_config.get_config())
    for name in ("probe", "mean_teacher", "linear", "linear_unconditional", "sign_symmetric"):
        told = compare.declared(config, rows[name], compare.job_of(config, rows[name]).learner)
        assert told["trained"] == (name != "sign_symmetric")
        assert told["estimate_sees_labels"] == (name in ("probe", "linear"))
        assert told["fit_sees_labels"] == (name in ("probe", "mean_teacher", "linear"))
        own_loss = {"probe": "own loss", "mean_teacher": "own loss", "sign_symmetric": None}
        assert told["target"] == own_loss.get(name, "gradient from above")


@pytest.mark.slow
def test_step_times_are_relative_to_backprop():
    config = compare.sized(compare_config.get_config())
    config.model.mlp.depth = 1
    rows = compare.all_rows()
    jobs = {name: compare.job_of(config, rows[name]) for name in ("backprop", "noise")}
    ratios = compare.step_times(jobs, turns=1)
    assert ratios["backprop"] == 1.0
    assert ratios["noise"] > 0


@pytest.mark.slow
def test_a_seed_gives_what_train_gives(tmp_path):
    config = compare.sized(compare_config.get_config())
    config.epochs = 2
    config.model.mlp.depth = 1
    config.validation_examples = 0
    job = compare.job_of(config, {"estimator.name": "linear"})._replace(seed=1)
    result = compare.train(job, seeds=2, vectorised=True)
    assert result["validation_accuracy"] == []
    with Workdir(tmp_path / "run", {}) as workdir:
        summary = train_and_evaluate(job, workdir)
    assert result["test_accuracy"][1] == pytest.approx(summary["test_accuracy"], abs=0.012)
    assert result["test_accuracy"][0] != result["test_accuracy"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.methods=prob"], "config.methods names 'prob': choose from backprop"),
        (["--config.epoch=3"], "did you mean"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    done = command(f"--out={tmp_path}", *arguments)
    assert done.returncode == 2
    assert message.lower() in done.stderr.lower()
    assert done.stderr.startswith("compare: ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (compare_config, {"dataset": "procedural"}, "no default for the data set 'procedural': set it"),
        (compare_config, {"seeds": 0}, "config.seeds is 0: choose a whole number from 1 to"),
        (compare_config, {"boundaries": "none", "methods": "noise"}, "leaves nothing to compare"),
        (digits, {}, "has no methods, seeds, timing_turns: use configs/compare.py"),
    ],
)
def test_a_config_that_cannot_be_compared_is_refused(config, changes, message, tmp_path):
    config = config.get_config()
    config.update(changes)
    with pytest.raises(UsageError, match=message):
        compare.compare(config, tmp_path)


@pytest.mark.parametrize(("name", "learns"), [("backprop", True), ("noise", False)])
def test_below_noise_nothing_is_learnt(name, learns):
    """With the last layer as it was drawn, all learning is below the boundaries."""
    x, y = load_digits(return_X_y=True)
    x = jnp.asarray(x / 16, jnp.float32)
    estimator = getattr(estimators, name)()
    modules = decoupled.cut(decoupled.models.mlp(2, 64, 10, norm="batch"), [0, 1])
    learner = decoupled.make_learner(
        modules,
        [estimator] * 2,
        decoupled.losses.softmax_cross_entropy,
        optax.adam(3e-3),
        optax.adam(3e-3),
        update_probability=[1.0, 1.0, 0.0],
    )
    state = learner.init(jax.random.key(0), x, y)
    update = jax.jit(learner.update)
    for i in range(60):
        state, metrics = update(state, x, y, jax.random.key(i))
    accuracy = float(np.mean(metrics.output.argmax(-1) == y))
    assert accuracy > 0.9 if learns else accuracy < 0.25


@pytest.mark.parametrize(("depth", "numbers"), [(3, 3 * 2), (100, 0)])
def test_many_boundaries_can_be_read(depth, numbers):
    rows = [{"name": name, "cosine": [0.5] * depth} for name in ("backprop", "noise")]
    axes = cosines_figure(rows, [f"hidden_{i}" for i in range(depth)]).axes[0]
    assert len(axes.texts) == numbers
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert (labels[0], labels[-1], len(labels)) == ("hidden_0", f"hidden_{depth - 1}", min(depth, 6))
