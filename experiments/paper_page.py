"""The page of `make paper`: each claim, how it was measured, figures, verdict; to be read top to bottom."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from decoupled.training.html import page, table

_STYLE = """
body { max-width: 62rem; } td, th { padding: 0.2rem 0.7rem; font-size: 0.9rem; vertical-align: top; }
td:nth-child(2), td:nth-child(3) { white-space: nowrap; }
figure { margin: 1.5rem 0; } figcaption { font-size: 0.9rem; color: #333; }
blockquote { border-left: 3px solid #0072b2; margin: 0; padding: 0 1rem; }
.holds { color: #00603d; font-weight: bold; } .fails { color: #a03a00; font-weight: bold; }
pre { background: #f4f4f4; padding: 0.5rem; overflow-x: auto; font-size: 0.85rem; white-space: pre-wrap; }
"""
_INTRODUCTION = """
<p>A network is cut into modules at <em>boundaries</em>. Backprop hands a module the gradient of the loss
L by its output h, dL/dh, and the module must wait for it. A <em>synthetic gradient</em> (SG) is a small
model SG(h, y; φ) that estimates dL/dh from the activation h and the label y alone, so that the module
need not wait; it is trained to match the gradient that the module above passes down, by the <em>SG
loss</em> |SG(h, y; φ) - target|². U17 (Czarnecki et al. 2017, <em>Understanding Synthetic Gradients and
Decoupled Neural Interfaces</em>, arXiv 1703.00522) asks what this does to learning. Below, each of its
claims, and J16's (Jaderberg et al. 2017, arXiv 1608.05343) on feed-forward networks, is measured: what
is claimed, how it was measured, what was found. A claim that was not found to
hold is reported as not holding.</p>
"""
_CERTAINTY = {
    "seen": "seen in the text",
    "told": "as notes on the paper tell it",
    "memory": "as recalled",
    "ours": "this project's own",
}
_TRIAL = "<p><b>A trial run: tiny settings, to show that everything works. No verdict counts.</b></p>"


def render(told: Sequence[Mapping[str, Any]], size: str) -> str:
    """The page.

    Args:
      told: what `experiments.claim.told` returned for each claim, or its title and an "error".
      size: of the measurements.
    """
    head = f"{_TRIAL if size == 'trial' else ''}{_INTRODUCTION}{_summary(told)}"
    sections = "".join(_section(number, found) for number, found in enumerate(told, start=1))
    title = "Understanding synthetic gradients, measured" if len(told) > 1 else told[0]["title"]
    return page(title, head + sections, _STYLE)


def _summary(told: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f'<tr><td>{number}</td><td><a href="#claim-{number}">{html.escape(found["title"])}</a></td>'
        f"<td>{_verdict(found)}</td></tr>"
        for number, found in enumerate(told, start=1)
    )
    return f"<table><tr><th></th><th>claim</th><th>verdict</th></tr>{lines}</table>"


def _verdict(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return '<span class="fails">could not be measured</span>'
    return f'<span class="{"holds" if found["holds"] else "fails"}">{html.escape(found["verdict"])}</span>'


def _section(number: int, found: Mapping[str, Any]) -> str:
    heading = f'<h2 id="claim-{number}">{number}. {html.escape(found["title"])}</h2>'
    if "error" in found:
        return f"{heading}<pre>{html.escape(found['error'])}</pre>"
    drawings = "".join(
        f"<figure>{drawing['svg']}<figcaption>{html.escape(drawing['caption'])}</figcaption></figure>"
        for drawing in found["drawings"]
    )
    checks = [
        (
            check["what"],
            "not finite" if check["measured"] is None else check["measured"],
            check["expected"],
            "yes" if check["holds"] else "NO",
        )
        for check in found["measured"]
    ]
    remarks = f"<p>{html.escape(found['remarks'])}</p>" if found["remarks"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    seeds = (
        ", ".join(map(str, found["seeds"]))
        if len(found["seeds"]) < 9
        else f"0 to {len(found['seeds']) - 1}"
    )
    return (
        f"{heading}<blockquote><p>{html.escape(found['claim'])}"
        f" ({html.escape(found['source'])}: {_CERTAINTY[found['certainty']]})</p></blockquote>"
        f"<h3>How it was measured</h3><p>{html.escape(found['how'])}</p>{drawings}"
        f"<h3>What was found</h3>{table(checks, ('measured', 'value', 'expected', 'as expected'))}{remarks}"
        f"<p>Verdict: {_verdict(found)}. Seeds: {seeds}.</p>"
        f"<pre>{html.escape(found['command'])}\n{html.escape(versions)}</pre>"
    )
