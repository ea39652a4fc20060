"""How accurate is a network that is decoupled at every boundary, compared with backprop?

python -m benchmarks.accuracy

configs/fashion_mnist.py with each row's options, once a seed; the table gives test accuracy, mean and
sample standard deviation. The options were chosen on the validation split with seed 0 (see README).
Each run keeps its workdir under runs/accuracy; a run that is finished there is not repeated.
"""

import argparse
import hashlib
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from configs import fashion_mnist
from decoupled.builder import build
from decoupled.training import Workdir, train_and_evaluate

ROWS: dict[str, dict[str, Any]] = {
    "backprop": {"estimator.name": "backprop"},
    "linear SG, recursive least squares": {"estimator.name": "recursive_least_squares"},
    "loss-shaped SG, Adam": {},
    "linear SG, Adam": {"estimator.name": "linear", "estimator_optimizer.learning_rate": 2e-3},
    "loss-shaped SG, each module updated 1 step in 5": {"update_probability": 0.2},
    "loss-shaped SG that never sees a label": {"estimator.conditioned": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    print("| method | test accuracy, % | options |\n| --- | --- | --- |")
    for name, options in ROWS.items():
        folder = arguments.out / name.replace(" ", "-").replace(",", "")
        accuracies = [
            100 * run(folder, {**options, "seed": seed, "epochs": arguments.epochs})
            for seed in range(arguments.seeds)
        ]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(f"| {name} | {statistics.mean(accuracies):.2f}{spread} | {flags(options)} |", flush=True)


def flags(options: dict[str, Any]) -> str:
    """The options as a person types them."""
    typed = " ".join(f"--config.{field}={value}" for field, value in options.items())
    return f"`{typed}`" if typed else "none"


def run(folder: Path, options: dict[str, Any]) -> float:
    """Test accuracy of one run, from its summary; runs of other configs have other folders."""
    config = fashion_mnist.get_config()
    config.update_from_flattened_dict(options)
    text = json.dumps(config.to_dict(), sort_keys=True)
    path = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
    finished = path / "summary.json"
    if not finished.exists():
        shutil.rmtree(path, ignore_errors=True)  # What an interrupted run left.
        with Workdir(path, config.to_dict()) as workdir:
            train_and_evaluate(build(config), workdir)
    return json.loads(finished.read_text())["test_accuracy"]


if __name__ == "__main__":
    main()
