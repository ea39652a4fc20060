"""`train.py` as a person calls it: exit codes, and one line for each mistake."""

import json
import os
import re
import sys

import pytest

from configs import digits
from tests.commands import run


def call(*arguments, **options):
    return run([sys.executable, "train.py", *arguments], **options)


def test_a_run_from_the_command_line(tmp_path):
    workdir, saved = tmp_path / "run", tmp_path / "config.json"
    # Of another run. What --config=configs/digits.py does is the test of `make train`.
    saved.write_text(json.dumps(digits.get_config().to_dict()), encoding="utf-8")
    done = call(
        f"--config={saved}",
        f"--workdir={workdir}",
        "--config.epochs=2",
        "--config.seed=3",
        # A system of ASCII alone, where Python is not told to use UTF-8 all the same.
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert "R²" in (workdir / "report.html").read_text(encoding="utf-8")
    assert not re.search("orbax|GiB|font|checkpoint", done.stderr)  # what libraries tell of themselves
    assert "gradient from" in done.stderr
    assert str(workdir) in done.stderr.splitlines()[-1]
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    assert (summary["epochs"], summary["seed"]) == (2, 3)
    assert json.loads((workdir / "config.json").read_text(encoding="utf-8")) == {
        **json.loads(saved.read_text(encoding="utf-8")),
        "epochs": 2,
        "seed": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "say what to train: --config=configs/digits.py"),
        (["--confg=x"], 2, "Did you mean: config"),
        (["--config=configs/nope.py"], 2, "cannot read 'configs/nope.py': No such file or directory"),
        (["--config=configs/__init__.py"], 2, r"configs/__init__.py has no get_config\(\): write one"),
        (["--config=configs/digits.py", "--config.epoch=1"], 2, 'Did you mean "epochs" instead of "epoch"'),
        (["--config=configs/digits.py", "--config.epochs=x"], 2, "--config.epochs=x"),
        (["--config=configs/digits.py", "--config.seed[0]=1"], 2, "no such config field: .*seed.0."),
        (["--config=configs/digits.py", "--config.estimator=probe"], 2, "--config.estimator=probe: "),
        (["--config=configs/cifar.py:slow"], 2, "has no variant 'slow': use :quick or nothing"),
        (["--config=configs/digits.py", "more"], 2, "cannot make sense of 'more'"),
        (["--config=configs/digits.py", "--workdir=/dev/null/run"], 2, "cannot write to /dev/null/run"),
        (
            ["--config=configs/cifar.py", "--config.download=False", "--config.data_dir=/nowhere"],
            1,
            "cifar10 is missing: no cifar-10-binary.tar.gz in /nowhere.*--config=configs/cifar.py:quick",
        ),
    ],
)
def test_mistakes_get_one_line(arguments, code, message, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    failed = call(*arguments, env=environment)
    assert failed.returncode == code, failed.stderr
    said = [line for line in failed.stderr.splitlines() if line.startswith("train.py: ")]
    assert "Traceback" not in failed.stderr
    assert len(said) == 1
    assert re.search(message, said[0])


def test_help_explains_and_succeeds():
    helped = call("--help")
    assert helped.returncode == 0
    assert "python train.py --config=configs/digits.py" in helped.stdout
    assert "--workdir" in helped.stdout
