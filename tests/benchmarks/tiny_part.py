"""A part of a benchmark, for tests of how parts are run."""

from benchmarks.part import Measured, Part, Row, Verdict, main


def measure(quick):
    assert quick
    rows = [Row("how many?", "counting", {"depth": 3}, 7.0, "things")]
    return Measured(rows, [Verdict("at least eight", "7", False)])


if __name__ == "__main__":
    main(Part("Works?", "tests.benchmarks.tiny_part", "A row.", measure))
