"""Batches of large TFDS splits, decoded by threads while the device computes.

Batches are addressed by step: which examples batch t holds is a function of (seed, t) alone, so a
run that resumes at step t sees what it would have seen, and nothing has to be skipped or saved.
"""

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import grain.experimental
import jax
import numpy as np

from instahide_jax.data.tfds_io import Split, read_example
from instahide_jax.errors import InputError

# More threads than cores, since some wait for storage; but not so many that they hinder each other.
READ_THREADS = min(16, 2 * (os.cpu_count() or 1))
_SEED_LIMIT = 2**32  # of grain's shuffle
_FOREVER = 2**48  # steps; their parts can still be counted in 64 bits
# One task of a thread. Handing a task over costs as much as decoding a small image.
_ROWS_AT_A_TIME = 8


def stream_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    resize: int,
    shuffle: bool = True,
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    read_threads: int = READ_THREADS,
) -> Iterator[dict[str, np.ndarray]]:
    """Shuffled batches {"image": uint8 [b, resize, resize, C], "label": int32 [b]}.

    b = batch_size / process_count. Every epoch is a new permutation of the split, cut into
    `num_examples // batch_size` batches; the examples left over are dropped for that epoch. So
    no batch spans two epochs and none holds an example twice.

    Guarantees: batch t is a function of (split, batch_size, seed, t, resize), whatever
    `start_step`, `read_threads` and earlier runs were (for one version of grain). The batches of
    all processes, concatenated in the order of `process_index`, are the batch of a single
    process. Starting at a late step costs nothing.

    Args:
      split: of `open_split`; sets without a fixed number of channels are read as RGB.
      batch_size: examples per step over all processes.
      seed: in [0, 2^32), of the order of the examples; not a secret.
      start_step: number of the first batch.
      resize: shorter side is scaled to this, then the centre is cropped to a square.
      shuffle: False keeps the order of the split.
      repeat: False ends after the last batch of the first epoch.
      process_index: which of the contiguous blocks of every batch to read.
      process_count: number of blocks.
      read_threads: threads that read, decode and scale.

    Raises:
      InputError: an argument out of its range; while iterating, a corrupt record or a label out
        of range, with data set, split and index of the record.
    """
    block = _block(split, batch_size, process_index, process_count, resize, read_threads)
    steps_per_epoch = split.num_examples // batch_size
    if steps_per_epoch == 0:
        raise InputError(
            f"batch_size is {batch_size}: must be at most the {split.num_examples} examples of "
            f"{split.name}"
        )
    if not 0 <= seed < _SEED_LIMIT:
        raise InputError(f"seed is {seed}: must be in [0, {_SEED_LIMIT})")
    if start_step < 0:
        raise InputError(f"start_step is {start_step}: must be at least 0")
    order = grain.MapDataset.range(split.num_examples)
    if shuffle:
        order = order.seed(seed).shuffle()
    order = order.repeat()  # index e * num_examples + i: place i of epoch e, itself reshuffled

    def load(step: int, row: int) -> dict[str, Any]:
        epoch, batch = divmod(step, steps_per_epoch)
        place = epoch * split.num_examples + batch * batch_size + row
        return _example(split, order[place], resize)

    end = _FOREVER if repeat else steps_per_epoch
    return _batches(load, range(start_step, end), block, read_threads)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    resize: int,
    process_index: int = 0,
    process_count: int = 1,
    read_threads: int = READ_THREADS,
) -> Iterator[dict[str, np.ndarray]]:
    """The split once, in order: "image" and "label" as above, and "valid": bool [b].

    The last batch is filled up with zero images of label 0 whose "valid" is False; all processes
    get the same number of batches, also one whose block holds no example at all.

    Arguments and errors as in `stream_batches`.
    """
    block = _block(split, batch_size, process_index, process_count, resize, read_threads)
    steps = -(-split.num_examples // batch_size)
    channels = split.image_shape[2] or 3

    def load(step: int, row: int) -> dict[str, Any]:
        index = step * batch_size + row
        if index < split.num_examples:
            return {**_example(split, index, resize), "valid": np.bool_(True)}
        image = np.zeros((resize, resize, channels), np.uint8)
        return {"image": image, "label": np.int32(0), "valid": np.bool_(False)}

    return _batches(load, range(steps), block, read_threads)


def joined(streams: Sequence[Iterator[dict[str, np.ndarray]]]) -> Iterator[dict[str, np.ndarray]]:
    """Batches of several streams, those of each step one after the other in one batch."""
    if len(streams) == 1:
        return streams[0]
    return (_together(np.concatenate, parts) for parts in zip(*streams, strict=True))


def prefetch_to_device(
    batches: Iterable[Any], sharding: jax.sharding.Sharding, depth: int = 2
) -> Iterator[Any]:
    """Put batches on the devices before they are used, so that steps do not wait for copies.

    Args:
      batches: trees of arrays [b, ...], of this process.
      sharding: of every array of the global batch, along its first axis; with several processes
        the blocks of the processes are joined in the order of the mesh.
      depth: batches on the device at a time, at least 1; 2 copies one while one is used.

    Yields:
      Trees of global `jax.Array`s.

    Raises:
      InputError: depth < 1. What `batches` raises comes through unchanged, up to depth - 1
        batches early.
    """
    if depth < 1:
        raise InputError(f"depth is {depth}: must be at least 1")
    return _prefetched(iter(batches), sharding, depth)


def _prefetched(
    batches: Iterator[Any], sharding: jax.sharding.Sharding, depth: int
) -> Iterator[Any]:
    def put(batch: Any) -> Any:
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    queue = collections.deque(map(put, itertools.islice(batches, depth)))
    while queue:
        yield queue.popleft()
        queue.extend(map(put, itertools.islice(batches, 1)))


def _block(
    split: Split,
    batch_size: int,
    process_index: int,
    process_count: int,
    resize: int,
    read_threads: int,
) -> range:
    """Rows of the global batch that this process reads."""
    for name, value in [
        ("batch_size", batch_size),
        ("process_count", process_count),
        ("resize", resize),
        ("read_threads", read_threads),
    ]:
        if value < 1:
            raise InputError(f"{name} is {value}: must be at least 1")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index is {process_index}: must be in [0, {process_count})")
    if batch_size % process_count:
        raise InputError(
            f"batch_size is {batch_size}: must be a multiple of the {process_count} processes"
        )
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)


def _example(split: Split, index: int, resize: int) -> dict[str, Any]:
    image, label = read_example(split, index, resize)
    return {"image": image, "label": np.int32(label)}


def _batches(
    load: Callable[[int, int], dict[str, Any]], steps: range, block: range, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the examples load(step, row) of the rows of a block, in order.

    Threads load some rows at a time, and one more thread puts them together, so that a batch is
    ready when the last one has been used.
    """
    parts = [block[i : i + _ROWS_AT_A_TIME] for i in range(0, len(block), _ROWS_AT_A_TIME)]

    def load_part(index: int) -> dict[str, np.ndarray]:
        step, part = divmod(index, len(parts))
        return _together(np.stack, [load(step, row) for row in parts[part]])

    indices = grain.MapDataset.range(steps.start * len(parts), steps.stop * len(parts))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, len(parts)))
    batches = (
        indices.map(load_part)
        .to_iter_dataset(options)
        .batch(len(parts), drop_remainder=True, batch_fn=partial(_together, np.concatenate))
    )
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))


def _together(
    join: Callable[[list[Any]], np.ndarray], parts: Sequence[dict[str, Any]]
) -> dict[str, np.ndarray]:
    return {name: join([part[name] for part in parts]) for name in parts[0]}
