"""The command line of the study."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from benchmarks.part import environment
from decoupled.training.workdir import write_whole
from experiments.accuracy.page import markdown, render
from experiments.accuracy.recorded import keep
from experiments.accuracy.settings import METHODS, NETWORKS, Chosen
from experiments.accuracy.study import study


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.accuracy",
        description="How near do networks that are decoupled at every boundary come to backprop?",
    )
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    usual = "local_loss,local_loss_hidden_128,loss_shaped"
    parser.add_argument("--methods", default=usual, help=f"beside backprop, of {', '.join(METHODS)}")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data_dir", default="", help="folder that holds the data set")
    parser.add_argument("--processes", type=int, default=0, help="that run at a time; 0: one a core")
    parser.add_argument("--turns", type=int, default=20, help="of the timing of steps")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--record", type=Path, help="file in results/ where the study is kept")
    chosen = parser.parse_args(arguments)
    named = [name.strip() for name in chosen.methods.split(",")]
    for name in set(named) - METHODS.keys():
        parser.error(f"no method {name!r}: choose from {','.join(METHODS)}")
    methods = list(dict.fromkeys(["backprop", *named]))
    common = Chosen(chosen.network, chosen.epochs, chosen.data_dir)
    found = study(common, methods, chosen.seeds, chosen.turns, chosen.out, chosen.processes)
    table = markdown(found)
    command = shlex.join(["python", "-m", "experiments.accuracy", *(arguments or sys.argv[1:])])
    name = f"{chosen.network}-{chosen.epochs}"
    told = {
        "command": command,
        "network": chosen.network,
        "epochs": chosen.epochs,
        "seeds": chosen.seeds,
        **environment(),
        "methods": [finding.told() for finding in found],
    }
    write_whole(chosen.out / f"{name}.json", json.dumps(told, indent=2) + "\n")
    if chosen.record is not None:
        keep(told, chosen.record)
    write_whole(chosen.out / f"{name}.html", render(common, command, found))
    print(f"{table}\nwritten: {chosen.out / f'{name}.html'} and {chosen.out / f'{name}.json'}")


if __name__ == "__main__":
    main()
