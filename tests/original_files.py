"""Tiny data sets in the formats of the original files, for the tests that read them."""

import hashlib
import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from instahide_jax.data import official

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
