"""`decoupled.fit`: against steps taken by hand and a run of train.py, stopped and gone on, and misused."""

import itertools
import signal
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoupled
from configs import digits
from decoupled import estimators, from_functions, losses, make_learner
from decoupled.data import Split
from decoupled.data.augment import AS_THEY_ARE
from decoupled.training import NoWorkdir, inner_loop, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.parallel import one_device
from tests.helpers import mlp_modules

EXAMPLES, BATCH = 11, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(EXAMPLES, 5)).astype(np.float32)
Y = RNG.integers(3, size=EXAMPLES)
ADAM = optax.adam(1e-2)


def dense(name, inputs, outputs, of=lambda h: h):
    """A layer that takes what `of` gives of its input."""

    def init(key, h):
        return {"W": jax.random.normal(key, (inputs, outputs)) / inputs**0.5}

    return from_functions(init, lambda params, h: jnp.tanh(of(h) @ params["W"]), name)


def classifier(depth=1, estimator=None, **options):
    modules = [dense(f"layer_{i}", 5 if i == 0 else 6, 6) for i in range(depth)] + [dense("output", 6, 3)]
    boundaries = [estimator or estimators.local_loss(3)] * depth
    return make_learner(modules, boundaries, losses.softmax_cross_entropy, ADAM, ADAM, **options)


def by_hand(learner, data, steps, seed=0):
    """The state after so many steps, from the definition of their order and keys."""
    x, y, weight = (*data, None)[:3]
    count = len(jax.tree.leaves(x)[0])
    init_key, key = jax.random.split(jax.random.key(seed))
    state = jax.jit(learner.init)(init_key, *jax.tree.map(lambda leaf: leaf[:BATCH], (x, y)))
    update = jax.jit(learner.update)
    orders = (np.random.default_rng((seed, epoch)).permutation(count) for epoch in itertools.count(1))
    starts = range(0, count - BATCH + 1, BATCH)
    batches = (order[start : start + BATCH] for order in orders for start in starts)
    for i, rows in enumerate(itertools.islice(batches, steps)):
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (x, y, weight))
        own_key = jax.random.split(jax.random.fold_in(key, i))[1]
        state, _ = update(state, *batch[:2], own_key, batch[2])
    return state


def quiet(learner, data, epochs=2, batch_size=BATCH, **options):
    return decoupled.fit(learner, data, epochs=epochs, batch_size=batch_size, progress=False, **options)


def two_inputs():
    """A dict in, nothing to compare with: the output is to be small."""
    first = dense("first", 5, 6, lambda h: h["a"] * h["on"][:, None])
    last = dense("output", 6, 2)
    spec = estimators.linear()
    learner = make_learner([first, last], [spec], lambda output, y: (output**2).sum(-1), ADAM, ADAM)
    return learner, ({"a": X, "on": Y > 0}, None)


def tokens():
    """Labels and weights are a token's; what has weight 0 is no number."""
    x, y = RNG.normal(size=(EXAMPLES, 3, 5)).astype(np.float32), RNG.integers(3, size=(EXAMPLES, 3))
    weight = (RNG.random((EXAMPLES, 3)) > 0.3).astype(np.float32)
    x[weight == 0] = np.nan
    return classifier(batch_axes=2), (x, y, weight)


def stacked():
    modules = [dense("first", 5, 6), *[dense("hidden", 6, 6)] * 2, dense("output", 6, 3)]
    links = decoupled.stack_equal(modules)
    assert any(isinstance(link, decoupled.Stack) for link in links)
    boundaries = [estimators.linear()] * (len(links) - 1)
    return make_learner(links, boundaries, losses.softmax_cross_entropy, ADAM, ADAM), (X, Y)


def waiting_in_parts():
    return classifier(2, estimators.backprop(), microbatches=2), (X, Y)


