"""Readers for the original files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 (NumPy only).

Every reader returns arrays in the order of the files and raises InputError, naming the file, for
anything that is not what the format promises. Nothing is ever unpacked to disk.
"""

import gzip
import hashlib
import io
import json
import math
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from instahide_jax.data.embedded import decoding
from instahide_jax.data.image_format import open_image, to_mode
from instahide_jax.errors import InputError

T = TypeVar("T")
U = TypeVar("U")

_NAMED = 10  # refused items that a message names
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_HEADER_SIZE = 10
_CIFAR_SHAPE = (32, 32, 3)
ORIGINALS = "give --source the original files: the archive as published, or its folder"
AGAIN = "download it again"


@dataclass(frozen=True)
class LabelledImages:
    """One split: `images` uint8 [N, H, W, C], and int64 [N] for every kind of label."""

    images: np.ndarray
    labels: Mapping[str, np.ndarray]


def read_file(path: Path, remedy: str = "check its path and permissions") -> bytes:
    """The file's bytes; InputError, with the remedy, when it is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {remedy}") from error


def each(function: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """The function's values of all items.

    Raises:
        InputError: with the messages of all items that are refused, up to ten.
    """
    values, refused = [], []
    for item in items:
        try:
            values.append(function(item))
        except InputError as error:
            refused.append(str(error))
    if refused:
        more = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise InputError("; ".join(refused[:_NAMED]) + more)
    return values


def check_digest(name: str | Path, data: bytes, algorithm: str, expected: str) -> None:
    """Raise InputError, with both sums, unless `data` has the published checksum."""
    found = hashlib.new(algorithm, data).hexdigest()
    if found != expected:
        raise InputError(
            f"{name} has {algorithm} {found}, but the published file has {expected}; {AGAIN}"
        )


def with_gzip_header(data: bytes, name: str, mtime: int) -> bytes:
    """Give a gzip file the header that `gzip NAME` writes on Unix, with `mtime` in seconds.

    Distributions strip the name and the time so that builds are reproducible. The compressed data
    stay what they are, so putting the header back makes the published checksum apply again. A
    file whose header carries any optional field is returned as it is.
    """
    if not data.startswith(_GZIP_MAGIC) or data[3:4] != b"\x00":
        return data
    header = _GZIP_MAGIC + b"\x08\x08" + mtime.to_bytes(4, "little") + b"\x00\x03"
    return header + name.encode() + b"\x00" + data[_GZIP_HEADER_SIZE:]


def parse_idx(data: bytes, path: Path) -> np.ndarray:
    """Decode an idx file of unsigned bytes, gzipped or not: uint8, with the file's own shape."""
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged: {error}; {AGAIN}") from error
    # Magic number: two zero bytes, the type (8 = unsigned byte), the number of dimensions.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{path} is not an idx file of bytes: it starts with {data[:4].hex()}; {AGAIN}"
        )
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise InputError(f"{path} is cut short in its header, of {start} bytes; {AGAIN}")
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
    body = data[start:]
    if len(body) != math.prod(shape):
        raise InputError(f"{path} should hold {shape} bytes but has {len(body)}; {AGAIN}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_idx_pair(images: Path, labels: Path, read: Callable[[Path], bytes]) -> LabelledImages:
    """Decode an images file [N, H, W] and a labels file [N] to one split with C = 1."""
    pixels, classes = parse_idx(read(images), images), parse_idx(read(labels), labels)
    if pixels.ndim != 3 or classes.shape != pixels.shape[:1]:
        raise InputError(
            f"{images} holds {pixels.shape} and {labels} {classes.shape}; "
            "expected [N, height, width] and [N]; download both again"
        )
    return LabelledImages(pixels[..., None], {"label": classes.astype(np.int64)})


def read_members(source: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read files by name from a folder or a tar archive (where any folder may hold them).

    Raises:
        InputError: when the archive is damaged or a file is missing from it.
    """
    if source.is_dir():
        return {name: read_file(source / name, ORIGINALS) for name in names}
    return tar_members(read_file(source, ORIGINALS), str(source), names, ORIGINALS)


def tar_members(data: bytes, where: str, names: Sequence[str], remedy: str) -> dict[str, bytes]:
    """Read files by name from a tar archive, compressed or not, whatever folder they are in.

    Args:
        data: the archive.
        where: it is, for messages.
        names: of the files.
        remedy: for messages.

    Raises:
        InputError: when the archive is damaged or a file is missing from it.
    """
    found: dict[str, bytes] = {}
    with (
        decoding(f"the tar archive {where}", remedy),
        tarfile.open(fileobj=io.BytesIO(data)) as archive,
    ):
        for member in archive:
            name = Path(member.name).name
            stream = archive.extractfile(member) if name in names else None
            if stream is not None:
                found[name] = stream.read()
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{where} holds no file {', '.join(missing)}; {remedy}")
    return found


def parse_cifar_binary(data: bytes, name: str | Path, label_names: Sequence[str]) -> LabelledImages:
    """Decode records of one byte per label followed by the 3 x 32 x 32 pixels."""
    size = len(label_names) + math.prod(_CIFAR_SHAPE)
    if not data or len(data) % size:
        raise InputError(f"{name} has {len(data)} bytes, which is no multiple of {size}; {AGAIN}")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = {key: records[:, i].astype(np.int64) for i, key in enumerate(label_names)}
    return LabelledImages(_from_planes(records[:, len(label_names) :]), labels)


def parse_cifar_pickle(data: bytes, name: str | Path, keys: Mapping[str, str]) -> LabelledImages:
    """Decode one batch of the Python archive; `keys` maps label names to the pickle's keys."""
    batch = safe_unpickle(data, name)
    wanted = {"data", *keys.values()}
    if not isinstance(batch, dict) or not wanted <= batch.keys():
        raise InputError(
            f"{name} is not a CIFAR batch, of {', '.join(sorted(wanted))}; {ORIGINALS}"
        )
    pixels = np.asarray(batch["data"])
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != math.prod(_CIFAR_SHAPE):
        raise InputError(
            f"{name} holds {pixels.dtype} {pixels.shape}, not uint8 [N, 3072]; {ORIGINALS}"
        )
    labels = {label: np.asarray(batch[key], np.int64) for label, key in keys.items()}
    if any(values.shape != pixels.shape[:1] for values in labels.values()):
        raise InputError(
            f"{name} has another number of labels than its {len(pixels)} images; {ORIGINALS}"
        )
    return LabelledImages(_from_planes(pixels), labels)


def _from_planes(rows: np.ndarray) -> np.ndarray:
    """[N, 3072] in the order channel, row, column -> [N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def parse_png_rows(data: bytes, path: Path) -> np.ndarray:
    """Decode a PNG with one 32 x 32 RGB image per row of 1024 pixels: uint8 [N, 32, 32, 3]."""
    try:
        with open_image(data) as picture:
            if picture.format != "PNG":
                raise ValueError(f"its content is {picture.format}")
            rows = np.asarray(to_mode(picture, "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {path} as PNG: {error}; {AGAIN}") from error
    if rows.shape[1] != 1024:
        raise InputError(f"{path} is {rows.shape[1]} pixels wide, not 1024; {AGAIN}")
    return rows.reshape(-1, *_CIFAR_SHAPE)


def parse_json_labels(data: bytes, path: Path) -> np.ndarray:
    """Decode a JSON list of labels in [0, 256): int64 [N]."""
    try:
        values = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; {AGAIN}") from error
    if not isinstance(values, list) or not all(
        type(value) is int and 0 <= value < 256 for value in values
    ):
        raise InputError(f"{path} holds no list of integers in [0, 256); {AGAIN}")
    return np.asarray(values, np.int64)


def concatenate(parts: Sequence[LabelledImages]) -> LabelledImages:
    """Join batches, in order."""
    return LabelledImages(
        np.concatenate([part.images for part in parts]),
        {key: np.concatenate([part.labels[key] for part in parts]) for key in parts[0].labels},
    )


def _dtype(name: str, align: int, copy: int) -> np.dtype[Any]:
    """`np.dtype` for the arguments of old pickles, which give 0 and 1 for the two flags."""
    return np.dtype(name, bool(align), bool(copy))


class _ArrayUnpickler(pickle.Unpickler):
    """Loads containers, strings, numbers and NumPy arrays, and refuses everything else.

    A pickle may call any function that it can name, so a downloaded one could run anything. The
    three names below are all that the CIFAR files need.
    """

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _dtype,
        # The public way to the function that array pickles name.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file needs")
        return self._ALLOWED[module, name]


def safe_unpickle(data: bytes, name: str | Path) -> Any:
    """Load a pickle of plain containers and arrays, with str keys; InputError for any other.

    The original files were written by Python 2, whose strings are bytes: latin-1 turns each into
    text and leaves array data intact, byte for byte.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError,
            AttributeError, UnicodeDecodeError, MemoryError) as error:  # fmt: skip
        raise InputError(f"refusing to load {name}: {error}; {ORIGINALS}") from error
