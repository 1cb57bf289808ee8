"""TFDS splits: found, described, decoded; what is refused; never with TensorFlow."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from odd_images import DEEP, SEVERAL, SQUARE, TRANSPARENT
from PIL import Image

from instahide_jax.data import tfds_arrays
from instahide_jax.data.embedded import make_arrays
from instahide_jax.data.streaming import eval_batches
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import open_split, read_example, reading
from instahide_jax.errors import InputError


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _prepare(data_dir, name, splits, *, shape, version="1.0.0", configs=(), features=None):
    """Prepare {split: [(image bytes or pixels, label)]}, in that order, without TensorFlow."""
    if features is None:
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
        }

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config) for config in configs]  # noqa: RUF012

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            is_encoded = isinstance(features["image"], tfds.features.Image)
            for index, (image, label) in enumerate(examples):
                encode = is_encoded and not isinstance(image, bytes)
                yield index, {"image": _png(image) if encode else image, "label": label}

    Tiny.name = name
    for config in configs or [None]:
        builder = Tiny(data_dir=data_dir, config=config, file_format="array_record")
        builder.download_and_prepare()
    return data_dir / name / version


_TRAIN = [(image, i * i % 3) for i, image in enumerate(_pixels(300, 6, 8, 3))]
_TEST = [(image, i % 3) for i, image in enumerate(_pixels(4, 6, 8, 3, seed=1))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared sets that tests only read; those that change files copy them first."""
    root = tmp_path_factory.mktemp("prepared")
    _prepare(root, "tiny", {"train": _TRAIN, "test": _TEST}, shape=(6, 8, 3))
    digits = [(image, i % 3) for i, image in enumerate(_pixels(5, 28, 28, 1))]
    _prepare(root, "mnist", {"train": digits}, shape=(28, 28, 1), version="3.0.1")
    return root


@pytest.fixture
def copied(prepared, tmp_path):
    """A private copy of the prepared sets: the path of "tiny"."""
    shutil.copytree(prepared, tmp_path / "copied")
    return tmp_path / "copied" / "tiny" / "1.0.0"


def _open(folder, name="tiny", split="train"):
    return open_split(name, split, str(folder.parent.parent))


# What open_split finds


def test_split_describes_and_gives_access(prepared):
    split = open_split("tiny", "train", str(prepared))
    assert (split.num_examples, len(split.source)) == (300, 300)
    assert (split.num_classes, split.class_names) == (3, ("cat", "dog", "eel"))
    assert split.image_shape == (6, 8, 3)
    assert split.name == "tiny/1.0.0[train]"
    assert split.source[7]["image"] == _png(_TRAIN[7][0])  # bytes: nothing decoded yet
    for index in (0, 7, 299):
        image, label = read_example(split, index)
        np.testing.assert_array_equal(image, _TRAIN[index][0])
        assert label == _TRAIN[index][1]
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
    np.testing.assert_array_equal(read_example(split, 0)[0], _TRAIN[10][0])
    arrays = load_arrays("tiny", "test+train[299:]", str(prepared))
    np.testing.assert_array_equal(arrays.images[[0, -1]], [_TEST[0][0], _TRAIN[-1][0]])


def test_newest_version_unless_one_is_named(tmp_path):
    for version in ("2.0.0", "10.0.0", "2.1.0"):
        _prepare(tmp_path, "tiny", {"train": _TEST}, shape=(6, 8, 3), version=version)
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
    folder = _prepare(
        tmp_path, "tiny", {"train": _TEST}, shape=(6, 8, 3), configs=("small", "large")
    ).parent
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
    _prepare(tmp_path, "tiny", {"train": _TEST}, shape=None, features=features)
    arrays = load_arrays("tiny", "train", str(tmp_path))
    np.testing.assert_array_equal(arrays.images, [image for image, _ in _TEST])
    assert arrays.class_names == ("0", "1", "2")


# identity


def test_split_identity_covers_content_and_not_the_place(prepared, copied):
    original = open_split("tiny", "train", str(prepared)).identity
    assert original.startswith("tiny/1.0.0[train] 300 ")
    assert _open(copied).identity == original
    assert _open(copied, split="train[:299]").identity != original
    assert _open(copied, split="test").identity != original
    seen = {original}
    record = next(copied.glob("*train*"))
    record.write_bytes(record.read_bytes() + b"\0")
    seen.add(_open(copied).identity)
    for name in ("dataset_info.json", "features.json"):
        file = copied / name
        file.write_text(file.read_text() + "\n")
        seen.add(_open(copied).identity)
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
        ("tiny", "train[:5", ["no split 'train[:5'", "train, test"]),
        ("tiny", "train[:9999]", ["no split 'train[:9999]'", "train, test"]),
        ("tiny", "train[5:5]", ["is empty", "train, test"]),
        ("tiny", "train[90%:10%]", ["is empty", "train, test"]),
    ],
)
def test_wrong_names_and_splits(prepared, name, split, words):
    with pytest.raises(InputError) as caught:
        open_split(name, split, str(prepared))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_wrong_data_dirs(tmp_path):
    with pytest.raises(InputError, match="must be a local folder"):
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
        _open(copied)


