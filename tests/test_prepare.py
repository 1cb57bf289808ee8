"""instahide_jax.data.prepare: what TFDS reads afterwards, and what is left when it goes wrong."""

import gzip
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from original_files import (
    CIFAR10_NAMES,
    CIFAR100_SIZES,
    COARSE,
    FASHION_TIMES,
    FINE,
    SIZES,
    cifar10_binary,
    cifar100_binary,
    cifar_images,
    labels_of,
    random_images,
    small_sizes,  # noqa: F401 (a fixture: tiny data sets in all tests)
    write_folder,
    write_mnist,
)
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from instahide_jax.data import prepare as prepare_module
from instahide_jax.data.prepare import encode_png, prepare, published_sums
from instahide_jax.data.prepared import build_or_compare
from instahide_jax.data.tfds_io import open_split
from instahide_jax.errors import InputError


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny Fashion-MNIST whose sums count as the published ones."""
    sums = write_mnist(tmp_path / "source", FASHION_TIMES)
    monkeypatch.setattr(prepare_module, "published_sums", lambda name: sums)
    return tmp_path / "source"


def records(name: str, split: str, data_dir: Path) -> list[dict[str, Any]]:
    source = tfds.data_source(name, split=split, data_dir=data_dir)
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize(
    ("name", "version", "labels"),
    [
        ("mnist", "3.0.1", {"label": 10}),
        ("fashion_mnist", "3.0.1", {"label": 10}),
        ("cifar10", "3.0.2", {"label": 10}),
        ("cifar100", "3.0.2", {"label": 100, "coarse_label": 20}),
    ],
)
def test_tfds_publishes_what_is_written(name: str, version: str, labels: dict[str, int]) -> None:
    # The versions and features that the README promises; a new TFDS may bring others.
    builder = tfds.builder_cls(name)
    assert str(builder.VERSION) == version
    features = builder(data_dir="unused").info.features
    assert {k: f.num_classes for k, f in features.items() if k.endswith("label")} == labels
    assert ("id" in features) == name.startswith("cifar")
    assert published_sums(name).keys() == (
        {f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"}
        if name.startswith("cifar")
        else {
            f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")
        }
    )


def test_fashion_mnist(fashion: Path, tmp_path: Path) -> None:
    result = prepare("fashion_mnist", fashion, tmp_path / "tfds")
    path = tmp_path / "tfds" / "fashion_mnist" / "3.0.1"
    assert (result.path, result.sizes, result.built) == (path, SIZES, True)
    assert str(result) == (
        f"wrote fashion_mnist 3.0.1 (train 40, test 20) at {path}; "
        "SHA-256 of all 4 files as published"
    )
    info = tfds.builder("fashion_mnist", data_dir=tmp_path / "tfds").info
    assert info.features["label"].names[-1] == "Ankle boot"
    assert info.file_format.value == "array_record"
    for seed, (split, size) in enumerate(SIZES.items()):
        found = records("fashion_mnist", split, tmp_path / "tfds")
        by_image = {r["image"].tobytes(): r["label"] for r in found}
        images = random_images(seed, size, 28, 28)
        assert found[0]["image"].shape == (28, 28, 1)
        assert by_image == {
            image.tobytes(): label for image, label in zip(images, labels_of(size), strict=True)
        }
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name: str, tmp_path: Path) -> None:
    files = cifar10_binary() if name == "cifar10" else cifar100_binary()
    write_folder(tmp_path / "source", files)
    prepare(name, tmp_path / "source", tmp_path / "tfds")
    features = tfds.builder(name, data_dir=tmp_path / "tfds").info.features
    # The classes' names come with the files, as in TFDS.
    fine = name == "cifar100"
    assert features["label"].names == (FINE if fine else CIFAR10_NAMES)
    if fine:
        assert features["coarse_label"].names == COARSE
    for seed, (split, size) in enumerate((CIFAR100_SIZES if fine else SIZES).items()):
        found = sorted(records(name, split, tmp_path / "tfds"), key=lambda record: record["id"])
        assert [r["id"].decode() for r in found] == [f"{split}_{i:05d}" for i in range(size)]
        np.testing.assert_array_equal([r["image"] for r in found], cifar_images(seed, size))
        assert [r["label"] for r in found] == labels_of(size, 100 if fine else 10).tolist()
        if fine:
            assert [r["coarse_label"] for r in found] == labels_of(size, 20).tolist()


def test_equal_files_give_equal_records(fashion: Path, tmp_path: Path) -> None:
    def digests(root: Path) -> dict[str, str]:
        files = (root / "fashion_mnist" / "3.0.1").glob("*.array_record*")
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    for root in (tmp_path / "a", tmp_path / "b"):
        prepare("fashion_mnist", fashion, root)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 2


def test_png_is_lossless() -> None:
    for shape in ((5, 7, 1), (5, 7, 3)):
        image = random_images(0, *shape)
        feature = tfds.features.Image(shape=shape)
        np.testing.assert_array_equal(feature.decode_example_np(encode_png(image)), image)


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `root`, with time and bytes."""
    return {
        str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in root.rglob("*")
        if p.is_file()
    }


