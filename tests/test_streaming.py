"""Streams: batches addressed by step, processes, evaluation, damaged data, the way to devices."""

import collections
import itertools
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax.sharding import NamedSharding, PartitionSpec
from prepared import write_rows

from instahide_jax.data import streaming
from instahide_jax.data.prepare import encode_png
from instahide_jax.data.streaming import eval_batches, prefetch_to_device, stream_batches
from instahide_jax.data.tfds_io import open_split, read_example
from instahide_jax.errors import InputError

_N = 50  # examples of the set; the label of each is its index


def _picture(index):
    """An image of its own size, of one colour that tells the index."""
    return np.full((8 + index % 5, 8 + index % 7, 3), [index, 2 * index, 255 - index], np.uint8)


def _prepare(data_dir, encoded):
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=_N),
    }
    rows = [{"image": data, "label": label} for data, label in encoded]
    write_rows(data_dir, "pictures", features, {"train": rows})
    return str(data_dir)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    encoded = [(encode_png(_picture(index)), index) for index in range(_N)]
    return _prepare(tmp_path_factory.mktemp("pictures"), encoded)


@pytest.fixture(scope="module")
def split(data_dir):
    return open_split("pictures", "train", data_dir)


def _stream(split, **options):
    return stream_batches(split, **{"batch_size": 8, "seed": 3, "resize": 4} | options)


def _labels(batches, count):
    return [batch["label"].tolist() for batch in itertools.islice(batches, count)]


def _equal(one, other):
    return all(np.array_equal(one[key], other[key]) for key in ("image", "label"))


# stream_batches


def test_batches_are_scaled_examples_with_their_labels(split):
    for batch in itertools.islice(_stream(split), 20):
        assert batch["image"].shape == (8, 4, 4, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (8,)
        assert batch["label"].dtype == np.int32
        colours = np.stack([_picture(index)[:4, :4] for index in batch["label"]])
        np.testing.assert_array_equal(batch["image"], colours)


def test_every_epoch_is_another_permutation_and_drops_the_rest(split):
    per_epoch = _N // 8
    batches = _labels(_stream(split), 40 * per_epoch)
    epochs = np.reshape(batches, (40, per_epoch * 8)).tolist()
    assert all(len(set(epoch)) == 8 * per_epoch for epoch in epochs)  # none twice in an epoch
    assert len({tuple(epoch) for epoch in epochs}) == 40
    assert set().union(*epochs) == set(range(_N))  # the dropped ones differ from epoch to epoch
    # Under uniform shuffles an example is dropped in 2 of 50 epochs, and two epochs agree in one
    # place on average; a constant, shifted or reversed order would be far outside.
    uses = collections.Counter(itertools.chain(*epochs))
    assert min(uses.values()) >= 32
    agreements = [sum(map(int.__eq__, a, b)) for a, b in itertools.pairwise(epochs)]
    assert np.mean(agreements) < 2
    steps = collections.Counter(
        (b - a) % _N for epoch in epochs for a, b in itertools.pairwise(epoch)
    )
    assert max(steps.values()) < 0.06 * steps.total()


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 13, 30])
def test_starting_late_gives_the_later_batches(split, start):
    reference = list(itertools.islice(_stream(split), 33))
    for threads in (1, 5):
        resumed = itertools.islice(_stream(split, start_step=start, read_threads=threads), 3)
        assert all(map(_equal, resumed, reference[start : start + 3]))


def test_batches_are_the_same_in_another_run_of_the_program(split, data_dir):
    code = f"""
from instahide_jax.data.streaming import stream_batches
from instahide_jax.data.tfds_io import open_split
split = open_split("pictures", "train", {data_dir!r})
batches = stream_batches(split, batch_size=8, seed=3, start_step=11, resize=4)
print(next(batches)["label"].tolist())
"""  # ends with read threads at work, which must not keep the program alive
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.strip() == str(_labels(_stream(split, start_step=11), 1)[0])


@pytest.mark.parametrize("start", [0, 1_000, 10**9])
def test_a_late_start_skips_by_reading_nothing(split, monkeypatch, start):
    read = []

    def counted(*arguments):
        read.append(arguments)
        return read_example(*arguments)

    monkeypatch.setattr("instahide_jax.data.streaming.read_example", counted)
    batch = next(_stream(split, start_step=start, read_threads=1))
    assert len(set(batch["label"].tolist())) == 8
    assert 8 <= len(read) <= 6 * 8  # the batch, two after it, and what will be the next three


def test_batches_are_put_together_while_one_is_used(split, monkeypatch):
    put_together, whole = threading.Semaphore(0), streaming._together

    def counted(join, parts):
        if join is np.concatenate:
            put_together.release()
        return whole(join, parts)

    monkeypatch.setattr(streaming, "_together", counted)
    batches = _stream(split)
    next(batches)
    for _ in range(3):  # this one, one that is ready, and one that waits for its place
        assert put_together.acquire(timeout=60)


