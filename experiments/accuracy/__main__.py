"""The command line of the study."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from decoupled.training.workdir import write_whole
from experiments.accuracy.page import markdown, render
from experiments.accuracy.settings import METHODS, NETWORKS
from experiments.accuracy.study import study


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.accuracy",
        description="How near do networks that are decoupled at every boundary come to backprop?",
    )
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--methods", default=",".join(METHODS), help="of these, beside backprop")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=20, help="of the timing of steps")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    chosen = parser.parse_args(arguments)
    named = [name.strip() for name in chosen.methods.split(",")]
    for name in set(named) - METHODS.keys():
        parser.error(f"no method {name!r}: choose from {','.join(METHODS)}")
    methods = list(dict.fromkeys(["backprop", *named]))
    found = study(chosen.network, methods, chosen.epochs, chosen.seeds, chosen.turns, chosen.out)
    table = markdown(found)
    command = shlex.join(["python", "-m", "experiments.accuracy", *(arguments or sys.argv[1:])])
    name = f"{chosen.network}-{chosen.epochs}"
    write_whole(
        chosen.out / f"{name}.json", json.dumps([finding.told() for finding in found], indent=2) + "\n"
    )
    write_whole(chosen.out / f"{name}.html", render(chosen.network, chosen.epochs, command, found))
    print(f"{table}\nwritten: {chosen.out / f'{name}.html'} and {chosen.out / f'{name}.json'}")


if __name__ == "__main__":
    main()
