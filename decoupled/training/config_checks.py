"""What the fields of a config may be, checked once, before anything slow.

configs/base.py describes the fields. What depends on the data, on devices or on several fields at once is
checked where that is known.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from math import isfinite
from typing import Any, NamedTuple

from decoupled.errors import UsageError
from decoupled.extras import extra
from decoupled.training.own_names import is_own

with extra("train"):
    import ml_collections

_MOST_COUNTED = 2**31 - 1  # by the int32 counters on devices
_MOST_FLOAT32 = 3.4028234663852886e38
_ALIKE = 0.75  # as `difflib` measures it: below, a suggestion would only mislead


class Range(NamedTuple):
    """The numbers that a field may be.

    Attributes:
      least, most: the ends, both allowed.
      whole: integers only.
      below: `most` itself is not allowed.
      several: the field is a tuple of such numbers.
    """

    least: float
    most: float
    whole: bool = False
    below: bool = False
    several: bool = False

    def allows(self, value: object) -> bool:
        """Whether a field may have this value."""
        if self.several:
            return isinstance(value, tuple | list) and all(map(self._allows_one, value))
        return self._allows_one(value)

    def _allows_one(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        # Written so that nan is refused.
        return self.least <= value <= self.most and not (self.below and value == self.most)

    def __str__(self) -> str:
        kind = f"{'whole ' * self.whole}number"
        most = str(self.most) if isinstance(self.most, int) else f"{self.most:.2g}"
        ends = f"from {self.least} up to, but not, {most}" if self.below else f"from {self.least} to {most}"
        return f"a tuple of {kind}s {ends}" if self.several else f"a {kind} {ends}"


def whole(least: int, most: int = _MOST_COUNTED, several: bool = False) -> Range:
    """Integers from `least`."""
    return Range(least, most, whole=True, several=several)


_NOT_NEGATIVE = Range(0, _MOST_FLOAT32)
_FRACTION = Range(0, 1)
_FRACTIONS = Range(0, 1, several=True)
_BELOW_ONE = Range(0, 1, below=True)

RANGES: dict[str, Range] = {
    "seed": whole(0, 2**32 - 1),
    "validation_examples": whole(0),
    "crop_padding": whole(0),
    "cutout": whole(0),
    "model.mlp.depth": whole(0),
    "model.mlp.width": whole(1),
    "model.mlp.dropout": _BELOW_ONE,
    "model.cnn.features": whole(1, several=True),
    "model.cnn.kernel_size": whole(1),
    "model.vgg.width": Range(0.01, 100),
    "model.vgg.dense": whole(1, several=True),
    "model.vgg.dropout": _BELOW_ONE,
    "model.resnet.depth": whole(8),
    "model.resnet.width": whole(1),
    "model.resnet_large.depth": whole(18, 152),
    "model.resnet_large.width": whole(1),
    "model.vit.depth": whole(0),
    "model.vit.width": whole(1),
    "model.vit.heads": whole(1),
    "model.vit.patch_size": whole(1),
    "model.vit.dropout": _BELOW_ONE,
    "model.gpt.depth": whole(0),
    "model.gpt.width": whole(1),
    "model.gpt.heads": whole(1),
    "model.gpt.context": whole(1),
    "model.gpt.dropout": _BELOW_ONE,
    "model.rnn.depth": whole(0),
    "model.rnn.width": whole(1),
    "model.rnn.vocabulary": whole(0),
    "model.rnn.dropout": _BELOW_ONE,
    "estimator.mlp.hidden": whole(1, several=True),
    "estimator.convolutional.features": whole(1, several=True),
    "estimator.convolutional.kernel_size": whole(1),
    "estimator.recursive_least_squares.decay": _BELOW_ONE,
    "estimator.recursive_least_squares.ridge": _NOT_NEGATIVE,
    "estimator.recursive_least_squares.solve_every": whole(1),
    "estimator.bp_lambda.lam": _FRACTION,
    "estimator.sg_prop.scale": _NOT_NEGATIVE,
    "estimator.auxiliary_network.depth": whole(0),
    "estimator.auxiliary_network.min_depth": whole(0),
    "estimator.surrogate.depth": whole(0),
    "estimator.surrogate.min_depth": whole(0),
    "estimator.borrowed_readout.every": whole(1),
    "estimator.borrowed_readout.decay": _BELOW_ONE,
    "estimator.borrowed_next.next_modules": whole(1),
    "estimator.borrowed_next.every": whole(1),
    "estimator.borrowed_next.decay": _BELOW_ONE,
    "estimator.local_loss.hidden": whole(1, several=True),
    "estimator.local_loss.filters": whole(1, several=True),
    "estimator.local_loss.kernel_size": whole(1),
    "estimator.mean_teacher.hidden": whole(1, several=True),
    "estimator.mean_teacher.decay": _BELOW_ONE,
    "estimator.similarity.weight": _FRACTION,
    "estimator.similarity.width": whole(1),
    "estimator.noise.scale": _NOT_NEGATIVE,
    "optimizer.learning_rate": _NOT_NEGATIVE,
    "optimizer.warmup_fraction": _FRACTION,
    "optimizer.step_boundaries": _FRACTIONS,
    "optimizer.step_factor": _FRACTION,
    "optimizer.final_fraction": _FRACTION,
    "optimizer.plateau_steps": whole(1),
    "optimizer.plateau_patience": whole(1),
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "estimator_optimizer.learning_rate": _NOT_NEGATIVE,
    "estimator_optimizer.warmup_fraction": _FRACTION,
    "estimator_optimizer.step_boundaries": _FRACTIONS,
    "estimator_optimizer.step_factor": _FRACTION,
    "estimator_optimizer.final_fraction": _FRACTION,
    "estimator_optimizer.plateau_steps": whole(1),
    "estimator_optimizer.plateau_patience": whole(1),
    "estimator_optimizer.momentum": _BELOW_ONE,
    "estimator_optimizer.clip_norm": _NOT_NEGATIVE,
    "average_decay": _BELOW_ONE,
    "label_smoothing": _BELOW_ONE,
    "update_probability": _FRACTION,
    "parallel.stages": whole(1),
    "parallel.devices": whole(0),
    "batch_axes": whole(1),
    "read_workers": whole(0),
    "epochs": whole(1),
    "batch_size": whole(1),
    "log_every": whole(1),
    "alignment_every": whole(1),
    "checkpoint_every": whole(0),
}
_YES_OR_NO = (
    "download",
    "stream",
    "flip",
    "model.resnet_large.small_images",
    "model.vit.class_token",
    "model.rnn.last_step",
    "estimator.conditioned",
    "estimator.local_loss.linear",
    "optimizer.nesterov",
    "optimizer.decay_biases_and_norms",
    "estimator_optimizer.nesterov",
    "skip_not_finite",
    "show_test",
)
_TEXTS = ("data_dir", "model.vgg.layers", "boundaries")
# May name a function of one's own, module:function, too; and what such functions read, which is theirs.
_INNER = {f"estimator.{name}.estimator": name for name in ("bp_lambda", "sg_prop", "borrowed_next")}
_OWN = ("dataset", "model.name", "estimator.name", *_INNER, "loss", "metric")
_OPTIONS = ("model.options", "estimator.options")


def check(config: ml_collections.ConfigDict, choices: Mapping[str, Collection[str]]) -> None:
    """Refuses a config with a field that nothing reads, or a value that no run can use.

    Args:
      config: as in configs/base.py.
      choices: the names that a field may have, by its dotted path.

    Raises:
      UsageError: says which field has which value, and what it may be.
    """
    known = fields_known(choices)
    for field in _unread(config, known):
        raise UsageError(f"nothing reads config.{field}: {_advice(field, known)}")
    for field, names in choices.items():
        value = value_of(config, field)
        if field in _OWN and is_own(value):
            continue
        if not isinstance(value, str) or value not in names:
            own = ", or a function of your own, module:function" if field in _OWN else ""
            raise _refused(field, value, f"one of {', '.join(sorted(names))}{own}{_meant(value, names)}")
    for field, allowed in RANGES.items():
        check_range(config, field, allowed)
    for fields, kind, name in ((_YES_OR_NO, bool, "True or False"), (_TEXTS, str, "a text")):
        for field in fields:
            if not isinstance(value := value_of(config, field), kind):
                raise _refused(field, value, name)
    for field in _OPTIONS:
        _check_options(field, options_of(value_of(config, field.partition(".")[0])))


def fields_known(choices: Mapping[str, Collection[str]]) -> list[str]:
    """Every field that a config has."""
    return [*choices, *RANGES, *_YES_OR_NO, *_TEXTS]


def check_range(config: ml_collections.ConfigDict, field: str, allowed: Range) -> None:
    """Refuses a field that is out of its range.

    Raises:
      UsageError: it is.
    """
    value = value_of(config, field)
    if not allowed.allows(value):
        raise _refused(field, value, str(allowed))


def value_of(config: ml_collections.ConfigDict, field: str) -> Any:
    """A field by its dotted path, like "model.mlp.width".

    Raises:
      UsageError: the config has no such field.
    """
    value: Any = config
    for part in field.split("."):
        if not isinstance(value, ml_collections.ConfigDict) or part not in value:
            raise UsageError(
                f"config.{field} is missing: start from configs/base.py, which has every field"
            )
        value = value[part]
    return value


def options_of(section: ml_collections.ConfigDict) -> Any:
    """The fields for a function of one's own, in a section that may have some, as a dict."""
    options = section.get("options", {})
    return options.to_dict() if isinstance(options, ml_collections.ConfigDict) else options