def test_a_prepared_data_set_is_left_alone(fashion: Path, tmp_path: Path) -> None:
    root = tmp_path / "tfds"
    first = prepare("fashion_mnist", fashion, root)
    before = contents(root)
    for source in (fashion, None):
        again = prepare("fashion_mnist", source, root)
        assert (again.path, again.sizes, again.built) == (first.path, SIZES, False)
        assert str(again).startswith("already prepared: fashion_mnist 3.0.1 (train 40, test 20)")
    assert contents(root) == before


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_unpacked_idx_files(name: str, fashion: Path, tmp_path: Path) -> None:
    """Also with the names that some programs give them."""
    for number, file in enumerate(sorted(fashion.iterdir())):
        unpacked = file.name.removesuffix(".gz")
        unpacked = unpacked.replace("-idx", ".idx") if number % 2 else unpacked
        (fashion / unpacked).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    result = prepare(name, fashion, tmp_path / "tfds")
    (note,) = result.notes
    assert result.sizes == SIZES
    assert note.startswith("counts checked; no sums are published for train-images-idx3-ubyte, tr")


def test_what_is_there_but_unreadable_is_refused(fashion: Path, tmp_path: Path) -> None:
    result = prepare("fashion_mnist", fashion, tmp_path / "tfds")
    info = result.path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=rf"^{result.path} holds the data set as tfrecord, which"):
        prepare("fashion_mnist", fashion, tmp_path / "tfds")
    features = result.path / "features.json"
    for file, text in (
        (info, "garbage"),
        (info, '{"nope": 3}'),
        (features, "garbage"),
        (features, "3"),
    ):
        kept = file.read_text()
        file.write_text(text)
        with pytest.raises(
            InputError, match=rf"^{result.path} exists but is no data set"
        ) as caught:
            prepare("fashion_mnist", fashion, tmp_path / "tfds")
        assert "\n" not in str(caught.value)
        file.write_text(kept)
    info.unlink()
    with pytest.raises(InputError, match=rf"^{result.path} exists but is no data set"):
        prepare("fashion_mnist", fashion, tmp_path / "tfds")


