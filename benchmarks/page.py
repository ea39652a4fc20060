"""The page of `make bench`: what was asked, how it was measured, plots, tables, verdicts."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.part import Part, Row, rows_of
from decoupled.training.html import page, svg, table

_STYLE = """
body { max-width: 75rem; } td, th { padding: 0.15rem 0.6rem; font-size: 0.85rem; }
.met { color: #00603d; font-weight: bold; } .not-met { color: #a03a00; font-weight: bold; }
pre { background: #f4f4f4; padding: 0.5rem; overflow-x: auto; font-size: 0.8rem; }
"""
_MET = {True: ("met", "met"), False: ("NOT met", "not-met"), None: ("not measured", "")}


def render(told: Sequence[Mapping[str, Any]], parts: Sequence[Part], quick: bool) -> str:
    """The page.

    Args:
      told: what `run_part` returned for each of `parts`.
      quick: whether settings were so small that no figure means anything.
    """
    note = "<p><b>A quick run: tiny settings, to show that everything works. No number counts.</b></p>"
    sections = "".join(_section(part, found) for part, found in zip(parts, told, strict=True))
    return page(
        "What decoupling costs and gains",
        f"{note if quick else ''}<p>Each part ran in a process of its own, one after another. A ratio"
        " compares methods that took turns in one process; times are medians.</p>"
        f"<h2>Verdicts</h2>{_verdicts(told)}{sections}",
        _STYLE,
    )


def _verdicts(told: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for found in told:
        if "error" in found:
            lines.append((found["title"], "", "failed", "not-met"))
        verdicts = found.get("verdicts", [])
        lines += [(verdict["claim"], verdict["measured"], *_MET[verdict["met"]]) for verdict in verdicts]
    if not lines:
        return "<p>This run measured no figure that was to be reached.</p>"
    body = "".join(
        f"<tr><td>{html.escape(claim)}</td><td>{html.escape(measured)}</td>"
        f'<td class="{style}">{word}</td></tr>'
        for claim, measured, word, style in lines
    )
    return f"<table><tr><th>figure to be reached</th><th>measured</th><th>verdict</th></tr>{body}</table>"


def _section(part: Part, found: Mapping[str, Any]) -> str:
    command = found["command"]
    if found.get("xla_flags"):
        command = f'XLA_FLAGS="{found["xla_flags"]}" {command}'
    head = (
        f"<h2>{html.escape(part.title)}</h2><p>{html.escape(part.how)}</p><pre>{html.escape(command)}</pre>"
    )
    if "error" in found:
        return f'{head}<p class="not-met">This part failed:</p><pre>{html.escape(found["error"])}</pre>'
    rows, device = rows_of(dict(found)), found["device"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    where = f"{device['devices']} {device['kind']} device(s), {device['cores']} cores {device['processor']}"
    tables = "".join(
        f"<h3>{html.escape(question)}</h3>{_table([row for row in rows if row.question == question])}"
        for question in dict.fromkeys(row.question for row in rows)
    )
    drawings = "".join(svg(figure) for figure in _figures(part, rows))
    details = f"<details><summary>All numbers</summary>{tables}</details>"
    return f"{head}<p>{html.escape(where)}; {html.escape(versions)}</p>{drawings}{details}"


def _figures(part: Part, rows: Sequence[Row]) -> list[Figure]:
    return part.figures(rows) if rows else []


def _table(rows: Sequence[Row]) -> str:
    """One question's rows; settings that all share are told once, above the table."""
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    shared = [name for name in names if len({str(row.settings.get(name)) for row in rows}) == 1]
    differing = [name for name in names if name not in shared]
    cells = [
        (
            *(row.settings.get(name, "") for name in differing),
            row.method,
            row.value,
            row.unit,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.ratio_to,
        )
        for row in rows
    ]
    told = ", ".join(f"{name} {rows[0].settings[name]}" for name in shared)
    header = (*differing, "method", "value", "unit", "ratio", "to")
    return f"<p>{html.escape(told)}</p>{table(cells, header)}"
