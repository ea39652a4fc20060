"""How much of what the chip can do does train.py's loop leave to training?

python -m benchmarks.throughput
python -m benchmarks.throughput --quick

Examples a second of whole runs, as train.py tells them, to those of the same update in a bare `lax.scan`
over data on the device, with nothing around it. Runs and scans take turns. Written to
runs/bench/throughput.json too, one row a network and method, with the `ratio` of the two.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.part import Measured, Part, Row, Verdict, main
from configs import base
from decoupled.training import Workdir, train_and_evaluate
from decoupled.training.builder import build
from decoupled.training.loop import Job

OUT = Path("runs/bench/throughput.json")
LEAST = 0.9
METHODS = ("backprop", "local_loss", "loss_shaped")


class Network(NamedTuple):
    """What is trained.

    Attributes:
      fields: of its config.
      dataset: the name of a function below.
      epochs: of a run.
    """

    fields: dict[str, Any]
    dataset: str
    epochs: int


_MLP, _CNN = {"model.name": "mlp"}, {"model.name": "cnn", "crop_padding": 4, "flip": True}
_SMALL = {"model.cnn.features": (8, 16, 32), "batch_size": 32}  # in a scan on a CPU, this takes long enough
ON_CPU = {
    "MLP 6x256": Network(_MLP, "mnist_like", 2),
    "CNN (8, 16, 32)": Network({**_CNN, **_SMALL}, "few_cifar_like", 1),
}
ELSEWHERE = {
    "MLP 6x256": Network(_MLP, "mnist_like", 20),
    "CNN (32, 64, 128)": Network(_CNN, "cifar_like", 20),
}
QUICK = {
    "MLP 2x8": Network({"model.mlp.depth": 2, "model.mlp.width": 8, "batch_size": 32}, "few_cifar_like", 1)
}


def mnist_like() -> tuple[tuple, tuple]:
    """As many images as MNIST's to train on, as large, with nothing to tell."""
    return _noise(60_000, 28, 28, 1)


def cifar_like() -> tuple[tuple, tuple]:
    """As many images as CIFAR-10's to train on, as large, with nothing to tell."""
    return _noise(50_000, 32, 32, 3)


def few_cifar_like() -> tuple[tuple, tuple]:
    """A few images as large as CIFAR-10's, with nothing to tell."""
    return _noise(960, 32, 32, 3)


def _noise(count: int, *shape: int) -> tuple[tuple, tuple]:
    """Training and test examples."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(count, *shape), dtype=np.uint8)
    labels = rng.integers(10, size=count).astype(np.int32)
    return (images, labels), (images[:100], labels[:100])


def job_of(network: Network, method: str) -> tuple[Job, dict[str, Any]]:
    """A run, and its config."""
    config = base.get_config()
    config.dataset = f"benchmarks.throughput:{network.dataset}"
    config.epochs = network.epochs
    config.estimator.name = method
    config.update_from_flattened_dict(network.fields)
    return build(config), config.to_dict()


def run_rate(job: Job, config: dict[str, Any]) -> float:
    """Examples a second of a whole run."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Workdir(Path(folder) / "run", config) as workdir,
    ):
        return train_and_evaluate(job, workdir)["examples_per_second"]


def scan_of(job: Job) -> Callable[[], float]:
    """A function that takes as many steps as the run, and returns examples a second."""
    learner, preprocess = job.learner, job.preprocess
    train = job.dataset.train
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
    steps = len(images) // job.batch_size * job.epochs
    rows = np.random.default_rng(0).integers(len(images), size=(steps, job.batch_size))
    key = jax.random.key(0)

    def step(state: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
        crop_key, update_key = jax.random.split(jax.random.fold_in(key, state.step))
        x = preprocess.train(crop_key, images[rows])
        state, metrics = learner.update(state, x, labels[rows], update_key)
        return state, metrics.loss

    state = jax.jit(learner.init)(
        key, preprocess.evaluate(images[: job.batch_size]), labels[: job.batch_size]
    )
    rows = jnp.asarray(rows, jnp.int32)
    scan = jax.jit(lambda state, rows: jax.lax.scan(step, state, rows), donate_argnums=0)
    compiled = scan.lower(state, rows).compile()

    def rate() -> float:
        nonlocal state
        started = time.perf_counter()
        state, losses = compiled(state, rows)
        jax.block_until_ready(losses)
        return steps * job.batch_size / (time.perf_counter() - started)

    return rate


def measure(quick: bool) -> Measured:
    rows: list[Row] = []
    full = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    for name, network in (QUICK if quick else full).items():
        for method in METHODS[: 1 if quick else None]:
            job, config = job_of(network, method)
            scan_rate = scan_of(job)
            scan_rate()  # The first is a cold start.
            rates = [(run_rate(job, config), scan_rate()) for _ in range(1 if quick else 5)]
            ratio = statistics.median(run / scan for run, scan in rates)
            run, scan = (statistics.median(each) for each in zip(*rates, strict=True))
            settings = {"network": name, "batch": job.batch_size, "scan": round(scan)}
            rows.append(Row("throughput", method, settings, run, "examples/s", ratio, "a bare scan"))
    least = min(row.ratio for row in rows if row.ratio is not None)
    claim = f"train.py trains at least {LEAST} of the examples a second of a bare scan"
    return Measured(rows, [Verdict(claim, f"{least:.2f} at least", None if quick else least >= LEAST)])


PART = Part(
    "How much of what the chip can do does train.py leave to training?",
    "benchmarks.throughput",
    "Whole runs of train.py with its metrics, evaluation apart, and the same update in a bare lax.scan over"
    " data on the device. Noise in the place of images. Runs and scans take turns, five each; medians.",
    measure,
)


if __name__ == "__main__":
    main(PART, OUT)
