"""U17's table of methods, extended and measured: every method on one network and data set.

python -m experiments.compare
python -m experiments.compare --config.dataset=fashion_mnist --config.methods=backprop,probe

Writes compare.json and compare.html. What a method reads, trains and waits for is taken from its
declaration (which the tests hold against its data flow); accuracy, alignment and time are measured here.
The seeds of a method are trained together, by `vmap` where that is faster than one after the other.
"""

# Before all that takes long to import: from here on, ^C ends the program, and never with a crash.
import interrupts

if __name__ == "__main__":
    interrupts.heed("compare")

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

import command_line
import config_file
from benchmarks.timing import interleaved_seconds, median_ratio
from configs.compare import SIZES
from decoupled.data import shuffled_batches
from decoupled.data.dataset import rows_of
from decoupled.errors import TrainingError, UsageError
from decoupled.learning.learner import Learner
from decoupled.training.builder import build
from decoupled.training.config_checks import check_range, value_of, whole
from decoupled.training.loop import Job
from decoupled.training.methods import METHODS
from decoupled.training.step import alignment_step, evaluator, no_totals, train_step
from decoupled.training.workdir import write_whole
from decoupled.types import PyTree
from experiments.compare_page import render
from experiments.forms import form_of, loss_of

# Of the comparison, where a run has a seed.
_OWN_FIELDS = {"seeds", "methods", "timing_turns"}
# Learning rates other than the default, chosen on Fashion-MNIST's held-out examples with seed 0.
_RATE, _EST_RATE = "optimizer.learning_rate", "estimator_optimizer.learning_rate"
_OPTIONS: dict[str, dict[str, Any]] = {
    "sign_symmetric": {_RATE: 3e-3},
    "direct_feedback_alignment": {_RATE: 3e-3},
    "kickback": {_RATE: 3e-3},
    "auxiliary_network": {_EST_RATE: 3e-3},
    "borrowed_next": {_RATE: 3e-3, _EST_RATE: 3e-3},
    "borrowed_readout": {_RATE: 3e-3},
    "linear": {_EST_RATE: 2e-3},
    "local_loss": {_EST_RATE: 3e-3},
    "mean_teacher": {_RATE: 3e-4, _EST_RATE: 3e-3},
    "probe": {_EST_RATE: 3e-3},
    "sigmoid": {_EST_RATE: 2e-3},
    "similarity": {_RATE: 3e-3, _EST_RATE: 3e-3},
    "surrogate": {_EST_RATE: 3e-3},
    "linear_unconditional": {_EST_RATE: 2e-3},
}


def all_rows() -> dict[str, dict[str, Any]]:
    """Config fields of each row: the package's estimators, backward rules, and an SG without labels."""
    rows: dict[str, dict[str, Any]] = {
        rule: {"estimator.name": "backprop", "model.backward_rule": rule}
        for rule in ("sign_symmetric", "feedback_alignment")
    }
    # On flat activations the convolutional SG has nothing to work on.
    rows |= {name: {"estimator.name": name} for name in METHODS if name != "convolutional"}
    rows["linear_unconditional"] = {"estimator.name": "linear", "estimator.conditioned": False}
    first = {"backprop": rows.pop("backprop")}
    return {name: {**fields, **_OPTIONS.get(name, {})} for name, fields in (first | rows).items()}


def chosen_rows(names: str) -> dict[str, dict[str, Any]]:
    """The rows of a list like "probe,noise", and backprop, which all are compared with."""
    rows = all_rows()
    wanted = {"backprop", *(name.strip() for name in names.split(","))} if names else rows.keys()
    for name in wanted - rows.keys():
        raise UsageError(f"config.methods names {name!r}: choose from {', '.join(rows)}")
    return {name: fields for name, fields in rows.items() if name in wanted}


def sized(config: ConfigDict) -> ConfigDict:
    """The config with what was left unset filled in for its data set."""
    if missing := _OWN_FIELDS - set(config.keys()):
        raise UsageError(f"this config has no {', '.join(sorted(missing))}: use configs/compare.py")
    for field, least in (("seeds", 1), ("timing_turns", 0)):
        check_range(config, field, whole(least))
    config, flat = ConfigDict(config.to_dict()), SIZES.get(config.dataset, {})
    for field in SIZES["digits"]:
        if value_of(config, field) is None:
            if field not in flat:
                raise UsageError(
                    f"config.{field} has no default for the data set {config.dataset!r}: set it"
                )
            config.update_from_flattened_dict({field: flat[field]})
    return config


