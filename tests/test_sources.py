"""Data sets and pools as configurations: what they load, hold out and refuse."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import labelled, pixels, write_tfds

from instahide_jax.data import sources
from instahide_jax.data.embedded import make_arrays
from instahide_jax.data.prepare import prepare
from instahide_jax.data.sources import (
    Dataset,
    Mnist5k,
    PoolConfig,
    PoolFile,
    PoolHeldOut,
    PoolTfds,
    Statistics,
    TfdsImages,
    TfdsStream,
    hold_out,
    measure_statistics,
    round_statistics,
)
from instahide_jax.errors import InputError

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared sets: colour, greyscale, and one whose two splits differ."""
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root, "colour", {"train": labelled(60), "test": labelled(20, seed=1)})
    grey = (8, 8, 1)
    write_tfds(root, "grey", {"train": labelled(40, grey), "test": labelled(8, grey, seed=1)})
    return str(root)


def _dataset(arrays):
    shape = arrays.images.shape[1:]
    return Dataset(arrays, arrays, arrays, Statistics((0.5,), (0.5,)), shape, arrays.identity)


def _rows(*arrays):
    return sorted(image.tobytes() for part in arrays for image in part.images)


# Held out


@pytest.mark.parametrize("count", [1, 4, 10, 39])
def test_hold_out_is_complete_disjoint_and_takes_from_every_class_its_share(count):
    labels = np.array([0] * 20 + [1] * 12 + [2] * 8)[np.random.default_rng(0).permutation(40)]
    arrays = make_arrays(pixels(40, 4, 4, 1), labels, 3, "abc")
    kept, held = hold_out(arrays, count)
    assert (len(kept.labels), len(held.labels)) == (40 - count, count)
    assert _rows(kept, held) == _rows(arrays)
    shares = np.bincount(held.labels, minlength=3) - count * np.array([20, 12, 8]) / 40
    assert np.abs(shares).max() < 1
    where = [arrays.images.tolist().index(image.tolist()) for image in held.images]
    assert where == sorted(where)
    np.testing.assert_array_equal(arrays.labels[where], held.labels)
    assert len({arrays.identity, kept.identity, held.identity}) == 3
    again = hold_out(arrays, count)
    assert (again[0].identity, again[1].identity) == (kept.identity, held.identity)


def test_hold_out_of_nothing_and_too_much():
    arrays = labelled(8)
    kept, held = hold_out(arrays, 0)
    assert (kept.identity, len(held.labels)) == (arrays.identity, 0)
    for count in (-1, 8, 9):
        with pytest.raises(InputError, match=rf"{count} examples .* of 8; hold out at most 7"):
            hold_out(arrays, count)