def own_names(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Those fields in use that name a function of one's own."""
    name = config.estimator.name
    values = {field: value_of(config, field) for field in _OWN if _INNER.get(field, name) == name}
    return {field: value for field, value in values.items() if is_own(value)}


def _check_options(field: str, options: object) -> None:
    """That a run can save them and find them again as they are."""
    if not isinstance(options, dict):
        raise _refused(field, options, f"a section of fields, like config.{field}.width")
    for name, value in options.items():
        if isinstance(value, dict):
            _check_options(f"{field}.{name}", value)
        elif not _is_plain(value):
            raise _refused(f"{field}.{name}", value, "numbers, texts, True, False, None or tuples of them")


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and isfinite(value))


def _unread(config: ml_collections.ConfigDict, known: Collection[str], path: str = "") -> Iterator[str]:
    """Fields and sections that are not among those known.

    Raises:
      UsageError: a section has a value.
    """
    for name, value in config.items():
        field = f"{path}{name}"
        if field in _OPTIONS:
            continue
        within = [other for other in known if other.startswith(f"{field}.")]
        if within and isinstance(value, ml_collections.ConfigDict):
            yield from _unread(value, known, f"{field}.")
        elif within:
            raise _refused(field, value, f"a section of fields, like config.{within[0]}")
        elif field not in known:
            yield field


def _advice(field: str, known: Collection[str]) -> str:
    """What to do about a field that nothing reads."""
    name, names = _name(field), [_name(other) for other in known]
    if name not in names:
        if likely := difflib.get_close_matches(field, known, n=1, cutoff=_ALIKE):
            return f"did you mean {likely[0]}?"
        name = next(iter(difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)), None)
    likely = [other for other in known if _name(other) == name]
    return f"did you mean {' or '.join(likely)}?" if likely else "leave it out; see configs/base.py"


def _meant(value: object, names: Collection[str]) -> str:
    """The name that a wrong one is likely to stand for, as the end of a message."""
    likely = difflib.get_close_matches(str(value), names, n=1, cutoff=_ALIKE)
    return f" (did you mean {likely[0]}?)" if likely else ""


def _name(field: str) -> str:
    return field.rpartition(".")[2]


def _refused(field: str, value: object, allowed: str) -> UsageError:
    shown = " ".join(repr(value).split("\n")).strip()  # a section where a value should be has many lines
    return UsageError(f"config.{field} is {shown}: choose {allowed}")