def config_of(config: ConfigDict, options: dict[str, Any]) -> ConfigDict:
    """That of a row's runs."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _OWN_FIELDS}
    config = ConfigDict({**fields, "seed": 0})  # the seeds are given to `train`
    config.update_from_flattened_dict(options)
    return config


def job_of(config: ConfigDict, options: dict[str, Any]) -> Job:
    """What a row trains."""
    return build(config_of(config, options))


def over_seeds(step, vectorised: bool):
    """A step of all seeds, whose states, batches and keys are stacked: at once, or one after the other."""
    if vectorised:
        return jax.vmap(step)
    return lambda *arguments: jax.lax.map(lambda one: step(*one), arguments)


def initial(job: Job, seeds: int) -> tuple[PyTree, PyTree, jax.Array]:
    """Stacked states, totals of no step, and step keys: for each seed those of `train.py`."""
    images, labels = map(jnp.asarray, rows_of(job.dataset.train, np.arange(job.batch_size)))
    keys = [jax.random.split(jax.random.key(seed)) for seed in range(seeds)]
    init_keys, step_keys = (jnp.stack([pair[i] for pair in keys]) for i in range(2))

    def init(key):
        return job.learner.init(key, job.preprocess.evaluate(images), labels)

    totals = jax.tree.map(lambda zero: jnp.zeros((seeds,), zero.dtype), no_totals(job.learner))
    return jax.jit(jax.vmap(init))(init_keys), totals, step_keys


def batches(job: Job, seeds: int, epoch: int):
    """The batches of an epoch, stacked over seeds."""
    each = [shuffled_batches(job.dataset.train, job.batch_size, seed, epoch) for seed in range(seeds)]
    for parts in zip(*each, strict=True):
        yield tuple(np.stack(arrays) for arrays in zip(*parts, strict=True))


def train(job: Job, seeds: int, vectorised: bool | None = None) -> dict[str, Any]:
    """Accuracies, one a seed, and the cosine at every boundary, mean over epochs and seeds.

    Args:
      vectorised: all seeds at once; None to measure which is faster, and choose that.
    """
    states, totals, keys = initial(job, seeds)
    one_step, gain = train_step(job.learner, job.preprocess), None
    if vectorised is None:
        steps = {way: jax.jit(over_seeds(one_step, way == "at once")) for way in ("at once", "in turn")}
        arguments = dict.fromkeys(steps, (totals, *next(batches(job, seeds, 1)), keys))
        taken = interleaved_seconds(steps, dict.fromkeys(steps, states), arguments, turns=3, steps_a_turn=3)
        gain = median_ratio(taken, "in turn", "at once")
        vectorised = gain > 1
        step = steps["at once" if vectorised else "in turn"]
    else:
        step = jax.jit(over_seeds(one_step, vectorised))
    align = jax.jit(over_seeds(alignment_step(job.learner, job.preprocess), vectorised))
    cosines, losses = [], []
    for epoch in range(1, job.epochs + 1):
        batch, of_step = (), totals
        for batch in batches(job, seeds, epoch):
            states, of_step = step(states, totals, *batch, keys)
        cosines.append(np.asarray(align(states, *batch, keys)))
        losses.append(np.asarray(of_step.loss))
    evaluate = evaluator(job.learner, job.preprocess, 1000)
    singles = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(seeds)]
    held_out = singles if len(job.validation) else []
    return {
        "validation_accuracy": [evaluate(state, job.validation)["accuracy"] for state in held_out],
        "test_accuracy": [evaluate(state, job.dataset.test)["accuracy"] for state in singles],
        # Zero where it is not a number, which JSON does not have and "diverged" tells.
        "cosine": np.nan_to_num(np.mean(cosines, axis=(0, 1)).astype(float)).round(4).tolist(),
        "diverged": not np.isfinite(losses).all(),
        "vectorising_gain": None if gain is None else round(gain, 2),
    }


def compiled_steps(jobs: dict[str, Job]) -> tuple[dict[str, Any], dict[str, PyTree], dict[str, tuple]]:
    """Each job's fused step, ready to be timed: compiled, with a first state and a first batch."""
    steps, states, arguments = {}, {}, {}
    for name, job in jobs.items():
        images, labels = map(jnp.asarray, rows_of(job.dataset.train, np.arange(job.batch_size)))
        arguments[name] = (job.preprocess.evaluate(images), labels, jax.random.key(0))
        states[name] = jax.jit(job.learner.init)(jax.random.key(0), *arguments[name][:2])
        update = jax.jit(job.learner.update, donate_argnums=0)
        steps[name] = update.lower(states[name], *arguments[name]).compile()
    return steps, states, arguments


