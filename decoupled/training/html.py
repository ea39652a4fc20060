"""Pages that need no other file: tables, and figures as inline SVG."""

import html
import io
from collections.abc import Sequence

from decoupled.extras import extra

with extra("train"):
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: 0.2rem 0.8rem; text-align: left; }
td { overflow-wrap: anywhere; }
tr { border-bottom: 1px solid #ddd; } svg { max-width: 100%; height: auto; }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole page, its title as heading; `body` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """A table of values, as text."""
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_text(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>" if head else f"<table>{body}</table>"


def svg(figure: Figure) -> str:
    """A matplotlib figure as inline SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    drawing = buffer.getvalue()
    return drawing[drawing.index("<svg") :]  # without the XML prologue, which HTML does not have


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
