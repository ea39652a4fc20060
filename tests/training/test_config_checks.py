"""Every field of configs/base.py: refused by its name, its value and what it may be, or legal."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decoupled
from configs import base
from decoupled.training import builder
from decoupled.training.builder import build
from decoupled.training.config_checks import RANGES, check, fields_known, value_of

STILL = settings(derandomize=True, deadline=None, database=None)


def fields(section=None, path=""):
    """(dotted path, default) of every field."""
    for name, value in (base.get_config() if section is None else section).items():
        if hasattr(value, "items"):
            yield from fields(value, f"{path}{name}.")
        else:
            yield path + name, value


FIELDS = dict(fields())
CHOICES = builder._choices()
NUMERIC = [
    field
    for field, value in FIELDS.items()
    if isinstance(value, int | float | tuple) and not isinstance(value, bool)
]


def with_value(field, value):
    *path, name = field.split(".")
    config = base.get_config()
    section = config
    for part in path:
        section = section[part]
    with section.ignore_type():
        section[name] = value
    return config


def told(field, value):
    """What is said of a config with this value; "" if it is legal."""
    try:
        check(with_value(field, value), CHOICES)
    except decoupled.UsageError as error:
        return str(error)
    return ""


def shown(field, value):
    """How a value is told, once the config has it: 1 as 1.0 in a field for fractions."""
    return f"config.{field} is {value_of(with_value(field, value), field)!r}: choose "


def test_every_number_has_a_range_and_the_defaults_are_legal():
    assert set(NUMERIC) == set(RANGES)
    check(base.get_config(), CHOICES)


# What is out of any sensible range: written down here, not taken from the table.
AT_MOST_ONE = ["update_probability", "model.mlp.dropout", "estimator.recursive_least_squares.decay"]
AT_MOST_ONE += [f"model.{name}.dropout" for name in ("vgg", "vit", "gpt", "rnn")]
AT_MOST_ONE += ["estimator.bp_lambda.lam", "estimator.similarity.weight", "estimator.mean_teacher.decay"]
AT_MOST_ONE += ["estimator.borrowed_readout.decay", "estimator.borrowed_next.decay"]
ZERO_IS_ALLOWED = [*AT_MOST_ONE, "seed", "validation_examples", "crop_padding", "model.mlp.depth"]
ZERO_IS_ALLOWED += [f"model.{name}.depth" for name in ("vit", "gpt", "rnn")]
ZERO_IS_ALLOWED += ["model.rnn.vocabulary", "read_workers", "cutout", "estimator.sg_prop.scale"]
BUILT = ("auxiliary_network", "surrogate")
ZERO_IS_ALLOWED += [f"estimator.{name}.{field}" for name in BUILT for field in ("depth", "min_depth")]
ZERO_IS_ALLOWED += [
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "estimator_optimizer.learning_rate",
]
ZERO_IS_ALLOWED += ["estimator.recursive_least_squares.ridge", "estimator.noise.scale", "parallel.devices"]
ZERO_IS_ALLOWED += ["checkpoint_every", "optimizer.clip_norm", "estimator_optimizer.clip_norm"]
_FRACTIONS = ("warmup_fraction", "final_fraction", "step_boundaries", "step_factor", "momentum")
AT_MOST_ONE += [f"{s}.{f}" for s in ("optimizer", "estimator_optimizer") for f in _FRACTIONS]
AT_MOST_ONE += ["average_decay", "label_smoothing"]
ZERO_IS_ALLOWED += AT_MOST_ONE
NEVER = [-1, -0.5, -math.inf, math.inf, math.nan, 10**300, None, "1", "", b"1", [None], (1, "x")]


@pytest.mark.parametrize("field", NUMERIC)
def test_what_no_number_may_be(field):
    several = isinstance(FIELDS[field], tuple)
    wrong = [*NEVER, *([] if field in ZERO_IS_ALLOWED else [0]), *([1.001] if field in AT_MOST_ONE else [])]
    wrong += [(value,) for value in wrong if value != "1"] if several else [(1,)]
    wrong += [0.5, True] if isinstance(FIELDS[field], int) else []  # a ConfigDict makes 1.0 of True
    for value in wrong:
        message = told(field, value)
        assert message.startswith(shown(field, value) + "a "), value
        assert "number" in message
        assert " from " in message
        assert "\n" not in message


@STILL
@given(st.sampled_from(NUMERIC), st.one_of(st.floats(), st.integers()), st.booleans())
def test_any_number_is_refused_by_name_or_legal_by_the_table(field, number, several):
    value = (number,) if several else number
    message = told(field, value)
    allowed = RANGES[field]
    number_is_legal = allowed.least <= number <= allowed.most and not (
        allowed.below and number == allowed.most
    )
    whole_enough = isinstance(number, int) or not allowed.whole
    if several == allowed.several and number_is_legal and whole_enough:
        assert not message
    else:
        assert message.startswith(shown(field, value))


@pytest.mark.parametrize("field", [field for field in FIELDS if field not in NUMERIC])
def test_choices_texts_and_flags(field):
    wrong = [None, 1, 2.5, ("x",), b"mesh"] + ([""] if field in CHOICES else [])
    for value in wrong:
        assert told(field, value).startswith(shown(field, value)), value


def test_the_table_has_the_fields_of_the_base_and_no_others():
    known = fields_known(CHOICES)
    assert set(known) == FIELDS.keys()
    assert len(known) == len(set(known))


def test_a_field_that_nothing_reads_is_refused_with_the_one_that_was_meant():
    with pytest.raises(
        decoupled.UsageError,
        match=r"^nothing reads config\.optimizer\.learningrate: did you mean optimizer\.learning_rate\?$",
    ):
        build(with_value("optimizer.learningrate", 0.1))
    assert told("early_stopping", 3) == (
        "nothing reads config.early_stopping: leave it out; see configs/base.py"
    )
    # Elsewhere than where it is, in the wrong section, in one that is no section, and a section of its own.
    assert told("kernel", 3) == "nothing reads config.kernel: leave it out; see configs/base.py"
    assert told("kernel_size", 3).endswith(
        "did you mean model.cnn.kernel_size or estimator.convolutional.kernel_size or"
        " estimator.local_loss.kernel_size?"
    )
    assert told("estimator.lam", 0.3).endswith("did you mean estimator.bp_lambda.lam?")
    assert told("estimator.probe", {"hidden": (3,)}).startswith("nothing reads config.estimator.probe: ")
    assert told("augmentation", {}).startswith("nothing reads config.augmentation: ")


@pytest.mark.parametrize("field", [field for field in FIELDS if "_" in field.rpartition(".")[2]])
def test_a_forgotten_underscore(field):
    path, dot, name = field.rpartition(".")
    assert told(path + dot + name.replace("_", ""), FIELDS[field]).endswith(f"did you mean {field}?")


@pytest.mark.parametrize("section", ["model", "model.mlp", "estimator", "optimizer", "parallel"])
def test_a_value_in_the_place_of_a_section(section):
    for value in ("probe", None, 3, ("a",)):
        message = told(section, value)
        assert message.startswith(
            f"config.{section} is {value!r}: choose a section of fields, like config."
        )
        assert "\n" not in message


def test_an_estimator_within_itself():
    message = (
        r"config.estimator.bp_lambda.estimator is 'bp_lambda': choose one of auxiliary_network, backprop, b"
    )
    with pytest.raises(decoupled.UsageError, match=message):
        build(with_value("estimator.bp_lambda.estimator", "bp_lambda"))


def test_missing_fields_and_sections_in_their_place():
    assert told("epochs", {"a": 1, "b": 2}).count("\n") == 0
    config = base.get_config()
    del config.model.mlp.width
    with pytest.raises(
        decoupled.UsageError, match=r"model\.mlp\.width is missing: start from configs/base"
    ):
        build(config)


def test_before_any_data_is_looked_for():
    config = with_value("epochs", 0)
    config.dataset, config.data_dir, config.download = "mnist", "/nowhere", False
    with pytest.raises(decoupled.UsageError, match=r"config\.epochs is 0"):
        build(config)