def step_times(jobs: dict[str, Job], turns: int) -> dict[str, float]:
    """Time of a fused step relative to backprop's, medians of interleaved turns."""
    steps, states, arguments = compiled_steps(jobs)
    seconds = interleaved_seconds(steps, states, arguments, turns)
    return {name: median_ratio(seconds, name, "backprop") for name in jobs}


def declared(config: ConfigDict, options: dict[str, Any], learner: Learner) -> dict[str, Any]:
    """What the table says of a row before anything is measured."""
    spec = learner.estimators[0]
    trained, own = spec.training_gradient is not None, config_of(config, options)
    return {
        "form": form_of(own),
        "loss": loss_of(own, spec.own_loss),
        "trained": trained,
        "target": ("own loss" if spec.own_loss else "gradient from above") if trained else None,
        "estimate_sees_labels": "y" in spec.estimate_sees,
        "fit_sees_labels": "y" in spec.fit_sees,
        "locks": spec.reads.locks._asdict(),
        "direct_error": spec.reads.direct_error,
    }


def write(out: Path, result: dict[str, Any]) -> None:
    """Both files, whole or not at all."""
    texts = {
        "compare.json": json.dumps(result, indent=2, allow_nan=False) + "\n",
        "compare.html": render(result),
    }
    for name, text in texts.items():
        try:
            write_whole(out / name, text)
        except OSError as error:
            raise TrainingError(f"cannot write results to {out}: {error.strerror}") from error


def compare(config: ConfigDict, out: Path) -> None:
    """Measures every row that the config chooses, and writes the two files to `out`."""
    config = sized(config)
    chosen = chosen_rows(config.methods)
    jobs = {name: job_of(config, options) for name, options in chosen.items()}
    if not jobs["backprop"].learner.estimators:
        raise UsageError("config.boundaries leaves nothing to compare: name at least one boundary")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out} ({error}): choose another --out") from error
    result: dict[str, Any] = {
        "dataset": config.dataset,
        "seeds": config.seeds,
        "config": config.to_dict(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "boundaries": jobs["backprop"].learner.chain.names[:-1],
        "rows": [],
    }
    for name, job in jobs.items():
        start = time.monotonic()
        measured = train(job, config.seeds, vectorised=None if config.timing_turns else True)
        told = declared(config, chosen[name], job.learner)
        row = {"name": name, **told, **measured, "step_time": None, "options": chosen[name]}
        result["rows"].append({**row, "seconds": round(time.monotonic() - start, 1)})
        write(out, result)  # What an interrupted comparison has measured is kept.
        logging.info("%-28s test accuracy %.2f %%", name, 100 * np.mean(measured["test_accuracy"]))
    if config.timing_turns:
        ratios = step_times(jobs, config.timing_turns)
        for row in result["rows"]:
            row["step_time"] = round(ratios[row["name"]], 3)
        write(out, result)
    logging.info("results in %s", out.absolute() / "compare.html")


if __name__ == "__main__":
    # Not as the flag's default: mistakes in overrides would then be found before there is anyone to tell.
    if not any(word.startswith("--config=") for word in sys.argv):
        sys.argv.insert(1, "--config=configs/compare.py")
    CONFIG = config_file.define_flag("What to compare on.")
    OUT = flags.DEFINE_string("out", "runs/compare", "Folder for compare.json and compare.html.")
    command_line.run("compare", lambda: compare(CONFIG.value, Path(OUT.value)))
