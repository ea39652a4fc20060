"""The table of planted defects cannot rot: `make mutants` runs it, and takes minutes."""

import pytest

from tests.mutants import ALL
from tests.mutants.planting import ROOT, stale


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted_and_names_its_tests(mutant):
    assert not stale(mutant)
    assert mutant.new != mutant.old
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8") or not name


def test_names_are_unlike():
    assert len({mutant.name for mutant in ALL}) == len(ALL)
