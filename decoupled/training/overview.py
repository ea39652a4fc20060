"""A table of the modules, their estimators, and what each owns."""

from typing import Any

import jax

from decoupled.learning.learner import Learner
from decoupled.learning.state import LearnerState
from decoupled.types import PyTree


def describe_modules(learner: Learner, state: LearnerState, x: PyTree) -> list[dict[str, Any]]:
    """One entry a module: its name, output shape, parameters, and the estimator above it.

    Args:
      x: an input batch, or a `jax.ShapeDtypeStruct` like one; only shapes are used.
    """
    entries, h, state = [], x, learner.unstack(state)
    for i, module in enumerate(learner.modules):
        variables = state.modules[i]
        h, _ = jax.eval_shape(
            lambda v, h, apply=module.apply: apply(v.params, v.state, h, jax.random.key(0), False),
            variables,
            h,
        )
        has_boundary = i < len(learner.estimators)
        entries.append(
            {
                "name": learner.chain.names[i],
                "output": _shape(h),
                "parameters": count_parameters(variables.params),
                "estimator": learner.estimators[i].name if has_boundary else "true loss",
                "estimator_parameters": (
                    count_parameters(state.estimators[i].params) if has_boundary else 0
                ),
            }
        )
    return entries


def _shape(h: PyTree) -> list[Any]:
    """Of an example; where there are several arrays, a list of their shapes."""
    shapes = [list(leaf.shape[1:]) for leaf in jax.tree.leaves(h)]
    return shapes[0] if len(shapes) == 1 else shapes


def _shape_text(shape: list[Any]) -> str:
    if shape and isinstance(shape[0], list):
        return ", ".join(map(_shape_text, shape))
    return "x".join(map(str, shape))


def count_parameters(tree) -> int:
    """Number of scalars in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def overview(entries: list[dict[str, Any]]) -> str:
    """The entries of `describe_modules` as a table for people."""
    header = ("module", "output", "parameters", "gradient from", "its parameters")
    rows = [
        (
            entry["name"],
            _shape_text(entry["output"]),
            f"{entry['parameters']:,}",
            entry["estimator"],
            f"{entry['estimator_parameters']:,}",
        )
        for entry in entries
    ]
    total = (
        "total",
        "",
        f"{sum(e['parameters'] for e in entries):,}",
        "",
        f"{sum(e['estimator_parameters'] for e in entries):,}",
    )
    widths = [max(len(row[i]) for row in (header, *rows, total)) for i in range(len(header))]
    right = (False, True, True, False, True)

    def line(row: tuple[str, ...]) -> str:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows), rule, line(total)])
