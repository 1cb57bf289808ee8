"""TFDS splits in memory: decoded; what is damaged, deep, transparent or of an unknown class."""

import json

import numpy as np
import pytest
from odd_images import DEEP, SEVERAL, SQUARE, TRANSPARENT
from tiny_splits import TRAIN, copied, opened, pixels, prepare, prepared

from instahide_jax.data import tfds_arrays
from instahide_jax.data.embedded import make_arrays
from instahide_jax.data.prepare import encode_png
from instahide_jax.data.streaming import eval_batches
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import open_split, read_example
from instahide_jax.errors import InputError

__all__ = ["copied", "prepared"]  # fixtures


def test_load_arrays_is_the_split_in_order(prepared, capsys):
    arrays = load_arrays("tiny", "train", str(prepared))
    np.testing.assert_array_equal(arrays.images, [image for image, _ in TRAIN])
    np.testing.assert_array_equal(arrays.labels, [label for _, label in TRAIN])
    assert (arrays.images.dtype, arrays.labels.dtype) == (np.uint8, np.int32)
    assert (arrays.num_classes, arrays.class_names) == (3, ("cat", "dog", "eel"))
    assert arrays.identity == make_arrays(arrays.images, arrays.labels, 3, "abc").identity
    assert capsys.readouterr().err == ""  # a progress bar is for loads longer than a second


def test_load_arrays_keeps_the_channel_of_greyscale(prepared):
    images = load_arrays("mnist", "train", str(prepared)).images
    np.testing.assert_array_equal(images, pixels(5, 28, 28, 1))


