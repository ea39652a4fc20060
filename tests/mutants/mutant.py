"""One planted defect."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A defect, and the tests of which one must go red.

    Attributes:
      name: the defect in words.
      file: relative to the repository's root.
      old: text that occurs there exactly once.
      new: what it becomes.
      tests: files or node ids, small ones: each mutant runs them anew.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