def _edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_other_formats_and_damaged_descriptions(copied):
    _edit(copied / "dataset_info.json", '"array_record"', '"tfrecord"')
    with pytest.raises(InputError, match="stored as tfrecord, expected array_record"):
        _open(copied)
    _edit(copied / "dataset_info.json", '"fileFormat": "tfrecord",', "")  # of sets before 2022
    with pytest.raises(InputError, match="stored as tfrecord, expected array_record"):
        _open(copied)
    kept = (copied / "dataset_info.json").read_text()
    (copied / "dataset_info.json").write_text('{"name": ')
    with pytest.raises(InputError, match=r"description in .* cannot be decoded .*prepare tiny"):
        _open(copied)
    (copied / "dataset_info.json").write_text(kept)
    (copied / "features.json").write_text("3")
    with pytest.raises(InputError, match=r"description in .* cannot be decoded .*prepare tiny"):
        _open(copied)


def test_missing_record_file(copied):
    next(copied.glob("*train*")).unlink()
    assert _open(copied, split="test").num_examples == 4
    with pytest.raises(InputError, match="is missing: run `instahide prepare tiny --overwrite`"):
        _open(copied)


# load_arrays


def test_load_arrays_is_the_split_in_order(prepared, capsys):
    arrays = load_arrays("tiny", "train", str(prepared))
    np.testing.assert_array_equal(arrays.images, [image for image, _ in _TRAIN])
    np.testing.assert_array_equal(arrays.labels, [label for _, label in _TRAIN])
    assert (arrays.images.dtype, arrays.labels.dtype) == (np.uint8, np.int32)
    assert (arrays.num_classes, arrays.class_names) == (3, ("cat", "dog", "eel"))
    assert arrays.identity == make_arrays(arrays.images, arrays.labels, 3, "abc").identity
    assert capsys.readouterr().err == ""  # a progress bar is for loads longer than a second


def test_load_arrays_keeps_the_channel_of_greyscale(prepared):
    images = load_arrays("mnist", "train", str(prepared)).images
    np.testing.assert_array_equal(images, _pixels(5, 28, 28, 1))


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
    examples = [(_pixels(6, 8, 3), 0), (_pixels(6, 8, 3), 1), (_pixels(7, 8, 3), 2)]
    _prepare(tmp_path, "tiny", {"train": examples}, shape=(None, None, 3))
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
    for number, data in enumerate([b"no image", _png(_pixels(6, 8, 3))[:-40]]):
        examples = [*_TRAIN]
        examples[index] = (data, 0)
        root = tmp_path / str(number)
        _prepare(root, "tiny", {"train": examples}, shape=(6, 8, 3))
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
    examples = [*_TRAIN]
    for index in range(2, 26, 2):
        examples[index] = (b"no image" if index % 4 else DEEP["16-bit colour png"], 0)
    _prepare(tmp_path, "tiny", {"train": examples}, shape=(6, 8, 3))
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
    _prepare(tmp_path, "tiny", {"train": [(DEEP[name], 0)]}, shape=(None, None, 3))
    with pytest.raises(InputError, match=r"record 0 cannot be decoded \(it has more than 8 bits"):
        load_arrays("tiny", "train", str(tmp_path))
    with pytest.raises(InputError, match=r"record 0 cannot be decoded \(it has more than 8 bits"):
        next(eval_batches(open_split("tiny", "train", str(tmp_path)), batch_size=1, resize=4))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_becomes_white(tmp_path, channels):
    examples = [(data, 0) for data in TRANSPARENT.values()]
    _prepare(tmp_path, "tiny", {"train": examples}, shape=(None, None, channels))
    for image in load_arrays("tiny", "train", str(tmp_path)).images:
        np.testing.assert_array_equal(image, np.repeat(SQUARE[..., None], channels, 2))


def test_pictures_that_are_not_taken_over_are_told(tmp_path, caplog):
    several = [(data, 0) for data in SEVERAL.values()]
    examples = [(_png(_pixels(8, 8, 3)), 0), *several, (TRANSPARENT["rgba png"], 1)]
    _prepare(tmp_path, "tiny", {"train": examples}, shape=(None, None, 3))
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
            read_example(_open(copied, split="train[9:]"), 3)


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


def test_labels_out_of_range(copied, tmp_path):
    features = json.loads((copied / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "2"
    (copied / "features.json").write_text(json.dumps(features))
    (copied / "label.labels.txt").unlink()
    with pytest.raises(InputError, match=r"label 2 is 2: must be in \[0, 2\)"):
        load_arrays("tiny", "test", str(copied.parent.parent))
    with pytest.raises(InputError, match=r"tiny/1\.0\.0\[test\]: label 2 is 2"):
        read_example(_open(copied, split="test"), 2)
    unknown = [(_pixels(6, 8, 3), 0), (_pixels(6, 8, 3), -1)]  # how TFDS marks a hidden label
    _prepare(tmp_path, "hidden", {"test": unknown}, shape=(6, 8, 3))
    with pytest.raises(InputError, match=r"label 1 is -1: must be in \[0, 3\)"):
        load_arrays("hidden", "test", str(tmp_path))
    with pytest.raises(InputError, match=r"hidden/1\.0\.0\[test\]: label 1 is -1"):
        read_example(open_split("hidden", "test", str(tmp_path)), 1)


def test_tensorflow_is_never_imported(prepared, tmp_path):
    (tmp_path / "tensorflow.py").write_text("")  # importable, so that an attempt would show
    code = f"""
import sys
sys.path.append({str(tmp_path)!r})
from instahide_jax.data.streaming import stream_batches
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
