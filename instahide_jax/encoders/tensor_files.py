"""Tensors in safetensors files: which a folder holds, and their values."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from instahide_jax.errors import InputError

_LISTED = 10  # names in a message


class Tensor(NamedTuple):
    """Where a tensor stands."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def weights_identity(folder: Path) -> str:
    """SHA-256 over the bytes of a folder's weight files, hexadecimal.

    Raises:
      InputError: as `weight_files`, or if a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in weight_files(folder):
        try:
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}; restore it") from None
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors of a folder, or else the shards that model.safetensors.index.json names.

    Raises:
      InputError: if there is neither, or a shard is absent.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with config.json and model.safetensors")
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise InputError(
            f"{folder} holds no weights: neither {single.name} nor {index.name}; weights in "
            "another format must be converted to safetensors first"
        )
    content = read_json(index).get("weight_map")
    if not isinstance(content, dict) or not all(map(_is_file_name, content.values())):
        raise InputError(f"{index} has no weight_map to files beside it; restore it")
    files = [folder / name for name in sorted(set(content.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise InputError(f"{folder} lacks {shorten(absent)}, which {index.name} names; restore it")
    return files


def list_tensors(files: list[Path]) -> list[Tensor]:
    """All tensors of some files, from their headers alone.

    Raises:
      InputError: if a file is damaged.
    """
    tensors = []
    for file in files:
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    view = opened.get_slice(name)
                    shape = tuple(view.get_shape())
                    tensors.append(Tensor(file, name, shape, view.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read: {error}; restore it") from None
    return tensors


def read_tensors(tensors: list[Tensor]) -> list[np.ndarray]:
    """The tensors in the order given; every file is opened once."""
    read: dict[int, np.ndarray] = {}
    for file in {tensor.file for tensor in tensors}:
        with safe_open(file, framework="np") as opened:
            for i, tensor in enumerate(tensors):
                if tensor.file == file:
                    read[i] = opened.get_tensor(tensor.name)
    return [read[i] for i in range(len(tensors))]


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      InputError: if the file is absent, cannot be read or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file.parent} holds no {file.name}; restore it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}; restore it") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object; restore it")
    return content


def shorten(names: list[str]) -> str:
    """Names in a line, no more than 10."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).name == value
