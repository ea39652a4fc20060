"""`make paper`: every claim is measured at trial size, and what is written says what was found."""

import html
import json
import math

import pytest
from matplotlib.figure import Figure

from experiments import claim as claims
from experiments import paper
from experiments.claim import Check, Claim, Drawing, Finding

# All but one take most of half a minute, nearly all of it in the compiler.
QUICK = "convergence-linear"
EACH = [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c.id != QUICK)) for c in paper.CLAIMS]


@pytest.mark.parametrize("claim", EACH)
def test_a_claim_can_be_measured(claim):
    found = claims.told(claim, "trial")
    assert found["seeds"]
    assert found["measured"]
    assert found["drawings"]
    for check in found["measured"]:
        assert check["what"]
        assert check["expected"]
        assert isinstance(check["measured"], float)
        assert isinstance(check["holds"], bool)
    for drawing in found["drawings"]:
        assert drawing["svg"].startswith("<svg")
        assert drawing["caption"]
    json.dumps(found, allow_nan=False)


def example(*checks):
    def measure(size):
        return Finding(list(checks), [Drawing(Figure(), "nothing <to> see")], [0, 1], "Seen & told.")

    return Claim(
        "example", "experiments.example", "An example", "It is.", "U17, page 0", "ours", "By eye.", measure
    )


def test_a_claim_holds_if_all_of_it_does():
    good, bad = claims.at_most("error", 1.0, 2.0), claims.at_least("accuracy", 1.0, 2.0)
    assert claims.told(example(good), "quick")["holds"]
    found = claims.told(example(good, bad), "quick")
    assert not found["holds"]
    assert found["command"] == "python -m experiments.example"
    assert any("NOT AS EXPECTED: accuracy" in line for line in claims.lines_of(found))
    assert claims.lines_of(found)[-1].endswith("holds in part: 1 of 2 checks; 2 seeds")
    assert claims.lines_of(claims.told(example(bad), "quick"))[-1].endswith("does NOT hold; 2 seeds")


def test_a_number_that_is_none_is_told(tmp_path):
    found = claims.told(example(Check("loss", math.inf, "at most 1", False)), "quick")
    assert found["measured"][0]["measured"] is None
    assert "not finite" in paper.render([found], "quick")


def test_a_claim_that_cannot_be_measured_stops_no_other(tmp_path, monkeypatch, capsys):
    good = claims.told(example(claims.at_most("error", 1.0, 2.0)), "full")
    broken = example()._replace(title="A broken one", module="experiments.broken")

    def answer(command, *_):
        return {"error": "broken <badly>"} if broken.module in command else good

    monkeypatch.setattr(paper, "json_of", answer)
    assert not paper.run([broken, example()], tmp_path, "full")
    written = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert written[0]["error"] == "broken <badly>"
    fields = {"id", "claim", "source", "measured", "expected", "seeds", "holds"}
    assert fields <= written[1].keys()
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for text in ("A broken one", "could not be measured", "broken <badly>", "Seen & told.", "It is."):
        assert html.escape(text) in page
    assert "A broken one: could not be measured" in capsys.readouterr().err