def test_refused_files_leave_nothing(fashion: Path, tmp_path: Path) -> None:
    (fashion / "t10k-labels-idx1-ubyte.gz").write_bytes(b"changed")
    with pytest.raises(InputError, match="sha256"):
        prepare("fashion_mnist", fashion, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_an_unwritable_folder_is_one_line(fashion: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(InputError, match=rf"^cannot prepare {blocked}/fashion_mnist/3\.0\.1: "):
        prepare("fashion_mnist", fashion, blocked)


def test_what_is_wrong_while_it_is_written_has_its_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = tmp_path / "source", tmp_path / "tfds"
    write_photos(source)

    def taken(built: Path, path: Path) -> None:  # as if another process had been faster
        path.mkdir()
        (path / "features.json").touch()
        built.rename(path)

    with monkeypatch.context() as patch:
        patch.setattr("instahide_jax.data.prepared._put", taken)
        with pytest.raises(InputError, match=r"^cannot prepare .*; start again, when no other pro"):
            prepare("ponds", source, root)

    def remove_one(*arguments: Any) -> Any:
        (source / "dry/00.png").unlink()
        return build_or_compare(*arguments)

    monkeypatch.setattr("instahide_jax.data.prepare.build_or_compare", remove_one)
    with pytest.raises(InputError, match=r"dry/00\.png .*: it has changed meanwhile; start again$"):
        prepare("puddles", source, root)


def write_photos(root: Path, size: int = 12) -> None:
    for label, name in enumerate(("dry", "wet")):
        (root / name).mkdir(parents=True)
        for index in range(size):
            image = random_images(100 * label + index, 10 + label, 12, 3)
            Image.fromarray(image).save(root / name / f"{index:02d}.png")


def test_an_interrupted_run_leaves_nothing(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(image: np.ndarray) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "encode_png", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare("fashion_mnist", fashion, tmp_path / "tfds")
    assert not [p for p in (tmp_path / "tfds").rglob("*") if p.is_file()]
    assert prepare("fashion_mnist", fashion, tmp_path / "tfds").built


_KILLED = """
import os, signal, sys
from pathlib import Path
from instahide_jax.data.image_folder import ImageFolder
from instahide_jax.data.prepare import prepare

read, seen = ImageFolder.read, []

def read_then_die(self, file):
    seen.append(file)
    if len(seen) > 21:  # the train split is written, the test split has begun
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, file)

ImageFolder.read = read_then_die
prepare("rainy_days", Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "tfds"
    write_photos(source)
    command = [sys.executable, "-c", _KILLED, str(source), str(root)]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert any(root.rglob("*incomplete*"))  # it was in the middle of it
    assert not (root / "rainy_days" / "1.0.0").exists()
    with pytest.raises(Exception, match="rainy_days"):
        tfds.data_source("rainy_days", split="train", data_dir=root)
    assert prepare("rainy_days", source, root).built
    assert len(records("rainy_days", "train", root)) == 22


def test_a_folder_of_images_becomes_a_data_set(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "tfds"
    write_photos(source)
    result = prepare("rainy_days", source, root)
    path = root / "rainy_days" / "1.0.0"
    assert (result.path, result.sizes) == (path, {"train": 22, "test": 2})
    assert "every 10th image of a class is held out as test" in str(result)

    builder = tfds.builder_from_directory(path)
    assert builder.info.features["label"].names == ["dry", "wet"]
    assert builder.info.features["image"].shape == (None, None, 3)
    found = list(builder.as_data_source("test"))
    assert len(found) == 2
    for record in found:
        seed = 100 * record["label"] + 9
        expected = random_images(seed, 10 + record["label"], 12, 3)
        np.testing.assert_array_equal(record["image"], expected)
    # TFDS finds it by name as well, and a second call leaves it alone.
    assert len(records("rainy_days", "train", root)) == 22
    assert not prepare("rainy_days", source, root).built


def test_stored_bytes_are_the_files_own(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "tfds"
    write_photos(source)
    prepare("rainy_days", source, root)
    builder = tfds.builder_from_directory(root / "rainy_days" / "1.0.0")
    decoders = {"image": tfds.decode.SkipDecoding()}
    stored = {r["image"] for r in builder.as_data_source("test", decoders=decoders)}
    assert stored == {(source / name / "09.png").read_bytes() for name in ("dry", "wet")}


@pytest.mark.parametrize("name", ["Rainy", "rainy-days", "2days", "rainy__days", "../x", "a b", ""])
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "source")
    with pytest.raises(InputError, match="must be lower-case words joined by underscores"):
        prepare(name, tmp_path / "source", tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize("name", ["svhn_cropped", "imagenet2012"])
def test_official_names_are_not_shadowed(name: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "source")
    with pytest.raises(InputError, match=f"^{name} is an official TFDS data set, and local files"):
        prepare(name, tmp_path / "source", tmp_path / "tfds")


# --- TFDS' own download --------------------------------------------------------------------------


@pytest.fixture
def pretend_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_has_tensorflow", lambda: True)


@pytest.fixture
def no_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_has_tensorflow", lambda: False)


@pytest.mark.usefixtures("pretend_tensorflow")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", r"^TFDS has no data set 'mnits'; did you mean 'mnist'\?$"),
        ("cifar10/x", r"^TFDS cannot build 'cifar10/x': "),
        (
            "qqqqqqq",
            r"^TFDS has no data set 'qqqqqqq'; for files of your own give --source FOLDER$",
        ),
        ("imagenet2012", r"^imagenet2012 must be downloaded by hand, into .*/downloads/manual: "),
    ],
)
def test_unknown_and_manual_data_sets(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare(name, None, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()
    (tmp_path / "tfds" / "downloads" / "manual").mkdir(parents=True)  # there, but empty
    with pytest.raises(InputError, match=message):
        prepare(name, None, tmp_path / "tfds")


@pytest.mark.usefixtures("no_tensorflow")
def test_a_download_needs_tensorflow(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"needs TensorFlow .* mnist: pip install -e '\.\[tfds\]', or"
    ):
        prepare("mnist", None, tmp_path / "tfds")
    with pytest.raises(InputError, match=r"c4'.* \(a few, such as c4, need TensorFlow"):
        prepare("c4/en", None, tmp_path / "tfds")


@pytest.mark.usefixtures("pretend_tensorflow")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DownloadError("no url"), r"^the download of mnist failed: no url; try again, or give its"),
        (NonMatchingChecksumError("bad\nsum"), r"^the download of mnist failed: bad\nsum; try ag"),
        (ConnectionError("no route"), r"^cannot prepare .*mnist/3\.0\.1: no route; check network"),
        (OSError(28, "No space left"), r"^cannot prepare .*No space left; check network and disk"),
    ],
)
def test_a_failed_download_is_one_line(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, **_: Any) -> None:
        raise error

    monkeypatch.setattr(tfds.builder_cls("mnist"), "download_and_prepare", fail)
    with pytest.raises(InputError, match=message):
        prepare("mnist", None, tmp_path / "tfds")


def test_the_default_folder_is_that_of_the_environment(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))  # read at the call
    result = prepare("fashion_mnist", fashion)
    assert result.path == tmp_path / "default" / "fashion_mnist" / "3.0.1"
    assert json.loads((result.path / "dataset_info.json").read_text())["name"] == "fashion_mnist"
    assert open_split("fashion_mnist", "train").num_examples == SIZES["train"]
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket")
    with pytest.raises(
        InputError, match=r"^TFDS_DATA_DIR is gs://bucket, an address; name a local"
    ):
        prepare("fashion_mnist", fashion)
