"""Write one data set into the TFDS folder, whole or not at all, whatever its examples are."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from instahide_jax.data.tfds_io import builder_of
from instahide_jax.errors import InputError

FILE_FORMAT = "array_record"  # the only format that reads without TensorFlow at random
INSTALL_TENSORFLOW = "pip install -e '.[tfds]'"


@dataclass(frozen=True)
class Prepared:
    """A data set on disk: `path` is NAME/VERSION or NAME/CONFIG/VERSION in the TFDS folder."""

    name: str
    version: str
    path: Path
    sizes: Mapping[str, int]
    built: bool  # False: it was there already and was left alone
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join(f"{split} {size}" for split, size in self.sizes.items())
        verb = "wrote" if self.built else "already prepared:"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{verb} {self.name} {self.version} ({sizes}) at {self.path}{notes}"


def already(path: Path) -> Prepared:
    """Report a data set that is there, after a look whether it can be read.

    Raises:
        InputError: what is there is no data set, or needs TensorFlow to read.
    """
    try:
        builder = builder_of(path)
    except (OSError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"{path} exists but is no data set ({cause}); remove it or choose another --data-dir"
        ) from error
    found = builder.info.file_format.value
    if found != FILE_FORMAT:
        raise InputError(
            f"{path} holds the data set as {found}, which needs TensorFlow to read; "
            f"remove it or choose another --data-dir to prepare it as {FILE_FORMAT}"
        )
    return _describe(builder, path, built=False)


def build(builder: Any, sizes: Mapping[str, int], notes: tuple[str, ...]) -> Prepared:
    """Write the builder's examples and compare the result with what went in.

    Guarantees: the folder of the version appears only when it is whole; a run that is killed
    leaves at most an `incomplete.*` folder beside it.

    Raises:
        InputError: for anything wrong with the disk.
    """
    result = run_builder(builder, quiet=True)
    if result.sizes != dict(sizes):
        raise RuntimeError(f"wrote {result.sizes} examples of {dict(sizes)}")
    return replace(result, notes=notes)


def _describe(builder: Any, path: Path, *, built: bool) -> Prepared:
    name, _, version = builder.info.full_name.rpartition("/")
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    return Prepared(name, version, path, sizes, built)


def run_builder(builder: Any, *, quiet: bool) -> Prepared:
    """`download_and_prepare`, with the errors of disk and network as InputErrors.

    Raises:
        InputError: for anything wrong with the disk or the network.
    """
    hush = contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
    if quiet:
        tfds.disable_progress_bar()  # the examples bring a progress bar of their own
    try:
        with hush:
            builder.download_and_prepare()
    except OSError as error:
        raise InputError(f"cannot prepare {builder.data_dir}: {error}") from error
    finally:
        if quiet:
            tfds.enable_progress_bar()
    return _describe(builder, Path(builder.data_dir), built=True)
