"""Every command and snippet of README and docs, run, cut down by options where it would take long."""

import functools
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.flags import FlagValues
from ml_collections import config_flags

from benchmarks import step_time
from configs import compare as compare_config
from configs import digits, fashion_mnist
from decoupled.training import Workdir, train_and_evaluate
from decoupled.training.builder import build, make_learner_of
from experiments import compare, paper
from tests.commands import ROOT, run
from tests.data.formats import write_idx_files

pytestmark = pytest.mark.usefixtures("undrawn")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}


def blocks(language):
    """Every block of code in a language: page, text."""
    pattern = rf"```{language}\n(.*?)```"
    return [(name, block) for name, text in TEXTS.items() for block in re.findall(pattern, text, re.DOTALL)]


# Each once, in order.
COMMANDS = list(dict.fromkeys(line for _, block in blocks("bash") for line in block.strip().splitlines()))
SMALL = {
    "digits": [],
    "cifar": ["--config.validation_examples=3744", "--config.model.cnn.features=(4,4)"],
    "mnist": ["--config.validation_examples=4", "--config.batch_size=4", "--config.model.mlp.depth=4"],
    "fashion_mnist": [
        "--config.validation_examples=4",
        "--config.batch_size=4",
        "--config.model.mlp.depth=2",
    ],
}


# `make train`, which has a test of its own, is this command.
MADE = "python train.py --config=configs/digits.py"
TRAINING = [line for line in COMMANDS if "python train.py" in line and line != MADE]


@pytest.mark.filterwarnings("ignore:the load_module")  # by ml_collections, of a config file
@pytest.mark.parametrize("line", TRAINING)
def test_training_commands(line, tmp_path):
    """As train.py runs them, but in this process, which has the two devices that some ask for."""
    write_idx_files(tmp_path / "data", gzipped=True)
    options = shlex.split(line.partition("train.py ")[2])
    name = re.search(r"configs/(\w+)\.py", line).group(1)
    cut = [
        *SMALL[name],
        "--config.epochs=1",
        *([f"--config.data_dir={tmp_path}/data"] if "mnist" in name else []),
    ]
    flags, arguments = FlagValues(), ["train.py", *options, *cut]
    config = config_flags.DEFINE_config_file("config", flag_values=flags, sys_argv=arguments)
    flags(arguments)
    with Workdir(tmp_path / "run", config.value.to_dict()) as workdir:
        summary = train_and_evaluate(build(config.value), workdir)
    # No output may look as if a quick run had been one on CIFAR-10.
    dataset = "procedural" if name == "cifar" else name
    assert summary["dataset"] == dataset
    assert dataset in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_other_commands_name_modules():
    """Which tests of their own run."""
    others = [line for line in COMMANDS if "python" in line and " train.py " not in line]
    assert others
    for line in others:
        module = re.match(r"python -m (examples\.\w+|decoupled\.analysis)\b", line).group(1)
        assert importlib.util.find_spec(module)


def test_the_readme_is_short():
    assert len(TEXTS["README"].splitlines()) <= 150


def test_every_claim_is_in_the_table_with_its_verdict():
    table = TEXTS["claims"]
    for claim in paper.CLAIMS:
        name = claim.module.rpartition(".")[2]
        assert f"`{name}`" in table


def test_make_targets_are_what_the_pages_say():
    assert [line for line in COMMANDS if line.startswith("make")] == ["make train", "make test"]
    # The tests run under `make test`; of `make train` the environment is taken as installed.
    binaries = Path(sys.executable).parent
    done = run(
        ["make", "-o", ".venv/installed", "train", f"BIN={binaries}"]
        + ["ARGS=--config=configs/digits.py --config.epochs=1"]
    )
    assert done.returncode == 0, done.stderr
    for target in re.findall(r"`make ([\w-]+)`", "".join(TEXTS.values())):
        assert run(["make", "--dry-run", target]).returncode == 0


def printed_by(script, capsys):
    """What it says of a loss or a difference, by name."""
    with jax.numpy_rank_promotion("allow"):  # as it is for a reader
        exec(compile(script, "snippet", "exec"), {"__name__": "__main__"})
    return re.findall(r"^(?:loss|difference) (\S+)$", capsys.readouterr().out, re.MULTILINE)


def script_of(page):
    """The blocks of a page in order; a later one may use what one before it has made."""
    return "\n".join(block for name, block in blocks("python") if name == page)


@pytest.mark.parametrize("page", sorted({name for name, _ in blocks("python")} - {"README"}))
def test_snippets_run(page, capsys):
    found = printed_by(script_of(page), capsys)
    assert all(float(number) < 0.5 for number in found)
    assert found or "assert" in script_of(page)


def test_a_run_predicts_as_the_readme_says(tmp_path):
    settings = digits.get_config()
    settings.epochs = 5
    job = build(settings)
    with Workdir(tmp_path / "run", settings.to_dict()) as workdir:
        summary = train_and_evaluate(job, workdir)
    script = script_of("README").replace("runs/digits/TIME", str(tmp_path / "run"))
    names = {"images": job.dataset.test.images}
    exec(compile(script, "snippet", "exec"), names)
    assert np.mean(names["classes"] == job.dataset.test.labels) == pytest.approx(summary["test_accuracy"])


def test_the_diff_decouples_a_script_in_five_lines(capsys):
    ((_, diff),) = blocks("diff")
    lines = [line or " " for line in diff.splitlines()]
    before = "\n".join(line[1:] for line in lines if line[0] != "+")
    after = "\n".join(line[1:] for line in lines if line[0] != "-")
    assert "decoupled" not in before
    added, removed = (sum(line[0] == sign for line in lines) for sign in "+-")
    assert removed <= added <= 5
    losses = [float(*printed_by(script, capsys)) for script in (before, after)]
    assert max(losses) < 0.3
    assert losses[0] != losses[1]


def test_step_time_table_has_every_method_of_the_benchmark():
    """Which a test of `make bench` runs."""
    table = TEXTS["results"].partition("What a fused step costs")[2]
    assert all(f"| {name} |" in table for name in step_time.methods())


def test_options_in_the_results_are_fields_of_the_config():
    options = re.findall(r"--config\.([\w.]+)=([\w.-]+)", TEXTS["results"])
    assert options
    config = fashion_mnist.get_config().to_dict()
    for field, _ in options:
        functools.reduce(lambda section, name: section[name], field.split("."), config)


def methods_table():
    """Name of a row -> its other cells."""
    lines = TEXTS["methods"].splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")][2:]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_methods_table_has_every_method_and_what_it_waits_for():
    table, config = methods_table(), compare.sized(compare_config.get_config())
    assert table.keys() == compare.all_rows().keys()
    for name, options in compare.all_rows().items():
        learner = make_learner_of(compare.config_of(config, options), 10, 1)
        told = compare.declared(config, options, learner)
        waits = "the output error" if told["locks"]["update"] else "nothing"
        waits = "the module above" if told["locks"]["backward"] else waits
        assert table[name][:2] == [told["form"].replace("|", "\\|"), waits]


def test_published_orderings_are_in_the_methods_table():
    accuracy = {name: float(cells[2].split()[0]) for name, cells in methods_table().items()}
    fixed = accuracy["feedback_alignment"], accuracy["direct_feedback_alignment"]
    assert accuracy["backprop"] > accuracy["sign_symmetric"] > max(fixed)
    assert min(fixed) > accuracy["noise"]
    for local in ("probe", "local_loss"):
        assert accuracy[local] > accuracy["backprop"] - 1.5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", TEXTS[page.stem]):
        assert (page.parent / target).exists()