def test_load_arrays_in_threads_gives_the_same(prepared, monkeypatch):
    alone = load_arrays("tiny", "train", str(prepared))
    monkeypatch.setattr(tfds_arrays, "_THREADS_FROM", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert load_arrays("tiny", "train", str(prepared)).identity == alone.identity


def test_load_arrays_shows_progress_of_a_long_load(prepared, monkeypatch, capsys):
    real = tfds_arrays.progress_bar
    monkeypatch.setattr(
        tfds_arrays,
        "progress_bar",
        lambda *facts, **options: real(*facts, **options | {"delay": 0, "leave": True}),
    )
    load_arrays("tiny", "train", str(prepared))
    assert "300/300" in capsys.readouterr().err


def test_load_arrays_of_many_shapes_takes_a_size(tmp_path):
    examples = [(pixels(6, 8, 3), 0), (pixels(6, 8, 3), 1), (pixels(7, 8, 3), 2)]
    prepare(tmp_path, "tiny", {"train": examples}, shape=(None, None, 3))
    with pytest.raises(InputError, match=r"image 2 has shape \(7, 8, 3\), image 0 .*a size"):
        load_arrays("tiny", "train", str(tmp_path))
    split = open_split("tiny", "train", str(tmp_path))
    arrays = load_arrays("tiny", "train", str(tmp_path), 5)
    assert arrays.images.shape == (split.num_examples, 5, 5, 3)
    for index, image in enumerate(arrays.images):
        np.testing.assert_array_equal(image, read_example(split, index, 5)[0])
    with pytest.raises(InputError, match="size is 0: must be at least 1"):
        load_arrays("tiny", "train", str(tmp_path), 0)


@pytest.mark.parametrize("index", [0, 3, 299])
def test_corrupt_image_names_its_record(tmp_path, index):
    for number, data in enumerate([b"no image", encode_png(pixels(6, 8, 3))[:-40]]):
        examples = [*TRAIN]
        examples[index] = (data, 0)
        root = tmp_path / str(number)
        prepare(root, "tiny", {"train": examples}, shape=(6, 8, 3))
        with pytest.raises(InputError, match=rf"tiny/1\.0\.0\[train\]: record {index} cannot be"):
            load_arrays("tiny", "train", str(root))


def test_corrupt_record_file_names_a_record(copied):
    record = next(copied.glob("*train*"))
    content = bytearray(record.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 8] = bytes(8)
    record.write_bytes(content)
    with pytest.raises(InputError, match=r"tiny/1\.0\.0\[train\]: record \d+ cannot be decoded"):
        load_arrays("tiny", "train", str(copied.parent.parent))
    record.write_bytes(b"")
    with pytest.raises(InputError, match=r"300 of 300 records cannot be decoded: 0 \(.*, 9 \("):
        load_arrays("tiny", "train", str(copied.parent.parent))


@pytest.mark.parametrize("threads_from", [1, 96 * 96])
def test_all_corrupt_images_are_named(tmp_path, monkeypatch, threads_from):
    monkeypatch.setattr(tfds_arrays, "_THREADS_FROM", threads_from)
    examples = [*TRAIN]
    for index in range(2, 26, 2):
        examples[index] = (b"no image" if index % 4 else DEEP["16-bit colour png"], 0)
    prepare(tmp_path, "tiny", {"train": examples}, shape=(6, 8, 3))
    with pytest.raises(InputError) as caught:
        load_arrays("tiny", "train", str(tmp_path))
    message = str(caught.value)
    assert "tiny/1.0.0[train]: 12 of 300 records cannot be decoded: 2 (not a file of" in message
    assert ", 4 (it has more than 8 bits per channel: 16 bits, RGB), 6 (not a file" in message
    assert message.endswith(
        ") and 2 more: prepare the data set anew with `instahide prepare ... --overwrite`"
    )


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_refused_and_not_cut(tmp_path, name):
    prepare(tmp_path, "tiny", {"train": [(DEEP[name], 0)]}, shape=(None, None, 3))
    with pytest.raises(InputError, match=r"record 0 cannot be decoded \(it has more than 8 bits"):
        load_arrays("tiny", "train", str(tmp_path))
    with pytest.raises(InputError, match=r"record 0 cannot be decoded \(it has more than 8 bits"):
        next(eval_batches(open_split("tiny", "train", str(tmp_path)), batch_size=1, resize=4))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_becomes_white(tmp_path, channels):
    examples = [(data, 0) for data in TRANSPARENT.values()]
    prepare(tmp_path, "tiny", {"train": examples}, shape=(None, None, channels))
    for image in load_arrays("tiny", "train", str(tmp_path)).images:
        np.testing.assert_array_equal(image, np.repeat(SQUARE[..., None], channels, 2))


def test_pictures_that_are_not_taken_over_are_told(tmp_path, caplog):
    several = [(data, 0) for data in SEVERAL.values()]
    examples = [(encode_png(pixels(8, 8, 3)), 0), *several, (TRANSPARENT["rgba png"], 1)]
    prepare(tmp_path, "tiny", {"train": examples}, shape=(None, None, 3))
    load_arrays("tiny", "train", str(tmp_path), 4)
    assert caplog.messages == [
        f"tiny/1.0.0[train]: {len(several)} images with more than one picture, of which the first "
        "is taken: " + ", ".join(str(1 + i) for i in range(len(several))),
        "tiny/1.0.0[train]: 1 image with transparent parts, which are white now: "
        f"{1 + len(several)}",
    ]
    caplog.clear()
    load_arrays("tiny", "train[:1]", str(tmp_path))
    assert not caplog.messages


def test_record_file_cut_short_names_file_and_record(copied):
    file = next(copied.glob("*train*"))
    content = file.read_bytes()
    block = 1 << 16  # cut at its end, the file still counts its records, but all are empty
    assert len(content) > block
    for size in (block, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(InputError) as caught:
            load_arrays("tiny", "train", str(copied.parent.parent))
        message = str(caught.value)
        assert message.startswith(
            f"{file}, tiny/1.0.0[train]: 300 of 300 records cannot be decoded: 0 ("
        )
        assert message.endswith(
            ") and 290 more: prepare the data set anew with `instahide prepare ... --overwrite`"
        )
        with pytest.raises(InputError, match=r"tiny/1\.0\.0\[train\[9:\]\]: record 3 cannot be"):
            read_example(opened(copied, split="train[9:]"), 3)


def test_labels_out_of_range(copied, tmp_path):
    features = json.loads((copied / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "2"
    (copied / "features.json").write_text(json.dumps(features))
    (copied / "label.labels.txt").unlink()
    with pytest.raises(InputError, match=r"label 2 is 2: must be in \[0, 2\)"):
        load_arrays("tiny", "test", str(copied.parent.parent))
    with pytest.raises(InputError, match=r"tiny/1\.0\.0\[test\]: label 2 is 2"):
        read_example(opened(copied, split="test"), 2)
    unknown = [(pixels(6, 8, 3), 0), (pixels(6, 8, 3), -1)]  # how TFDS marks a hidden label
    prepare(tmp_path, "hidden", {"test": unknown}, shape=(6, 8, 3))
    with pytest.raises(InputError, match=r"label 1 is -1: must be in \[0, 3\)"):
        load_arrays("hidden", "test", str(tmp_path))
    with pytest.raises(InputError, match=r"hidden/1\.0\.0\[test\]: label 1 is -1"):
        read_example(open_split("hidden", "test", str(tmp_path)), 1)
