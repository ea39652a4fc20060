"""Functions of one's own, named in a config: found, called by what they ask for; mistakes in them told."""

import inspect
import re
import sys
from pathlib import Path

import jax
import pytest

import decoupled
from configs import digits
from decoupled import estimators
from decoupled.training import own_names
from decoupled.training.builder import build
from decoupled.training.methods import METHODS

MINE = """
import flax.linen as nn
from decoupled import cut, estimators, from_linen

seen = []
number = 3


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, h):
        return nn.Dense(self.width)(h.reshape(h.shape[0], -1))


def network(num_outputs, norm, dtype, axis_name, depth, width=5):
    seen.append((num_outputs, norm, dtype, axis_name, depth, width))
    return [*[from_linen(Layer(width))] * depth, from_linen(Layer(num_outputs))]


def any_options(num_outputs, **options):
    seen.append(options)
    return [from_linen(Layer(num_outputs))] * 2


def estimator(num_classes, num_outputs, context, hidden):
    seen.append((num_classes, num_outputs, context))
    return estimators.mlp(hidden, context)


def divides(num_outputs):
    return 1 / 0


def cuts(num_outputs):
    return cut([from_linen(Layer(num_outputs))], [3])


def asks(num_outputs, depht):
    pass


def by_position(num_outputs, /):
    pass


def exits():
    raise SystemExit(3)


def numbers():
    return [1, 2]


class Square(nn.Module):
    @nn.compact
    def __call__(self, h):
        return h @ h


def fails_in_use():
    return [from_linen(Square())] * 2


def not_estimators():
    return estimators.backprop


def fails_at_the_boundary():
    def estimate(est_params, h, y, signal):
        return h.no_such_thing

    return estimators.backprop()._replace(estimate=estimate)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with modules of one's own, in which the command is run."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import json\nx = = 3\n", encoding="utf-8")
    (tmp_path / "needy.py").write_text("import json\nimport nowhere_to_be_found\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(own_names.tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    for name in ("mine", "broken", "needy"):
        sys.modules.pop(name, None)


def config(**changes):
    result = digits.get_config()
    result.model.mlp.width, result.model.mlp.depth = 8, 1
    result.estimator.name = "linear"
    for field, value in changes.items():
        *path, name = field.split(".")
        section = result
        for part in path:
            section = section[part]
        with section.ignore_type():
            section[name] = value
    return result


def told(**changes):
    """What is said of a config with a mistake."""
    with pytest.raises(decoupled.UsageError) as caught:
        build(config(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_is_called_with_what_it_asks_for(here):
    job = build(
        config(**{"model.name": "mine:network", "model.options.depth": 2, "model.dtype": "bfloat16"})
    )
    assert len(job.learner.modules) == 3
    assert job.description["model"] == "mine:network"
    assert {call[4:] for call in sys.modules["mine"].seen} == {(2, 5)}
    assert {call[:4] for call in sys.modules["mine"].seen} == {(10, "batch", jax.numpy.bfloat16, None)}


def test_axis_names_come_where_batches_are_split(here):
    build(config(**{"model.name": "mine:network", "model.options.depth": 1, "parallel.mode": "shard_map"}))
    assert [call[3] for call in sys.modules["mine"].seen] == [None, "data"]


def test_all_options_go_to_who_takes_any(here):
    build(config(**{"model.name": "mine:any_options", "model.options.a": 2, "model.options.b": (3, "x")}))
    assert sys.modules["mine"].seen[0] == {"a": 2, "b": (3, "x")}


@pytest.mark.parametrize("within", [False, True])
def test_an_estimator_is_called_with_what_it_asks_for(here, within):
    name = "estimator.bp_lambda.estimator" if within else "estimator.name"
    changes = {"estimator.name": "bp_lambda"} if within else {}
    job = build(config(**changes, **{name: "mine:estimator", "estimator.options.hidden": (4,)}))
    assert "mlp" in job.learner.estimators[0].name or within
    classes, outputs, context = sys.modules["mine"].seen[0]
    assert (classes, outputs) == (10, 10)
    assert context(jax.numpy.array([3])).tolist() == estimators.one_hot(10)(jax.numpy.array([3])).tolist()


# Field, value, what is said; {here} stands for the folder.
MISTAKES = [
    ("model.name", "mine:netwrok", "but there is no netwrok in {here}/mine.py: did you mean network\\?$"),
    ("model.name", "mien:network", "but no module mien can be imported from {here}: did you mean mine\\?$"),
    ("model.name", "mine.py:network", "leave out .py, as in an import: mine:network$"),
    ("model.name", "mine.sub:network", "but no module mine.sub can be imported"),
    ("model.name", "./mine:network", "write module:function, as in an import, like network:make$"),
    ("model.name", "mine:", "write module:function"),
    ("model.name", "mine:number", "which is a int: name a function$"),
    ("model.name", "broken:make", "which fails: {here}/broken.py, line 2: SyntaxError: invalid syntax"),
    ("model.name", "needy:make", "{here}/needy.py, line 2: ModuleNotFoundError: No module named 'nowhere"),
    ("model.name", "mine:divides", "which fails: {here}/mine.py, line {1 / 0}: ZeroDivisionError: div"),
    ("model.name", "mine:cuts", "which fails: {here}/mine.py, line {[3])}: UsageError: cannot cut"),
    ("model.name", "mine:exits", "which fails: {here}/mine.py, line {SystemExit(3)}: SystemExit: 3"),
    (
        "model.name",
        "mine:asks",
        "which asks for depht, but what is given by name is num_outputs, norm, dtype, axis_name \\(more in"
        " config.model.options\\)$",
    ),
    ("model.name", "mine:by_position", "which takes by position alone num_outputs, but"),
    ("model.name", "mine:numbers", "which returns something else: module 0: 1 is not a module of a chain"),
    ("model.name", "mine:fails_in_use", "own fails: {here}/mine.py, line {h @ h}: TypeError: "),
    ("estimator.name", "mine:not_estimators", "no estimator but makes one: call it, backprop\\(\\)"),
    (
        "estimator.name",
        "mine:fails_at_the_boundary",
        "own fails: {here}/mine.py, line {no_such_thing}: AttributeError: .*no_such_thing",
    ),
]


@pytest.mark.parametrize(("field", "name", "message"), MISTAKES, ids=[name for _, name, _ in MISTAKES])
def test_mistakes_are_told_as_ones_own(here, field, name, message):
    lines = MINE.splitlines()
    message = re.sub(
        r"\{(?!here)(.*?)\}",
        lambda found: str(next(i for i, line in enumerate(lines, 1) if found[1] in line)),
        message,
    )
    said = told(**{field: name})
    assert said.startswith(f"config.{field} is {name!r}")
    assert re.search(message.replace("{here}", re.escape(str(here))), said), said
    if ", line " in message:
        log = Path(re.search(r"\(traceback in (.*)\)$", said)[1])
        assert "Traceback" in log.read_text(encoding="utf-8")
        assert name.partition(":")[0] in log.read_text(encoding="utf-8")
    else:
        assert not [*here.glob("*.log")]


def test_options_that_nothing_reads_or_that_are_given_already(here):
    changes = {"model.name": "mine:network", "model.options.depth": 1}
    assert "nothing reads config.model.options.widht: " in told(**changes, **{"model.options.widht": 3})
    assert "did you mean width?" in told(**changes, **{"model.options.widht": 3})
    assert "config.model.options.norm has the name of what is given already" in told(
        **changes, **{"model.options.norm": "x"}
    )
    for value in (float("nan"), len, {3}, (1, {2})):
        assert "config.model.options.a is " in told(**{"model.options.a": value})
    assert "config.model.options is 3: choose a section of fields" in told(**{"model.options": 3})


def test_what_is_not_of_ones_own_stays_as_it_is():
    with pytest.raises(ZeroDivisionError), own_names.theirs_if_so({}):
        _ = 1 / 0
    with pytest.raises(decoupled.TrainingError), own_names.theirs_if_so({"loss": "a:b"}):
        raise decoupled.TrainingError("not finite")


def test_every_estimator_can_be_named_but_for_those_that_take_more_than_a_config_has():
    makers = {
        name
        for name, maker in vars(estimators).items()
        if callable(maker) and inspect.signature(maker).return_annotation is decoupled.Estimator
    }
    assert METHODS.keys() <= makers
    assert makers - METHODS.keys() <= {"network", "joined", "each"}
    assert all(maker is getattr(estimators, name) for name, maker in METHODS.items())


def test_what_fails_in_a_run_is_logged_in_its_folder(here, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    divides = own_names.find("model.name", "mine:divides")
    names = {"model.name": "mine:divides"}
    told = pytest.raises(decoupled.UsageError, match=r"mine\.py, line \d+: ZeroDivisionError")
    with told as caught, own_names.theirs_if_so(names, folder):
        divides(3)
    (log,) = folder.glob("*.log")
    assert str(log) in str(caught.value)
    # Without lines of anyone's own on the way, it is no mistake of theirs.
    code = compile("with theirs_if_so(names): 1 / 0", "nowhere", "exec")
    with pytest.raises(ZeroDivisionError):
        exec(code, {"theirs_if_so": own_names.theirs_if_so, "names": names})
