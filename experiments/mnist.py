"""The data set that the papers used, where it is at hand."""

from decoupled import data
from decoupled.data import Dataset
from decoupled.errors import DataError


def mnist() -> Dataset:
    """MNIST; where it is not, Fashion-MNIST, which has the same size: the page says which it was.

    Both are looked for where systems put them and in the cache, not downloaded.

    Raises:
      DataError: neither is there.
    """
    try:
        return data.idx_dataset(data.MNIST, "", False)
    except DataError:
        return data.idx_dataset(data.FASHION_MNIST, "", False)