@pytest.mark.parametrize(
    ("case", "on_device"),
    [(two_inputs, True), (tokens, False), (stacked, True), (waiting_in_parts, False)],
)
def test_it_takes_the_steps_that_are_meant(case, on_device):
    learner, data = case()
    if on_device:
        data = jax.tree.map(jnp.asarray, data)
    result = quiet(learner, data)
    chex.assert_trees_all_close(result.state, by_hand(learner, data, 4), rtol=1e-5, atol=1e-6)
    assert [entry["epoch"] for entry in result.history] == [1, 2]
    numbers = jax.tree.leaves(result.history)
    assert {type(number) for number in numbers} <= {int, float}
    assert np.isfinite(numbers).all()


class Listener(NoWorkdir):
    """Keeps what a run of train.py says and ends with."""

    def __init__(self):
        self.logged = []

    def log(self, kind, step, values):
        self.logged.append((kind, values))

    def save(self, state):
        self.state = state


def test_a_run_of_train_is_the_same_to_the_bit():
    config = digits.get_config()
    config.update_from_flattened_dict({"epochs": 2, "model.mlp.depth": 1, "model.norm": "none"})
    job = build(config)

    def seen(split):
        return Split(np.asarray(job.preprocess.evaluate(split.images)), split.labels)

    train, held = seen(job.dataset.train), seen(job.validation)
    job = job._replace(
        dataset=job.dataset._replace(train=train, test=seen(job.dataset.test)),
        validation=held,
        preprocess=AS_THEY_ARE,
        execution=one_device(job.learner, AS_THEY_ARE, job.metric),
        log_every=10**6,
    )
    run = Listener()
    train_and_evaluate(job, run)
    options = {"epochs": 2, "batch_size": config.batch_size, "seed": config.seed, "progress": False}
    result = decoupled.fit(job.learner, train, validation=held, **options)
    chex.assert_trees_all_equal(result.state, run.state)
    trained = [values for kind, values in run.logged if kind == "train"]
    for entry, values in zip(result.history, trained, strict=True):
        assert entry.items() >= {name: values[name] for name in ("loss", "accuracy", "r2")}.items()
    evaluated = [values for kind, values in run.logged if kind == "validation"]
    for entry, values in zip(result.history, evaluated, strict=True):
        assert entry["validation_loss"] == pytest.approx(values["loss"], rel=1e-6)
        assert entry["validation_accuracy"] == values["accuracy"]


def test_means_are_weighted_and_evaluation_leaves_nothing_out():
    """At a rate of 0 all that is seen is what the network is at the start."""
    still = optax.sgd(0.0)
    learner = make_learner(
        [dense("first", 5, 6), dense("output", 6, 3)],
        [estimators.linear()],
        losses.softmax_cross_entropy,
        still,
        still,
    )
    weight = np.array([2, 0, 1, 0.5, 3, 0, 1, 1] + [1.0] * 3, np.float32)
    x = np.where(weight[:, None] == 0, np.nan, X)
    first = slice(8)
    result = quiet(learner, (x[first], Y[first], weight[first]), validation=(x, Y, weight), epochs=1)
    assert np.isnan(result.predict(x)[1]).all()
    log_p = np.array(jax.nn.log_softmax(result.predict(np.nan_to_num(x))), np.float64)
    each, right = -log_p[np.arange(EXAMPLES), Y], log_p.argmax(-1) == Y
    (entry,) = result.history
    expected = {
        "loss": np.average(each[first], weights=weight[first]),
        "accuracy": np.average(right[first], weights=weight[first]),
        "validation_loss": np.average(each, weights=weight),
        "validation_accuracy": np.average(right, weights=weight),
    }
    assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    unweighted = quiet(learner, (X[first], Y[first]), validation=(X, Y), epochs=1).history[0]
    log_p = np.array(jax.nn.log_softmax(result.predict(X)), np.float64)
    assert unweighted["validation_loss"] == pytest.approx(-log_p[np.arange(EXAMPLES), Y].mean(), rel=1e-5)