def test_a_stream_that_is_left_ends_its_threads(split):
    before = set(threading.enumerate())
    batches = _stream(split)
    next(batches)
    began = set(threading.enumerate()) - before
    assert len(began) > 1
    del batches
    for thread in began:
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_share_each_batch(split, count):
    shards = [
        itertools.islice(_stream(split, process_index=i, process_count=count, start_step=4), 5)
        for i in range(count)
    ]
    reference = itertools.islice(_stream(split, start_step=4), 5)
    for whole, *parts in zip(reference, *shards, strict=True):
        assert all(part["image"].shape == (8 // count, 4, 4, 3) for part in parts)
        joined = {key: np.concatenate([part[key] for part in parts]) for key in whole}
        assert _equal(joined, whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0: must be at least 1"),
        ({"batch_size": 51}, "batch_size is 51: must be at most the 50 examples"),
        ({"batch_size": 9, "process_count": 2}, "batch_size is 9: must be a multiple of the 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"start_step": -1}, "start_step is -1"),
        ({"resize": 0}, "resize is 0"),
        ({"read_threads": 0}, "read_threads is 0"),
        ({"process_count": 0}, "process_count is 0"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2"),
        ({"process_index": -1}, "process_index is -1"),
    ],
)
def test_arguments_out_of_range(split, options, words):
    with pytest.raises(InputError) as caught:  # at the call, not at the first batch
        _stream(split, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("threads", [1, 16])
@pytest.mark.parametrize("data", [b"no image", encode_png(_picture(20))[:-30]])
def test_damage_reaches_the_consumer_and_names_the_record(tmp_path, data, threads):
    encoded = [(encode_png(_picture(index)), index) for index in range(_N)]
    encoded[20] = (data, 20)
    split = open_split("pictures", "train", _prepare(tmp_path, encoded))
    message = r"pictures/1\.0\.0\[train\]: record 20 cannot be decoded"
    before = threading.active_count()
    for batches, whole in [
        (_stream(split, shuffle=False, read_threads=threads), 2),
        (eval_batches(split, batch_size=8, resize=4, read_threads=threads), 2),
    ]:
        assert _labels(batches, whole) == [list(range(8)), list(range(8, 16))]
        with pytest.raises(InputError, match=message):
            next(batches)
    del batches
    assert threading.active_count() - before <= 2 * threads
    devices = prefetch_to_device(_stream(split, shuffle=False), _sharding(), depth=1)
    assert len(list(itertools.islice(devices, 2))) == 2
    with pytest.raises(InputError, match=message):
        next(devices)


def test_label_out_of_range_names_the_record(tmp_path):
    encoded = [(encode_png(_picture(index)), -1 if index == 13 else index) for index in range(_N)]
    split = open_split("pictures", "train", _prepare(tmp_path, encoded))
    with pytest.raises(InputError, match=r"pictures.*label 13 is -1: must be in \[0, 50\)"):
        list(_stream(split, repeat=False, batch_size=_N))


# eval_batches


@pytest.mark.parametrize(("batch_size", "steps"), [(8, 7), (10, 5), (64, 1)])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_every_example_once_in_order(split, batch_size, steps, count):
    processes = [
        list(
            eval_batches(
                split, batch_size=batch_size, resize=4, process_index=i, process_count=count
            )
        )
        for i in range(count)
    ]
    assert [len(batches) for batches in processes] == [steps] * count
    joined = {
        key: np.concatenate([part[key] for parts in zip(*processes, strict=True) for part in parts])
        for key in ("image", "label", "valid")
    }
    assert joined["valid"].dtype == np.bool_
    assert joined["label"].dtype == np.int32
    assert joined["image"].shape == (steps * batch_size, 4, 4, 3)
    np.testing.assert_array_equal(joined["valid"], np.arange(steps * batch_size) < _N)
    np.testing.assert_array_equal(joined["label"][:_N], np.arange(_N))
    np.testing.assert_array_equal(joined["image"][:_N, 0, 0, 0], np.arange(_N))
    assert not joined["label"][_N:].any()
    assert not joined["image"][_N:].any()


def test_evaluation_checks_its_arguments(split):
    with pytest.raises(InputError, match="batch_size is 0"):
        eval_batches(split, batch_size=0, resize=4)
    with pytest.raises(InputError, match="multiple of the 3 processes"):
        eval_batches(split, batch_size=8, resize=4, process_count=3)


# prefetch_to_device


def _sharding():
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    return NamedSharding(mesh, PartitionSpec("data"))


def test_prefetch_gives_the_same_batches_on_the_devices(split):
    sharding = _sharding()
    reference = list(_stream(split, repeat=False))
    with jax.transfer_guard("disallow"):  # as around the train loop: no hidden transfers
        batches = list(prefetch_to_device(reference, sharding))
    assert len(batches) == 6
    for batch, expected in zip(batches, reference, strict=True):
        assert _equal(batch, expected)
        assert all(batch[key].sharding == sharding for key in ("image", "label"))
        assert len(batch["image"].addressable_shards) == jax.device_count()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prefetch_is_depth_batches_ahead(depth):
    taken = []

    def source():
        for number in range(10):
            taken.append(number)
            yield {"x": np.full(8, number)}

    batches = prefetch_to_device(source(), _sharding(), depth)
    assert taken == []  # nothing is read before the first batch is asked for
    for number, batch in enumerate(batches):
        assert batch["x"].tolist() == [number] * 8
        assert len(taken) == min(number + depth, 10)


def test_prefetch_checks_depth_at_once():
    with pytest.raises(InputError, match="depth is 0"):
        prefetch_to_device([], _sharding(), depth=0)
