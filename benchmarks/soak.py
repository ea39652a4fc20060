"""Does training hold on to memory? A long run, with checkpoints and evaluation, watched from outside.

python -m benchmarks.soak --minutes=30

Resident memory of train.py, sampled until it is stopped by SIGTERM, and the slope of a line through the
samples after the first third, in which it compiles and its allocator finds its size. Linux only, for /proc.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from decoupled.training.workdir import read_metrics, write_whole

ROOT = Path(__file__).parent.parent
LONG = (
    "--config=configs/fashion_mnist.py",
    "--config.epochs=100000",
    "--config.log_every=20",
    "--config.checkpoint_every=200",
    "--config.alignment_every=200",
)


class Sample(NamedTuple):
    """Of a process: seconds since its start, resident memory in MiB, of which anonymous (not files) MiB."""

    seconds: float
    resident: float
    anonymous: float


class Trend(NamedTuple):
    """Of resident memory after warm-up.

    Attributes:
      mean: MiB.
      slope: MiB an hour, by least squares.
      change: from the first third of the samples to the last, as a fraction of the mean.
    """

    mean: float
    slope: float
    change: float


def sample(pid: int, start: float) -> Sample:
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    )
    resident, anonymous = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    return Sample(time.monotonic() - start, resident, anonymous)


def trend(samples: Sequence[Sample]) -> Trend:
    """What is left of them after the first third, as a line."""
    after = np.array(samples[len(samples) // 3 :])
    seconds, resident = after[:, 0], after[:, 1]
    slope = 3600 * np.polyfit(seconds, resident, 1)[0]
    third = max(1, len(after) // 3)
    change = (np.median(resident[-third:]) - np.median(resident[:third])) / resident.mean()
    return Trend(float(resident.mean()), float(slope), float(change))


def soak(arguments: Sequence[str], workdir: Path, minutes: float, every: float) -> list[Sample]:
    """Trains for so long, sampling every so many seconds; SystemExit if the run ends in another way."""
    command = [sys.executable, "train.py", *arguments, f"--workdir={workdir}"]
    log = workdir.with_suffix(".log")
    samples, start = [], time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    try:
        while process.poll() is None and time.monotonic() < start + 60 * minutes:
            with suppress(KeyError):  # It ended after it was asked: the system knows no memory of it.
                samples.append(sample(process.pid, start))
            time.sleep(every)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
    finally:
        process.kill()
    if code != 128 + signal.SIGTERM:
        *_, reason = ["it said nothing", *log.read_text(encoding="utf-8", errors="replace").splitlines()]
        raise SystemExit(f"train.py ended with exit code {code} before its time: {reason}")
    return samples


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Does memory grow while train.py runs?",
        epilog="Other arguments go to train.py.",
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--out", type=Path, default=Path("runs/soak/soak.json"))
    chosen, others = parser.parse_known_args(arguments)
    if 60 * chosen.minutes < 10 * max(chosen.every, 3):
        parser.error(f"--minutes={chosen.minutes:g} is too short: choose at least 0.5, and 10 samples")
    with tempfile.TemporaryDirectory() as folder:
        samples = soak([*LONG, *others], Path(folder) / "run", chosen.minutes, chosen.every)
        lines = read_metrics(Path(folder) / "run")
    found, steps = trend(samples), max(line["step"] for line in lines)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    written = {"steps": steps, **found._asdict(), "samples": samples}
    write_whole(chosen.out, json.dumps(written) + "\n")
    print(
        f"{steps} steps in {chosen.minutes:g} minutes, {len(samples)} samples: after warm-up"
        f" {found.mean:.0f} MiB resident, slope {found.slope:+.1f} MiB an hour,"
        f" change {found.change:+.2%} from the first third to the last\nwritten: {chosen.out}"
    )


if __name__ == "__main__":
    main()
