"""The blocks of the pages on boundaries, run from top to bottom: they assert what they show."""

import re

import jax
import pytest

from tests.commands import ROOT


@pytest.mark.parametrize("page", ["boundaries_counting_examples", "boundaries_metrics"])
def test_blocks_run(page, capsys):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python") > 1
    with jax.numpy_rank_promotion("allow"):  # as it is for a reader
        names: dict = {"__name__": "__main__"}
        for block in blocks:
            exec(compile(block, f"{page}.md", "exec"), names)
    assert capsys.readouterr().out