# Statistics


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_numpy(channels):
    images = pixels(50, 6, 5, channels) // np.arange(1, channels + 1, dtype=np.uint8)
    found = measure_statistics(images)
    np.testing.assert_allclose(found.mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)
    floats = measure_statistics((images / 255).astype(np.float32))
    np.testing.assert_allclose(floats, found, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8", ">f4", "g"])
@pytest.mark.parametrize("layout", ["rows", "memory map", "every other", "channels first"])
def test_statistics_of_several_blocks(monkeypatch, tmp_path, dtype, layout):
    """Whatever a block holds: two images and a bit, or less than one."""
    images = pixels(23, 6, 5, 3)
    images = (images if dtype == "u1" else images / 255).astype(dtype)
    if layout == "memory map":
        np.save(tmp_path / "images.npy", images)
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
    elif layout == "every other":
        images = images[::2, ::-1]
    elif layout == "channels first":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    exact = images.astype(np.longdouble) / (255 if dtype == "u1" else 1)
    expected = exact.mean(axis=(0, 1, 2)), exact.std(axis=(0, 1, 2))
    for block in (75, 7):
        monkeypatch.setattr(sources, "_BLOCK", block)
        found = measure_statistics(images)
        np.testing.assert_allclose(found, np.asarray(expected, float), rtol=1e-14)
        assert all(type(value) is float for value in (*found.mean, *found.std))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_take_little_memory(dtype, channels):
    """Of 100 MB; it was 800 MB more for a grey set."""
    size = 100_000_000 // (100 * 100 * channels * np.dtype(dtype).itemsize)
    images = np.zeros((size, 100, 100, channels), dtype)
    images[::2] = 1
    tracemalloc.start()
    measure_statistics(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


PIXELS = pixels(4, 6, 5, 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images have dtype object: convert to uint8 or float32"),
        (PIXELS.tolist(), "images have dtype int64: convert to uint8 or float32, after scaling"),
        (PIXELS[..., 0], r"images have shape \(4, 6, 5\): expected 4 dimensions"),
        (PIXELS.reshape(-1), r"images have shape \(120,\): expected 4 dimensions"),
        (PIXELS[:0], "the image set is empty"),
        (np.where(PIXELS > 9, PIXELS, np.nan), "image 1 holds NaN or infinite pixels"),
        (np.ma.array(PIXELS), "images are a masked array"),
        (PIXELS * 1j, "images have dtype complex128"),
    ],
)
def test_statistics_of_no_images(images, message):
    with pytest.raises(InputError, match=message) as caught:
        measure_statistics(images)
    assert "\n" not in str(caught.value)


def test_statistics_of_a_list_of_floats():
    floats = (PIXELS / 255).astype(np.float32)
    assert measure_statistics([*floats]) == measure_statistics(floats)


@pytest.mark.parametrize("value", [51, np.float32(0.1)])
def test_a_constant_channel_standardises_to_zero(value):
    dtype = np.uint8 if value == 51 else np.float32
    mean = 0.2 if value == 51 else float(value)
    assert measure_statistics(np.full((1003, 3, 7, 1), value, dtype)) == ((mean,), (1.0,))


@pytest.mark.parametrize(
    ("mean", "std", "rounded"),
    [
        (0.13066047740239478, 0.3081078038564622, (0.13, 0.31)),
        (0.4913996898739353, 0.24703223246328434, (0.49, 0.25)),
        (0.50349, 0.0996, (0.503, 0.1)),
        (0.50349, 0.0123, (0.503, 0.012)),
        (0.2, 1.0, (0.2, 1.0)),
        (-12345.678, 256.4, (-12350.0, 260.0)),
        (0.0, 0.5, (0.0, 0.5)),
    ],
)
def test_rounded_statistics_have_two_digits_and_standardise_alike(mean, std, rounded):
    made = round_statistics(Statistics((mean, mean), (std, std)))
    assert made == ((rounded[0],) * 2, (rounded[1],) * 2)
    assert abs(made.mean[0] - mean) <= std / 20
    assert abs(made.std[0] / std - 1) <= 0.05


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (Statistics((0.5,), (0.0,)), "mean is 0.5 and std 0.0; give finite numbers, and a std abo"),
        (Statistics((0.5,), (-1.0,)), "mean is 0.5 and std -1.0; give finite"),
        (Statistics((0.5,), (float("nan"),)), "std nan; give finite"),
        (Statistics((float("inf"),), (0.5,)), "mean is inf and std 0.5; give finite"),
        (Statistics((0.5, 0.5), (0.5,)), "statistics are a Statistics that is no array"),
        (None, "statistics have dtype object"),
        ((0.5, 0.5), r"statistics have shape \(2,\); give a mean and a std per channel"),
    ],
)
def test_statistics_that_are_none(statistics, message):
    with pytest.raises(InputError, match=message) as caught:
        round_statistics(statistics)
    assert "\n" not in str(caught.value)


# Data sets


def test_mnist5k():
    data = Mnist5k(validation=200).load()
    assert [len(s.labels) for s in (data.train, data.validation, data.test)] == [3800, 200, 1000]
    np.testing.assert_array_equal(np.bincount(data.validation.labels), 20)
    np.testing.assert_array_equal(np.bincount(data.test.labels), 100)
    assert data.image_shape == (28, 28, 1)
    np.testing.assert_allclose(data.statistics, measure_statistics(data.train.images))
    assert not set(_rows(data.train)) & set(_rows(data.validation, data.test))
    given = Mnist5k(mean=(0.1,), std=(0.3,)).load()
    assert given.statistics == ((0.1,), (0.3,))
    assert given.identity == data.identity == data.train.identity


@pytest.mark.parametrize(("name", "channels", "size"), [("colour", 3, 60), ("grey", 1, 40)])
def test_tfds_in_memory(folder, name, channels, size):
    data = TfdsImages(name=name, validation=12, data_dir=folder).load()
    assert data.train.images.shape == (size - 12, 8, 8, channels)
    assert data.image_shape == (8, 8, channels)
    assert len(data.statistics.mean) == channels
    np.testing.assert_array_equal(np.bincount(data.validation.labels), 3)
    expected = labelled(size, (8, 8, channels))
    assert _rows(data.train, data.validation) == _rows(expected)
    other = TfdsImages(name=name, validation=13, data_dir=folder).load()
    assert other.identity != data.identity


def test_tfds_stream(folder):
    config = TfdsStream(
        mean=(0.5,),
        std=(0.5,),
        name="colour",
        train="train[:40]",
        validation="train[40:]",
        test="test",
        resize=6,
        data_dir=folder,
    )
    data = config.load()
    sizes = [s.num_examples for s in (data.train, data.validation, data.test)]
    assert sizes == [40, 20, 20]
    assert data.image_shape == (6, 6, 3)
    assert data.identity == data.train.identity


@pytest.mark.parametrize("validation", [0, -3, 60])
def test_impossible_validation(folder, validation):
    with pytest.raises(InputError, match=f"{validation}"):
        TfdsImages(name="colour", validation=validation, data_dir=folder).load()


