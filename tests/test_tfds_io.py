"""TFDS splits: found, described; what is refused; never with TensorFlow."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import write_rows
from tiny_splits import TEST, TRAIN, copied, opened, prepare, prepared

from instahide_jax.data.prepare import encode_png
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import open_split, read_example, reading
from instahide_jax.errors import InputError

__all__ = ["copied", "prepared"]  # fixtures


# What open_split finds


def test_split_describes_and_gives_access(prepared):
    split = open_split("tiny", "train", str(prepared))
    assert (split.num_examples, len(split.source)) == (300, 300)
    assert (split.num_classes, split.class_names) == (3, ("cat", "dog", "eel"))
    assert split.image_shape == (6, 8, 3)
    assert split.name == "tiny/1.0.0[train]"
    assert split.source[7]["image"] == encode_png(TRAIN[7][0])  # bytes: nothing decoded yet
    for index in (0, 7, 299):
        image, label = read_example(split, index)
        np.testing.assert_array_equal(image, TRAIN[index][0])
        assert label == TRAIN[index][1]
    assert read_example(split, 7, 4)[0].shape == (4, 4, 3)


def test_official_name_prepared_without_tensorflow(prepared, monkeypatch):
    split = open_split("mnist", "train", str(prepared))
    reference = tfds.data_source("mnist", split="train", data_dir=prepared)
    for index, record in enumerate(reference):
        image, label = read_example(split, index)
        np.testing.assert_array_equal(image, record["image"])
        assert label == record["label"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert open_split("mnist", "train").identity == split.identity


def test_slices_of_splits(prepared):
    split = open_split("tiny", "train[10:20]", str(prepared))
    assert split.num_examples == 10
    np.testing.assert_array_equal(read_example(split, 0)[0], TRAIN[10][0])
    arrays = load_arrays("tiny", "test+train[299:]", str(prepared))
    np.testing.assert_array_equal(arrays.images[[0, -1]], [TEST[0][0], TRAIN[-1][0]])


def test_newest_version_unless_one_is_named(tmp_path):
    for version in ("2.0.0", "10.0.0", "2.1.0"):
        prepare(tmp_path, "tiny", {"train": TEST}, shape=(6, 8, 3), version=version)
    names = {
        request: open_split(request, "train", str(tmp_path)).name
        for request in ("tiny", "tiny:2.0.0", "tiny:2.*.*", "tiny:*.*.*")
    }
    assert names == {
        "tiny": "tiny/10.0.0[train]",
        "tiny:2.0.0": "tiny/2.0.0[train]",
        "tiny:2.*.*": "tiny/2.1.0[train]",
        "tiny:*.*.*": "tiny/10.0.0[train]",
    }
    with pytest.raises(InputError, match=r"version 3\.0\.0 .*available are 2\.0\.0, 2\.1\.0, 10"):
        open_split("tiny:3.0.0", "train", str(tmp_path))


def test_configs(tmp_path):
    for config in (configs := ("small", "large")):
        options = {"config": config, "configs": configs}
        prepare(tmp_path, "tiny", {"train": TEST}, shape=(6, 8, 3), **options)
    folder = tmp_path / "tiny"
    root = str(tmp_path)
    assert open_split("tiny/large", "train", root).name == "tiny/large/1.0.0[train]"
    assert open_split("tiny/large:1.0.0", "train", root).name == "tiny/large/1.0.0[train]"
    assert open_split("tiny", "train", root).name == "tiny/small/1.0.0[train]"  # TFDS's default
    with pytest.raises(InputError, match="name one of tiny/large, tiny/small"):
        open_split("tiny/huge", "train", root)
    (folder / ".config" / "metadata.json").unlink()
    with pytest.raises(InputError, match="name one of tiny/large, tiny/small"):
        open_split("tiny", "train", root)
    shutil.rmtree(folder / "small")
    assert open_split("tiny", "train", root).name == "tiny/large/1.0.0[train]"
    with pytest.raises(InputError, match="name one of tiny/large"):
        open_split("tiny/small", "train", root)


def test_plain_tensors_are_images_too(tmp_path):
    features = {
        "image": tfds.features.Tensor(shape=(6, 8, 3), dtype=np.uint8),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    rows = [{"image": image, "label": label} for image, label in TEST]
    write_rows(tmp_path, "tiny", features, {"train": rows})
    arrays = load_arrays("tiny", "train", str(tmp_path))
    np.testing.assert_array_equal(arrays.images, [image for image, _ in TEST])
    assert arrays.class_names == ("0", "1", "2")


# identity


def test_split_identity_covers_content_and_not_the_place(prepared, copied):
    original = open_split("tiny", "train", str(prepared)).identity
    assert original.startswith("tiny/1.0.0[train] 300 ")
    assert opened(copied).identity == original
    assert opened(copied, split="train[:299]").identity != original
    assert opened(copied, split="test").identity != original
    seen = {original}
    record = next(copied.glob("*train*"))
    record.write_bytes(record.read_bytes() + b"\0")
    seen.add(opened(copied).identity)
    for name in ("dataset_info.json", "features.json"):
        file = copied / name
        file.write_text(file.read_text() + "\n")
        seen.add(opened(copied).identity)
    assert len(seen) == 4


# What is refused


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        (
            "cifar10",
            "train",
            ["not prepared", "`instahide prepare cifar10 --data-dir ", "--source PATH"],
        ),
        ("mnist:9.9.9", "train", ["version 9.9.9", "3.0.1"]),
        ("tinny", "train", ["unknown", "did you mean 'tiny'?", "--source PATH"]),
        ("cifar_10", "train", ["unknown", "did you mean 'cifar10'?"]),
        ("qqqqqqqq", "train", ["unknown", "prepared are mnist, tiny"]),
        ("../tiny", "train", ["'../tiny'", "NAME/CONFIG"]),
        ("", "train", ["NAME/CONFIG"]),
        ("tiny", "valid", ["no split 'valid'", "train, test"]),
        ("tiny", "all[:10%]", ["no split 'all[:10%]'", "train, test"]),
        ("tiny", "train[:5", ["no split 'train[:5'", "train, test"]),
        ("tiny", "train[:9999]", ["beyond the 300 records of train: take fewer", "train[:300]"]),
        ("tiny", "train+test[-5:]", ["beyond the 4 records of test: take fewer, at most test[:4]"]),
        ("tiny", "train[:110%]", ["beyond the 300 records of train"]),
        ("tiny", "tran[:9999]", ["no split 'tran[:9999]'", "train, test"]),
        ("tiny", "train[5:5]", ["is empty", "train, test"]),
        ("tiny", "train[90%:10%]", ["is empty", "train, test"]),
    ],
)
def test_wrong_names_and_splits(prepared, name, split, words):
    with pytest.raises(InputError) as caught:
        open_split(name, split, str(prepared))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_wrong_data_dirs(tmp_path):
    with pytest.raises(InputError, match=r"^data_dir is gs://bucket/data, an address; name a loc"):
        open_split("tiny", "train", "gs://bucket/data")
    with pytest.raises(InputError, match="prepared are none"):
        open_split("qqqqqqqq", "train", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"image": tfds.features.Image(shape=(6, 8, 3))}, "has features image: needs"),
        ({"label": tfds.features.ClassLabel(num_classes=3)}, "has features label: needs"),
        (
            {
                "image": tfds.features.Tensor(shape=(6, 8), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=3),
            },
            "expected uint8",
        ),
        (
            {
                "image": tfds.features.Tensor(shape=(6, 8, 3), dtype=np.float32),
                "label": tfds.features.ClassLabel(num_classes=3),
            },
            "expected uint8",
        ),
        (
            {
                "image": tfds.features.Tensor(shape=(6, 8, 2), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=3),
            },
            "has 2 channels",
        ),
        (
            {
                "image": tfds.features.Image(shape=(6, 8, 3)),
                "label": tfds.features.Scalar(np.int64),
            },
            "expected classes",
        ),
    ],
)
def test_sets_without_image_and_label(copied, features, words):
    tfds.features.FeaturesDict(features).save_config(copied)
    with pytest.raises(InputError, match=words):
        opened(copied)


def _edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_other_formats_and_damaged_descriptions(copied):
    _edit(copied / "dataset_info.json", '"array_record"', '"tfrecord"')
    with pytest.raises(InputError, match="stored as tfrecord, expected array_record"):
        opened(copied)
    _edit(copied / "dataset_info.json", '"fileFormat": "tfrecord",', "")  # of sets before 2022
    with pytest.raises(InputError, match="stored as tfrecord, expected array_record"):
        opened(copied)
    kept = (copied / "dataset_info.json").read_text()
    (copied / "dataset_info.json").write_text('{"name": ')
    with pytest.raises(InputError, match=r"description in .* cannot be decoded .*prepare tiny"):
        opened(copied)
    (copied / "dataset_info.json").write_text(kept)
    (copied / "features.json").write_text("3")
    with pytest.raises(InputError, match=r"description in .* cannot be decoded .*prepare tiny"):
        opened(copied)


@pytest.mark.parametrize("split", ["train+train", "train[:60%]+test+train[50%:]"])
def test_records_twice(copied, split):
    with pytest.raises(InputError, match=r"takes records twice.*name every record once"):
        opened(copied, split=split)
    assert opened(copied, split="train[50%:]+test+train[:50%]").num_examples > 4


def test_missing_record_file(copied):
    next(copied.glob("*train*")).unlink()
    assert opened(copied, split="test").num_examples == 4
    with pytest.raises(InputError, match="is missing: run `instahide prepare tiny --overwrite`"):
        opened(copied)


def test_the_files_of_records(prepared):
    train, test = (next((prepared / "tiny" / "1.0.0").glob(f"*{s}*")) for s in ("train", "test"))
    source = open_split("tiny", "train[290:]+test", str(prepared)).source
    for (start, stop), expected in {
        (9, 10): f"{train}, SET: record 9 cannot be decoded (cause): ",
        (10, 11): f"{test}, SET: record 10 cannot be decoded (cause): ",
        (9, 12): f"{train}, {test}, SET: records 9 to 11 cannot be decoded (cause): ",
    }.items():
        with pytest.raises(InputError) as caught, reading(source, "SET", start, stop):
            raise ValueError("cause")
        assert str(caught.value).startswith(expected)


def test_tensorflow_is_never_imported(prepared, tmp_path):
    (tmp_path / "tensorflow.py").write_text("")  # importable, so that an attempt would show
    code = f"""
import sys
sys.path.append({str(tmp_path)!r})
from instahide_jax.data.streaming import stream_batches
from instahide_jax.data.prepare import encode_png
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import (open_split)
from instahide_jax.errors import InputError
load_arrays("mnist", "train", {str(prepared)!r})
next(stream_batches(open_split("tiny", "train", {str(prepared)!r}), batch_size=4, seed=0, resize=4))
try:
    open_split("cifar10", "train", {str(prepared)!r})
except InputError:
    print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
