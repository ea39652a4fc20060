"""What has to be installed: one list in several files, and one message where something is missing."""

import re
import sys
import tomllib

import pytest

import decoupled
from decoupled.analysis import page
from decoupled.analysis.__main__ import main
from tests.commands import ROOT, run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def with_extras_of(requirements):
    """Requirements, with those of the extras of this package that they name."""
    for requirement in requirements:
        if own := re.fullmatch(r"decoupled\[(\w+)\]", requirement):
            yield from with_extras_of(EXTRAS[own.group(1)])
        else:
            yield requirement


def lines_of(name):
    """Of a requirements file, with those of the files it names."""
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            yield from lines_of(line.removeprefix("-r "))
        else:
            yield line


def test_requirements_are_those_of_the_package():
    core, train = PROJECT["dependencies"], [*with_extras_of(EXTRAS["analysis"])]
    assert [*lines_of("requirements.txt")] == sorted([*core, *train], key=str.lower)
    assert sorted(lines_of("requirements-dev.txt")) == sorted([*core, *with_extras_of(EXTRAS["dev"])])
    assert {re.split(">=", line)[0] for line in core} == {
        "jax",
        "flax",
        "optax",
        "chex",
        "absl-py",
        "numpy",
    }


BLOCKED = """
import importlib, pkgutil, sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = set(sys.argv[1:])
sys.meta_path.insert(0, Nowhere())
import decoupled, numpy
print("imported")
data = numpy.ones((4, 3), "float32"), numpy.arange(4)
result = decoupled.fit(decoupled.models.mlp(0, 1, 4), data, epochs=1, batch_size=2)
print(result.history[0]["accuracy"] <= 1)
for module in pkgutil.walk_packages(decoupled.__path__, "decoupled.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except decoupled.MissingPackage as error:
        print(module.name, "|", error)
"""
# How those of the extras are imported, where that is not their name.
IMPORTED_AS = {"scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}


def test_the_core_is_enough_and_what_is_missing_is_named_with_the_command():
    names = [re.split("[>=]", line)[0] for line in with_extras_of(EXTRAS["analysis"])]
    # Shapes in signatures are jaxtyping's only where it is installed.
    missing = ["jaxtyping", *(IMPORTED_AS.get(name, name) for name in names)]
    done = run([sys.executable, "-c", BLOCKED, *missing])
    assert done.returncode == 0, done.stderr
    imported, trained, *lines = done.stdout.splitlines()
    assert (imported, trained) == ("imported", "True")
    told = dict(line.split(" | ") for line in lines)
    for module in ("training.loop", "training.checkpoints", "data.find", "data.published"):
        assert re.fullmatch(
            r"\w+ is missing: pip install 'decoupled\[train\]'", told[f"decoupled.{module}"]
        )
    for module in ("probes", "figures", "drawing", "page"):
        message = told[f"decoupled.analysis.{module}"]
        assert re.fullmatch(r"\w+ is missing: pip install 'decoupled\[analysis\]'", message)


def test_programs_name_what_is_missing_in_one_line(tmp_path):
    (tmp_path / "ml_collections.py").write_text(
        "raise ModuleNotFoundError(name='ml_collections')\n", encoding="utf-8"
    )
    (tmp_path / "tensorboardX.py").write_text(
        "raise ModuleNotFoundError(name='tensorboardX')\n", encoding="utf-8"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    done = run([sys.executable, "train.py", "--config=configs/digits.py"], env=environment)
    assert (done.returncode, done.stderr) == (
        1,
        "train.py: ml_collections is missing: pip install 'decoupled[train]'\n",
    )
    (tmp_path / "ml_collections.py").unlink()
    done = run([sys.executable, "train.py", "--config=configs/digits.py"], env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "train.py: tensorboardX is missing: pip install 'decoupled[train]'"
    )


def test_so_does_the_analysis(monkeypatch, capsys):
    def analyse(*_):
        raise decoupled.MissingPackage("sklearn is missing: pip install 'decoupled[train]'")

    monkeypatch.setattr(page, "analyse", analyse)
    monkeypatch.setattr(sys, "argv", ["analysis", "nowhere"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err == "analysis: sklearn is missing: pip install 'decoupled[train]'\n"
