"""A whole split of a prepared TFDS data set in memory."""

import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from instahide_jax.data.embedded import Arrays, cause_of, check_size, make_arrays
from instahide_jax.data.image_format import BACKGROUND
from instahide_jax.data.tfds_io import (
    ANEW,
    DamagedRecordError,
    Split,
    decode_example,
    open_split,
    read_example,
    record_files,
)
from instahide_jax.errors import InputError, how_many, listed
from instahide_jax.metrics import progress, progress_bar

_log = logging.getLogger(__name__)
_THREADS_FROM = 96 * 96  # pixels of an image from which several threads decode faster


def load_arrays(
    name: str, split: str, data_dir: str | None = None, size: int | None = None
) -> Arrays:
    """Decode a whole TFDS split into memory, images uint8 [N, H, W, C], in the order of the split.

    Shows a progress bar when it takes longer than a second, and warns of images whose files hold
    more than is taken over. Arguments as for `open_split`; `size` as for `decode_image`.

    Raises:
      InputError: whatever `open_split` finds, corrupt images (with up to ten of their record
        numbers), images of different shapes without `size`, or a label out of range.
    """
    check_size(size)
    opened = open_split(name, split, data_dir)
    try:
        return _decode_all(opened, size)
    except DamagedRecordError as error:
        raise InputError(_name_damaged(opened, error)) from error


def _decode_all(opened: Split, size: int | None) -> Arrays:
    total = opened.num_examples
    shape = read_example(opened, 0, size)[0].shape
    try:
        images = np.empty((total, *shape), np.uint8)
    except MemoryError as error:
        raise InputError(
            f"{opened.name} needs {total * math.prod(shape) / 1e9:.0f} GB of memory: take a part, "
            "such as train[:10%], or stream it (TfdsStream)"
        ) from error
    labels = np.empty(total, np.int32)
    several, transparent = np.zeros(total, bool), np.zeros(total, bool)

    def decode(start: int) -> int:
        for index in range(start, stop := min(start + 256, total)):
            decoded, labels[index] = decode_example(opened, index, size)
            image, several[index], transparent[index] = decoded
            if image.shape != shape:
                raise InputError(
                    f"{opened.name}: image {index} has shape {image.shape}, image 0 {shape}: give "
                    "a size to scale all to (resize in a config, --size of instahide encrypt)"
                )
            images[index] = image
        return stop - start

    # Threads pay for large images only: decoding a small one is mostly interpreter time, for
    # which threads compete (measured: 32 x 32 is 1.5 times as fast without, 224 x 224 with them).
    workers = min(4, os.cpu_count() or 1) if shape[0] * shape[1] >= _THREADS_FROM else 1
    with (
        ThreadPoolExecutor(workers) as pool,
        progress_bar(total, opened.name, " images", delay=2, leave=False) as bar,
    ):
        for count in pool.map(decode, range(0, total, 256)):
            bar.update(count)
    for found, what in (
        (several, "with more than one picture, of which the first is taken"),
        (transparent, f"with transparent parts, which are {BACKGROUND} now"),
    ):
        if found.any():
            records = [opened.record(int(index)) for index in np.flatnonzero(found)]
            which = how_many(len(records), "image")
            _log.warning("%s: %s %s: %s", opened.name, which, what, listed(records))
    return make_arrays(images, labels, opened.num_classes, opened.class_names)


def _name_damaged(opened: Split, first: DamagedRecordError) -> str:
    """The complaint about all records that cannot be decoded, if there are more than `first`."""
    numbers: list[int] = []
    causes: list[str] = []
    total = opened.num_examples
    for index in progress(range(total), "checking", total, " images"):
        try:
            read_example(opened, index)
        except DamagedRecordError as error:
            numbers.append(opened.record(index))
            causes.append(cause_of(error.__cause__ or error))
        except InputError:  # another fault, which is reported when this one is mended
            continue
    if len(numbers) < 2:
        return str(first)
    named = listed([f"{n} ({cause})" for n, cause in zip(numbers, causes, strict=True)])
    files = record_files(opened.source, numbers[0], numbers[-1] + 1)
    return (
        f"{files}, {opened.name}: {len(numbers)} of {total} records cannot be decoded: "
        f"{named}: {ANEW}"
    )
