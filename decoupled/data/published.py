"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100: where each is published and how it is read."""

import hashlib
import os

import numpy as np

from decoupled.data.cifar_binary import Layout, read_cifar
from decoupled.data.dataset import Dataset
from decoupled.data.find import Source, find_or_download
from decoupled.data.idx import read_idx_split
from decoupled.errors import DataError

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

MNIST = Source(
    name="mnist",
    url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    sha256={
        "train-images-idx3-ubyte.gz": ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        "t10k-images-idx3-ubyte.gz": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    },
    system_folders=("/usr/share/datasets/mnist",),
    hint="Offline, --config=configs/digits.py trains the same way on data that needs no download.",
)

FASHION_MNIST = Source(
    name="fashion_mnist",
    url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    sha256={
        "train-images-idx3-ubyte.gz": ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        "train-labels-idx1-ubyte.gz": ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        "t10k-images-idx3-ubyte.gz": ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        "t10k-labels-idx1-ubyte.gz": ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    },
    system_folders=("/usr/share/datasets/fashion-mnist",),
    hint="On Debian, `apt-get install dataset-fashion-mnist` puts it where it is looked for.",
)

# Unpacked, without the header, sha256: files are called alike in both, and packed in many ways.
_TRAINING_LABELS = {
    "mnist": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "fashion_mnist": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
}

_CIFAR_HINT = "Offline, --config=configs/cifar.py:quick runs the same model on a small generated data set."

CIFAR10 = Source(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/",
    sha256={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    system_folders=(),
    hint=_CIFAR_HINT,
)

CIFAR100 = Source(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/",
    sha256={
        "cifar-100-binary.tar.gz": ("58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec")
    },
    system_folders=(),
    hint=_CIFAR_HINT,
)

CIFAR10_LAYOUT = Layout(
    train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    test={"test_batch.bin": 10_000},
    label_bytes=1,
    num_classes=10,
)
CIFAR100_LAYOUT = Layout({"train.bin": 50_000}, {"test.bin": 10_000}, label_bytes=2, num_classes=100)


def idx_dataset(source: Source, data_dir: str | os.PathLike[str] = "", download: bool = True) -> Dataset:
    """MNIST or Fashion-MNIST, from IDX files, gzipped or not.

    There may be fewer examples than were published, but of the same size and of all ten classes.

    Raises:
      DataError: the files are missing or damaged, or hold something else.
    """
    candidates = [(f"{name}.gz", name) for name in _IDX_FILES]
    paths = find_or_download(source, candidates, data_dir, download)
    train, test = (read_idx_split(*pair, num_classes=10) for pair in (paths[:2], paths[2:]))
    labels = hashlib.sha256(train.labels.astype(np.uint8).tobytes()).hexdigest()
    for name, digest in _TRAINING_LABELS.items():
        if name != source.name and labels == digest:
            raise DataError(f"{paths[1].parent} holds {name}, not {source.name}")
    for path, split in ((paths[0], train), (paths[2], test)):
        if split.images.shape[1:] != (28, 28, 1):
            height, width, _ = split.images.shape[1:]
            raise DataError(
                f"{path}: its images are {height}x{width}, but those of {source.name} are 28x28"
            )
    absent = sorted(set(range(10)) - set(train.labels.tolist()))
    if absent:
        raise DataError(
            f"{paths[1]}: no example of class {', '.join(map(str, absent))}, but {source.name} has the"
            " classes 0 to 9"
        )
    return Dataset(source.name, 10, train, test, str(paths[0].parent))


def cifar10(
    data_dir: str | os.PathLike[str] = "", download: bool = True, layout: Layout = CIFAR10_LAYOUT
) -> Dataset:
    """CIFAR-10, from its binary archive or the folder it unpacks to."""
    names = ("cifar-10-binary.tar.gz", "cifar-10-batches-bin")
    return _cifar(CIFAR10, names, data_dir, download, layout)


def cifar100(
    data_dir: str | os.PathLike[str] = "", download: bool = True, layout: Layout = CIFAR100_LAYOUT
) -> Dataset:
    """CIFAR-100 with its 100 fine labels, from its binary archive or the folder it unpacks to."""
    names = ("cifar-100-binary.tar.gz", "cifar-100-binary")
    return _cifar(CIFAR100, names, data_dir, download, layout)


def _cifar(
    source: Source,
    names: tuple[str, str],
    data_dir: str | os.PathLike[str],
    download: bool,
    layout: Layout,
) -> Dataset:
    (path,) = find_or_download(source, [names], data_dir, download)
    return Dataset(source.name, layout.num_classes, *read_cifar(path, layout), str(path))
