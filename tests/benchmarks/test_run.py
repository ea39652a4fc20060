"""The program of `make bench`, the FLOP count, and the cost model."""

import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cost_model, pipeline, throughput
from benchmarks.depth import verdicts
from benchmarks.flops import matmul_flops
from benchmarks.part import Part, Row, main
from benchmarks.run import run


@pytest.mark.slow
def test_quick_run_writes_what_a_part_measures(tmp_path):
    """Of the part with most to go wrong: all of them, `--quick`, take a minute and a half."""
    parts = [pipeline.PART]
    assert run(parts, tmp_path, quick=True)
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [part["title"] for part in found["parts"]] == [part.title for part in parts]
    for row in found["rows"]:
        assert np.isfinite(row["value"])
        assert row["command"].startswith("python -m benchmarks.")
        assert row["versions"]["jax"] == jax.__version__
        assert row["ratio"] is None or row["ratio_to"]
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert all(html.escape(part.title) in page for part in parts)
    assert page.count("<svg") >= len(parts)


@pytest.mark.slow
def test_throughput_is_told_beside_that_of_a_bare_scan(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["throughput", "--quick"])
    main(throughput.PART, tmp_path / "new" / "throughput.json")
    (row,) = json.loads((tmp_path / "new" / "throughput.json").read_text(encoding="utf-8"))["rows"]
    assert row["settings"]["network"] == "MLP 2x8"
    assert row["ratio"] == pytest.approx(row["value"] / row["settings"]["scan"], rel=0.01)


def test_a_part_that_fails_is_told_and_the_others_run(tmp_path):
    def never(quick):
        raise AssertionError("only its own process measures")

    broken = Part("Broken?", "benchmarks.no_such_part", "Nothing.", never)
    works = Part("Works?", "tests.benchmarks.tiny_part", "A row.", never)
    assert not run([broken, works], tmp_path, quick=True)
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert "no_such_part" in found["parts"][0]["error"]
    assert [row["value"] for row in found["rows"]] == [7.0]
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert "This part failed" in page
    assert "NOT met" in page


def test_flops_of_a_loop_are_counted_every_turn():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))

    def program(x):
        x = jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=5)[0]
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    assert matmul_flops(jax.jit(program), x) == 2 * 3 * 4 * 4 * (5 + 2)
    # Backward of a matrix product: two more of the same size.
    assert matmul_flops(jax.grad(lambda x, w: (x @ w).sum(), (0, 1)), x, w) == 3 * 2 * 3 * 4 * 4


def test_cost_model_of_an_ideal_machine():
    """Ten stages' work, split without loss: the pipeline gains S, GPipe S M / (M + S - 1)."""
    stages = {s: (1.0 / s,) * min(s, 3) for s in (2, 4, 10)}
    costs = cost_model.Costs(1.0, stages, {m: 1.0 / m for m in (1, 4, 16)}, transfer=0.0)
    for s in stages:
        told = cost_model.predict(s, costs)
        assert told.pipeline == pytest.approx(s)
        assert told.efficiency == pytest.approx(1)
        for m, gain in told.gpipe.items():
            assert gain == pytest.approx(s * m / (m + s - 1))


def test_cost_model_waits_for_the_slowest_stage_and_the_transfer():
    costs = cost_model.Costs(1.0, {2: (0.3, 0.45)}, {}, transfer=0.05)
    assert cost_model.predict(2, costs).pipeline == pytest.approx(2)
    (row,) = cost_model.comparison(costs, {2: 1.6}, {})
    assert (row.value, row.ratio) == (pytest.approx(1.25), 1.6)


@pytest.mark.parametrize(("growth", "met"), [(1.4, True), (1.6, False)])
def test_verdict_on_memory(growth, met):
    rows = [
        Row(question, method, {"layers": "equal blocks", "depth": depth}, value, "", 1.1, "backprop")
        for question in ("temporary memory", "compile time", "step time")
        for method in ("backprop", "loss-shaped SG", "linear SG")
        for depth, value in ((4, 1.0), (16, 1.0), (64, 1.0), (256, 1.0), (1024, growth))
    ]
    wide = {"layers": "equal blocks, 1024 wide", "depth": 64}
    rows += [
        Row("peak memory", "backprop in a stack", wide, 1.0, "", 0.74, "backprop"),
        Row("step time", "backprop in a stack", wide, 1.0, "", 1.2, "backprop"),
    ]
    told = {verdict.claim: verdict.met for verdict in verdicts(rows)}
    assert told["backprop in a stack: peak memory at depth 64, 1024 wide, at most 0.75 times backprop's"]
    assert not told["backprop in a stack: step time at depth 64, 1024 wide, at most 1.1 times backprop's"]
    assert told["loss-shaped SG: temporary memory at depth 1024 at most 1.5 times that at depth 4"] is met
    assert told["loss-shaped SG: step time at depth 64 at most 1.15 times backprop's"]
    assert not told["loss-shaped SG: step time at depth 1024 at most 1 times backprop's"]
