"""The parsers under attack, small valid files of each, and what may not happen when one reads a file."""

import gzip
import signal
import time
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from decoupled import DataError
from decoupled.data.cifar_binary import Layout, read_cifar
from decoupled.data.idx import read_idx_split
from tests.data.formats import cifar_bytes, idx_bytes, random_split
from tests.data.malformed import tar_entry, unpacked_size

SECONDS = 1
# Peak memory may be ten times what a file holds, and this: pieces, messages, the tracer of lines.
MOST_TIMES, BESIDES = 10, 1 << 18
_CLASSES = {1: 10, 2: 100}


class Parser(NamedTuple):
    """A way to read a file.

    Attributes:
      name: for people.
      files: valid ones, as bytes.
      read: path of a file -> Splits; the path is that of the attacked file, others lie beside it.
      file_name: that it must have.
      most_unpacked: bytes that a gzipped one may unpack to: the bound that the parser states.
    """

    name: str
    files: list[bytes]
    read: Callable[[Path], tuple]
    file_name: str
    most_unpacked: int


class Outcome(NamedTuple):
    """What happened to a file.

    Attributes:
      accepted: it was read.
      seconds: of the processor that this took.
      times: the peak of memory, less `BESIDES`, divided by what the file holds.
      problem: what may not happen, or "".
    """

    accepted: bool
    seconds: float
    times: float
    problem: str


def all_parsers(folder: Path) -> list[Parser]:
    """Every parser, with the valid files that some need beside the attacked one written to `folder`."""
    return [
        *(_idx(folder, part, gzipped) for part in ("images", "labels") for gzipped in (False, True)),
        *(_cifar(folder, label_bytes, archived) for label_bytes in (1, 2) for archived in (False, True)),
    ]


def attack(parser: Parser, content: bytes, folder: Path, watch=None) -> Outcome:
    """Reads `content` as a file; `watch` is a context manager around the reading alone.

    What goes wrong must do so twice: now and then the interpreter makes a table of its own larger.
    """
    outcome = _attempt(parser, content, folder, watch)
    return _attempt(parser, content, folder, watch) if outcome.problem else outcome


def _attempt(parser: Parser, content: bytes, folder: Path, watch) -> Outcome:
    path = folder / parser.file_name
    path.write_bytes(content)
    inside = unpacked_size(content, parser.most_unpacked)
    accepted, problem = False, ""
    tracemalloc.start()
    start = time.process_time()
    try:
        with _limited(10 * SECONDS), watch or _limited(10 * SECONDS):
            splits = parser.read(path)
        accepted = True
    except DataError as error:
        if "\n" in str(error) or str(folder) not in str(error):
            problem = f"a message that is not one line with the file's name: {str(error)!r}"
    except (Exception, _HangError) as error:
        problem = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    times = max(peak - BESIDES, 0) / max(len(content), inside, 1)
    if accepted:
        problem = "".join(_ill_formed(split) for split in splits)
    if times > MOST_TIMES:
        problem = f"{peak} bytes of memory for {len(content)} of the file, {inside} unpacked"
    if seconds > SECONDS:
        problem = problem or f"{seconds:.1f} s"
    return Outcome(accepted, seconds, times, problem)


def _ill_formed(split) -> str:
    images, labels = split
    well = images.ndim == 4 and images.dtype == np.uint8 and images.size > 0
    well = well and labels.dtype == np.int32 and labels.shape == images.shape[:1]
    return "" if well and 0 <= labels.min() <= labels.max() < 100 else f"{images.shape}, {labels.shape}"


class _HangError(BaseException):
    pass


@contextmanager
def _limited(seconds):
    def ring(signal_number, frame):
        raise _HangError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _idx(folder, part, gzipped) -> Parser:
    images, labels = random_split(0, 6, (5, 4))
    whole = {"images": images, "labels": labels}
    for name, array in whole.items():
        (folder / f"valid-{name}").write_bytes(idx_bytes(array))

    def read(path):
        paths = {**{name: folder / f"valid-{name}" for name in whole}, part: path}
        return (read_idx_split(paths["images"], paths["labels"], num_classes=10),)

    # The large one is next to nothing once gzipped.
    files = [idx_bytes(whole[part]), idx_bytes(np.zeros((6, 300, 300)[: whole[part].ndim], np.uint8))]
    if gzipped:
        files = [gzip.compress(file, 1, mtime=0) for file in files]
    kind = ", gzipped" if gzipped else ""
    return Parser(f"IDX {part}{kind}", files, read, f"{part}.gz" if gzipped else part, 1 << 26)


def _cifar(folder, label_bytes, archived) -> Parser:
    images, labels = random_split(0, 3, (32, 32, 3), _CLASSES[label_bytes])
    columns = [labels] * label_bytes
    layout = Layout({"train.bin": 2}, {"test.bin": 1}, label_bytes, _CLASSES[label_bytes])
    records = cifar_bytes(images, *columns)
    size = len(records) // 3
    train, test = records[: 2 * size], records[2 * size :]
    name = {1: "CIFAR-10", 2: "CIFAR-100"}[label_bytes]
    if archived:
        end = b"\0" * 1024
        tar = b"".join(
            tar_entry(b"batches/" + n, c) for n, c in ((b"train.bin", train), (b"test.bin", test))
        )
        files = [
            gzip.compress(tar + end, 1, mtime=0),
            gzip.compress(tar_entry(b"readme", b"") + tar, 1, mtime=0),
        ]
        most = len(records) + (1 << 20)
        return Parser(f"{name} archive", files, lambda path: read_cifar(path, layout), "cifar.tar.gz", most)
    inner = folder / name
    inner.mkdir(exist_ok=True)
    (inner / "test.bin").write_bytes(test)
    files = [train, bytes(len(train))]
    return Parser(f"{name} folder", files, lambda path: read_cifar(inner, layout), f"{name}/train.bin", 0)
