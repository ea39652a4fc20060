"""Writes files in the exact formats of the published data sets, byte by byte."""

import gzip
import io
import struct
import tarfile

import numpy as np


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def random_split(seed, examples, shape, classes=10):
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(examples, *shape), dtype=np.uint8)
    return images, rng.integers(classes, size=examples, dtype=np.uint8)


def write_idx_files(folder, gzipped, examples=(12, 5), size=28, classes=10):
    """The four files of MNIST, every class among the first examples; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {}
    for seed, (prefix, count) in enumerate(zip(("train", "t10k"), examples, strict=True)):
        images, labels = random_split(seed, count, (size, size), classes)
        labels[:classes] = np.arange(classes)[:count]
        contents[prefix] = (images, labels)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content, path = idx_bytes(array), folder / f"{prefix}-{name}-ubyte"
            if gzipped:
                content, path = gzip.compress(content, mtime=0), path.with_suffix(".gz")
            path.write_bytes(content)
    return contents


def cifar_bytes(images, *label_columns):
    """Records of label bytes, then the red, green and blue planes."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.hstack([*(column[:, None] for column in label_columns), planes]).tobytes()


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