def interrupting(at, number=signal.SIGINT):
    """A callback that sends ^C after an epoch: training then ends after the first step of the next."""

    def send(epoch):
        if epoch.epoch == at:
            signal.raise_signal(number)

    return send


@pytest.fixture
def terminated():
    """A list that grows where SIGTERM would end the program."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    yield came
    signal.signal(signal.SIGTERM, before)


def test_interrupted_and_gone_on_further_is_as_never_interrupted(tmp_path, capsys, terminated):
    learner = classifier()
    data = (X, Y, np.linspace(0.5, 2, EXAMPLES, dtype=np.float32))
    options = {"validation": (X, Y), "epochs": 3}
    whole = quiet(learner, data, **options)
    options |= {"workdir": tmp_path / "new"}
    shorter = {**options, "epochs": 2, "callbacks": [interrupting(1, signal.SIGTERM)]}
    stopped = quiet(learner, data, **shorter)
    assert terminated == [True]
    assert capsys.readouterr().err == ""
    assert (stopped.interrupted, int(stopped.state.step), len(stopped.history)) == (True, 3, 1)
    seen = []
    options |= {"callbacks": [seen.append, interrupting(3, signal.SIGTERM)]}
    for _ in range(2):
        result = quiet(learner, data, **options)
        chex.assert_trees_all_equal(result.state, whole.state)
        assert result.history == whole.history
        assert not result.interrupted
    assert [epoch.epoch for epoch in seen] == [2, 3]  # so the second call did nothing
    assert terminated == [True, True]  # the second came after the last step, and was not lost

    other = (X + 1, Y, data[2])
    for arguments, changes, message in (
        ((learner, data), {"seed": 1}, "holds a fit with seed 0, not 1: choose another workdir"),
        ((learner, other), {}, "holds a fit with other data"),
        ((learner, data), {"validation": None}, "holds a fit with other validation"),
        ((learner, data), {"epochs": 2}, "holds 3 epochs, but epochs is 2"),
        ((classifier(2), data), {}, "holds a fit of another network, or with other optimizers"),
    ):
        with pytest.raises(decoupled.UsageError, match=message):
            quiet(*arguments, **{**options, **changes})


def test_what_there_is_when_interrupted_is_returned_and_told(capsys):
    before = signal.getsignal(signal.SIGINT)
    learner = classifier()
    options = {"epochs": 5, "batch_size": BATCH, "callbacks": interrupting(2)}
    result = decoupled.fit(learner, (X, Y), **options)
    assert (result.interrupted, int(result.state.step), len(result.history)) == (True, 5, 2)
    assert signal.getsignal(signal.SIGINT) == before
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("step 2/10  loss ")
    assert last == "interrupted after step 5 of 10: what there is is returned"


def test_a_callback_sees_each_epoch_and_may_end_training(tmp_path):
    seen = []

    def enough(epoch):
        seen.append(epoch)
        return epoch.epoch == 2

    learner = classifier()
    options = {"epochs": 5, "callbacks": [enough, lambda epoch: epoch.metrics], "workdir": tmp_path / "run"}
    result = quiet(learner, (X, Y), **options)
    assert [epoch.metrics for epoch in seen] == result.history
    # States are copies: the steps after them have destroyed nothing.
    assert int(seen[0].state.step) == 2
    assert np.abs(seen[0].state.modules[0].params["W"] - result.state.modules[0].params["W"]).max() > 0
    chex.assert_trees_all_equal(seen[1].state, result.state)
    assert not result.interrupted
    again = quiet(learner, (X, Y), **options)
    assert len(seen) == 2
    chex.assert_trees_all_equal(again.state, result.state)


def test_the_step_is_compiled_once_and_totals_are_read_once_an_epoch(monkeypatch):
    traces, reads = [], []
    layer = dense("first", 5, 6, lambda h: traces.append(1) or h)
    learner = make_learner(
        [layer, dense("output", 6, 3)],
        [estimators.linear()],
        losses.softmax_cross_entropy,
        ADAM,
        ADAM,
    )
    get = jax.device_get
    monkeypatch.setattr(inner_loop.jax, "device_get", lambda tree: reads.append(1) or get(tree))
    x, y = jnp.asarray(X), jnp.asarray(Y)
    quiet(learner, (x, y), epochs=1)
    once = len(traces)
    result = quiet(learner, (x, y), epochs=4)
    assert len(traces) <= 2 * once
    assert len(reads) == 1 + 4
    result.predict(x[:4])
    traces.clear()
    result.predict(x[4:8])
    assert not traces


def test_modules_learn_by_default_what_their_labels_are():
    modules = [dense("first", 5, 6), dense("output", 6, 3)]
    labels = estimators.one_hot(3)
    learnt = quiet(modules, (X, Y), estimator=estimators.loss_shaped(3, labels), epochs=1)
    assert learnt.history[0].keys() == {"epoch", "loss", "accuracy", "estimator_loss", "r2"}
    values = np.stack([Y, Y + 1, Y], 1).astype(np.float32)

    def error(output, y):
        return abs(output - y).sum(1)

    fitted = quiet(modules, (X, values), estimator=[estimators.backprop()], metric=error, epochs=1)
    assert fitted.learner.loss is losses.squared_error
    assert fitted.history[0]["error"] > 0


def test_without_orbax_only_a_workdir_fails(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    for name in ("fit_folder", "checkpoints"):
        monkeypatch.delitem(sys.modules, f"decoupled.training.{name}", raising=False)
    learner = classifier()
    with pytest.raises(decoupled.MissingPackage, match=r"^orbax is missing: pip install"):
        quiet(learner, (X, Y), workdir=tmp_path)


def test_what_numpy_gives_is_as_what_python_does(tmp_path):
    """Numbers, another machine's order of bytes, a label of no class that does not count, a true answer."""
    learner, weight = classifier(), np.arange(EXAMPLES) > 1
    expected = quiet(learner, (X, Y, weight), epochs=1, seed=3)
    labels = np.where(weight, Y, -100)
    result = quiet(
        learner,
        (X.astype(">f8"), labels, weight),
        epochs=np.int64(2),
        batch_size=np.int64(BATCH),
        seed=np.int64(3),
        workdir=tmp_path,
        callbacks=lambda epoch: jnp.asarray(True),
    )
    chex.assert_trees_all_equal(result.state, expected.state)
    assert result.predict(X[:1].astype(">f4")).shape == (1, 3)
    with pytest.raises(decoupled.UsageError, match=r"^predict: x\[0\]\[0\] is"):
        result.predict(X.tolist())


