"""How a Flax module is told whether it trains: by its own arguments, as their names mean."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from decoupled.errors import UsageError

# The names that arguments have in Flax and in models on it; each is True in training, or in evaluation.
_TRAINING = ("train", "training", "is_training", "is_train", "update_stats", "enable_dropout", "stochastic")
_EVALUATION = (
    *("deterministic", "use_running_average", "eval", "is_eval", "evaluation", "inference"),
    *("test", "is_test", "testing"),
)
_MEANING = {**dict.fromkeys(_TRAINING, True), **dict.fromkeys(_EVALUATION, False)}
# Other names with one of these words in them seem to tell of training, but not how.
_WORDS = {
    *("train", "training", "eval", "evaluate", "evaluating", "evaluation", "inference"),
    *("test", "testing", "validate", "validation", "deterministic", "stochastic"),
}
# And with one of these where they switch something on or off: `dropout_rng` and `dropout_rate` do not.
_SWITCHED = {"dropout", "stats"}

# train -> the positional arguments after h, and those by name.
Mode = Callable[[bool], tuple[tuple[Any, ...], dict[str, Any]]]


def mode_of(module: Any, base: type, where: str, also: Sequence[str] = ()) -> Mode:
    """What to call a module with beside h: every argument whose name says whether it trains.

    An argument is left out where the module has an attribute of the same name that is set: Flax's layers
    take either. Where a module takes any keywords, the one module inside, or the first of a sequence, is
    asked what it makes of them.

    Args:
      module: from Flax; in NNX with its attributes as they are in use.
      base: the class of Flax's modules that may be inside.
      where: how to call the module in errors.
      also: arguments that the caller has values for.

    Raises:
      UsageError: the module asks for something else beside h, or it cannot be told what it asks for.
    """
    parameters = _parameters(module, where)
    flags = [p for p in parameters if p.name in _MEANING and not _is_set(module, p)]
    for p in parameters:
        known = p.name in (*_MEANING, *also)
        required = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if required and not known:
            raise UsageError(
                f"{where} asks for {p.name!r} beside its input: call it in a module of your own that takes"
                " the input alone (and `train`, if you like), and give that"
            )
    # In their places where they have one, since `nn.remat` and `nn.jit` know static arguments by these.
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    while positional and positional[-1] not in flags:
        positional.pop()
    # By their names where one before them has no value, or is passed by name itself.
    if any(p not in flags and (p.default is p.empty or p.name in also) for p in positional):
        positional = []
    in_place = [p.name for p in positional]
    names = [name for name in _asked(module, base, where) if name not in in_place]

    def mode(train: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def value(name: str) -> bool:
            return bool(train) == _MEANING[name]

        args = tuple(value(p.name) if p in flags else p.default for p in positional)
        return args, {name: value(name) for name in names}

    return mode


def _asked(module: Any, base: type, where: str) -> list[str]:
    """The names of a module's arguments about training, and of those it passes on."""
    parameters = _parameters(module, where)
    own = [p.name for p in parameters if p.name in _MEANING and not _is_set(module, p)]
    if not _takes_any(parameters):
        return own
    inside = _inside(module, base)
    if not inside and not own:
        raise UsageError(
            f"{where} takes any keywords (**kwargs), so it cannot be told how it learns whether it trains:"
            " name the argument in its __call__, as in `train`"
        )
    passed_on = []
    for first, *later in inside:
        for i, layer in enumerate(later, start=1):
            _check_asks_nothing(layer, base, f"{where}, layer {i}")
        within = f"{where}, {type(first).__name__} in it"
        if isinstance(first, base) and (asked := _asked(first, base, within)):
            passed_on.append(asked)
    if len(passed_on) > 1:
        raise UsageError(
            f"{where} takes any keywords (**kwargs), and {len(passed_on)} modules in it ask for some:"
            " name the arguments in its __call__"
        )
    return list(dict.fromkeys([*own, *(name for names in passed_on for name in names)]))


def _check_asks_nothing(layer: Any, base: type, where: str) -> None:
    """Flax's Sequential passes keywords to its first layer alone."""
    if not isinstance(layer, base):
        return
    parameters = _parameters(layer, where)
    for p in parameters:
        # One that is None by default is asked for by Flax itself where it matters.
        if p.name in _MEANING and p.default is not None and not _is_set(layer, p):
            raise UsageError(
                f"{where} ({type(layer).__name__}) takes {p.name!r}, but only the first layer of a sequence"
                " is told: make the layers modules of the chain, or call them in a module of your own"
            )
    for layers in _inside(layer, base) if _takes_any(parameters) else ():
        for inner in layers:
            _check_asks_nothing(inner, base, where)


def _inside(module: Any, base: type) -> list[list[Any]]:
    """The modules that a module was made with, each alone, and its sequences of layers."""
    found = []
    for value in vars(module).values():
        if isinstance(value, Sequence):
            if value and all(map(callable, value)):
                found.append(list(value))
        elif isinstance(value, base) and callable(value):
            found.append([value])
    return found


def _takes_any(parameters: list[inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def unset_argument(module: Any, error: ValueError) -> str | None:
    """The argument about training that a layer misses, if that is what Flax's error is about."""
    unset = [name for name in _MEANING if vars(module).get(name, error) is None]
    return next((name for name in unset if f'"{name}"' in str(error)), None)


def takes(module: Any, name: str, where: str) -> bool:
    """Whether a module takes an argument of this name, and has no attribute for it that is set."""
    return any(p.name == name and not _is_set(module, p) for p in _parameters(module, where))


def _parameters(module: Any, where: str) -> list[inspect.Parameter]:
    """Of `__call__`, without the input.

    Raises:
      UsageError: there is no input, or the name of another seems to tell of training, but not how.
    """
    if not callable(module):
        raise UsageError(f"{where} has no __call__: a module of a chain maps its input to its output")
    parameters = list(inspect.signature(module.__call__).parameters.values())
    if not parameters or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise UsageError(f"{where} takes no input: a module of a chain maps its input to its output")
    others = parameters if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[1:]
    for p in others:
        if p.name not in _MEANING and not _is_set(module, p) and _seems_to_tell(p):
            raise UsageError(
                f"{where} takes {p.name!r}, which seems to say whether it trains, but not how: call it"
                " `train`, `training`, `deterministic` or `use_running_average`"
            )
    return others


def _seems_to_tell(parameter: inspect.Parameter) -> bool:
    """By the words in its name, even in isTraining, and in its default where that is a text, as "train"."""
    text = f"{parameter.name}_{parameter.default}" if isinstance(parameter.default, str) else parameter.name
    words = {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", text)}
    return bool(words & _WORDS) or (isinstance(parameter.default, bool) and bool(words & _SWITCHED))


def _is_set(module: Any, parameter: inspect.Parameter) -> bool:
    """Whether the module has been told already, and need not be again."""
    has_default = parameter.default is not parameter.empty
    return has_default and vars(module).get(parameter.name) is not None