def test_a_single_class_is_refused(tmp_path):
    """Also where more are named; encrypting such data is another matter."""
    images = pixels(6, *SHAPE)
    zeros = np.zeros(6, int)
    single, named = (make_arrays(images, zeros, len(names), names) for names in ("a", "ab"))
    both = make_arrays(images, np.arange(6) % 2, 2, "ab")
    write_tfds(tmp_path, "single", {"train": single, "test": single})
    write_tfds(tmp_path, "named", {"train": named, "test": both})
    common = {"mean": (0.5,), "std": (0.5,), "data_dir": str(tmp_path)}
    for config in (
        TfdsImages(name="single", validation=2, **common),
        TfdsImages(name="named", validation=2, **common),
        TfdsStream(name="single", train="train[:4]", validation="train[4:]", test="test", **common),
    ):
        with pytest.raises(InputError, match=r"^all training images are of the class 'a'; give"):
            config.load()
    TfdsImages(name="named", train="test", validation=2, **common).load()


def test_splits_of_different_shapes(folder, monkeypatch):
    arrays = {"train": labelled(40), "test": labelled(8, (8, 6, 3))}
    monkeypatch.setattr(
        "instahide_jax.data.sources.load_arrays", lambda name, split, *_: arrays[split]
    )
    with pytest.raises(InputError, match=r"training images are \(8, 8, 3\), test .* \(8, 6, 3\)"):
        TfdsImages(validation=4).load()


# Public pools


def test_held_out_pool_is_no_longer_trained_on():
    arrays = labelled(40)
    pool, data, identity = PoolHeldOut(12).load(_dataset(arrays), SHAPE)
    assert pool.shape == (12, *SHAPE)
    public = [image.tobytes() for image in pool]
    assert sorted(_rows(data.train) + public) == _rows(arrays)
    np.testing.assert_array_equal(np.bincount(data.train.labels), 7)
    assert data.identity == data.train.identity != arrays.identity
    assert identity != data.identity
    assert data.test is data.validation is arrays


def test_pool_of_another_data_set(folder):
    arrays = labelled(40)
    pool, data, identity = PoolTfds(name="colour", data_dir=folder).load(_dataset(arrays), SHAPE)
    np.testing.assert_array_equal(pool, labelled(60).images)
    assert data.train is arrays
    assert identity == labelled(60).identity


def test_pool_of_a_file(tmp_path):
    images = pixels(9, *SHAPE)
    np.save(tmp_path / "pool.npy", images)
    config = PoolFile(str(tmp_path / "pool.npy"))
    pool, _, identity = config.load(_dataset(labelled(8)), SHAPE)
    np.testing.assert_array_equal(pool, images)
    np.save(tmp_path / "pool.npy", images[::-1])
    assert config.load(_dataset(labelled(8)), SHAPE)[2] != identity


def test_pools_of_another_shape(folder, tmp_path):
    data = _dataset(labelled(40))
    np.save(tmp_path / "pool.npy", pixels(9, 8, 8, 1))
    pools = [
        PoolTfds(name="grey", data_dir=folder),
        PoolHeldOut(4),
        PoolFile(str(tmp_path / "pool.npy")),
    ]
    for pool in pools:
        with pytest.raises(InputError, match=r"holds images of .*\(.*; "):
            pool.load(data, (6, 6, 3))


def test_nothing_is_held_out_of_a_stream():
    data = _dataset(labelled(8))._replace(train=object())
    with pytest.raises(InputError, match="held out of data in memory only; use PoolFile"):
        PoolHeldOut(2).load(data, SHAPE)


def test_bases_say_what_is_missing():
    with pytest.raises(TypeError, match="PoolConfig does not define load"):
        PoolConfig().load(_dataset(labelled(8)), SHAPE)


def test_sets_of_mixed_sizes_train_in_memory_with_a_resize(tmp_path):
    """So do pools; without `resize` the message names it."""
    for number, (height, width) in enumerate([(8, 8), (9, 12), (20, 7), (8, 8)] * 6):
        folder = tmp_path / "mixed" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{number:02}.png")
    root = str(tmp_path / "tfds")
    prepare("mixed_sizes", tmp_path / "mixed", tmp_path / "tfds")
    data = TfdsImages(name="mixed_sizes", validation=4, data_dir=root)
    with pytest.raises(InputError, match=r"give a size to scale all to \(resize in a config, "):
        data.load()
    dataset = replace(data, resize=6).load()
    assert dataset.image_shape == (6, 6, 3)
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 22
    assert dataset.identity != replace(data, resize=7).load().identity
    pool = PoolTfds("mixed_sizes", data_dir=root)
    with pytest.raises(InputError, match="give a size to scale all to"):
        pool.load(dataset, dataset.image_shape)
    images, _, _ = replace(pool, resize=6).load(dataset, dataset.image_shape)
    assert images.shape == (22, 6, 6, 3)
    with pytest.raises(InputError, match=r"scale them with public_pool\.resize"):
        replace(pool, resize=5).load(dataset, dataset.image_shape)