def test_numbers_that_are_not_finite_stop_it():
    sgd = optax.sgd(1.0)
    learner = make_learner([dense("output", 5, 3)], [], losses.softmax_cross_entropy, sgd, sgd)
    with pytest.raises(decoupled.TrainingError, match=r"^not finite: loss .*after epoch 1.*: lower.*and x"):
        quiet(learner, (np.full_like(X, np.inf), Y))


MODULES = mlp_modules()
SG = estimators.linear()


@pytest.mark.parametrize(
    ("given", "data", "options", "message"),
    [
        (MODULES, (X, Y), {}, "an estimator is missing"),
        (MODULES, (X, Y), {"estimator": estimators.linear}, "call it, linear"),
        (MODULES, (X, Y), {"estimator": [SG]}, "3 modules have 2 boundaries"),
        (MODULES[0], (X, Y), {"estimator": SG}, "modules come in a list"),
        ([len], (X, Y), {"estimator": SG}, "module 0: len is not a module of a chain"),
        (classifier(), (X, Y), {"estimator": SG}, "a learner has its estimators already"),
        (classifier(axis_name="data"), (X, Y), {}, "made for a mapped axis, 'data'"),
        (MODULES, X, {"estimator": SG}, r"data is a ndarray, but must be a pair \(x, y\)"),
        (MODULES, (X,), {"estimator": SG}, "data is of 1 parts"),
        (MODULES, (X, None), {"estimator": SG}, "y is None, but the loss of a list of modules"),
        (MODULES, (X, Y > 0), {"estimator": SG}, "y is an array of another type"),
        (MODULES, (X, Y[1:]), {"estimator": SG}, "^data: x has 11 examples, but y has 10: every"),
        (
            classifier(),
            ({"a": X, "b": X[1:]}, Y),
            {},
            r"^data: x\['a'\] has 11 examples, but x\['b'\] has 10",
        ),
        (classifier(), (X, Y, np.ones(10)), {}, "x has 11 examples, but weight has 10"),
        (classifier(), (X, Y, np.zeros(EXAMPLES)), {}, "every weight is 0"),
        (
            classifier(),
            (X, Y),
            {"validation": (X, Y, np.ones((EXAMPLES, 5)))},
            "^validation: weight has shape",
        ),
        (classifier(), (X.tolist(), Y), {}, r"x\[0\]\[0\] is 0.12573021.*give arrays of numbers"),
        (classifier(), (X, Y.astype(str)), {}, "y is of type <U21: give arrays of numbers"),
        (classifier(), (X[:0], Y[:0]), {}, "there is no example in it"),
        (classifier(), ({}, Y), {}, "x holds no array"),
        (classifier(), (X, Y), {"epochs": 0}, "epochs is 0, but must be"),
        (classifier(), (X, Y), {"epochs": True}, "epochs is True, but must be"),
        (classifier(), (X[:3], Y[:3]), {}, "batch_size is 4, but there are only 3 examples"),
        (classifier(), (X, Y), {"validation": X}, "validation is a ndarray"),
        (classifier(), (X, Y), {"validation": ((X, X), Y)}, r"x of validation is \(array, array\), but"),
        (classifier(), (X, Y), {"validation": (X[0:5, 0], Y[:5])}, r"x of validation has shape \(5,\)"),
        (classifier(), (X, Y), {"validation": (X[:, :4], Y)}, r"x of validation has shape \(11, 4\), but"),
        (classifier(), (X, Y), {"validation": (X, Y / 2)}, "takes integer labels, not float32"),
        (classifier(), (X, Y), {"validation": (X, Y + 1)}, "^validation: label 3 of example . is outside"),
        (classifier(), (X, Y - 1), {}, r"^data: label -1 of example . is outside 0\.\.2"),
        (classifier(), (X, Y, np.full(EXAMPLES, np.nan)), {}, "a weight is nan, but each must"),
        (classifier(), (X, Y, -np.ones(EXAMPLES)), {}, r"a weight is -1\.0, but"),
        (classifier(), (X.astype("M8[s]"), Y), {}, "x is of type datetime64"),
        (classifier(), (X, Y), {"seed": 1.5}, "seed is 1.5, but must be a whole number of 0 or more"),
        (classifier(), (X, Y), {"seed": -1}, "seed is -1, but"),
        (classifier(), (X, Y), {"callbacks": [print, 5]}, "callbacks: .* not 5"),
        (classifier(), (X, Y), {"callbacks": None}, "callbacks: .* not None"),
        (classifier(), (X, Y), {"workdir": 5}, "workdir is 5, but must be"),
        (classifier(), (X, Y), {"metric": "accuracy"}, "name a function or a Metric"),
        (classifier(), (X, Y), {"metric": lambda o, y: o}, r"metric gives \(4, 3\) for a batch of 4"),
    ],
)
def test_mistakes_are_told(given, data, options, message):
    with pytest.raises(decoupled.UsageError, match=message) as told:
        quiet(given, data, **options)
    assert "\n" not in str(told.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    learner = classifier()
    with pytest.raises(decoupled.UsageError, match="holds a run of train"):
        quiet(learner, (X, Y), workdir=tmp_path)
    with pytest.raises(decoupled.UsageError, match=r"cannot write to .*file"):
        quiet(learner, (X, Y), workdir=tmp_path / "file")
