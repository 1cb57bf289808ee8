"""Write one data set into the TFDS folder, whole or not at all, whatever its examples are."""

import contextlib
import errno
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from instahide_jax.data.content import (
    Content,
    SplitContent,
    differences,
    read_record,
    write_record,
)
from instahide_jax.data.embedded import decoding
from instahide_jax.data.tfds_io import FILE_FORMAT, builder_of, check_record
from instahide_jax.errors import InputError

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

    Of every split the first and the last record are read, which finds files that are gone, empty or
    cut short.

    Raises:
        InputError: what is there is no data set, cannot be read, or needs TensorFlow to read.
    """
    try:
        builder = builder_of(path)
    except (OSError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"{path} exists but is no data set ({cause}); give --overwrite to build it anew, or "
            "choose another --data-dir"
        ) from error
    found = builder.info.file_format.value
    if found != FILE_FORMAT:
        raise InputError(
            f"{path} holds the data set as {found}, which needs TensorFlow to read; give "
            f"--overwrite or choose another --data-dir to prepare it as {FILE_FORMAT}"
        )
    result = _describe(builder, path, built=False)
    for split, size in result.sizes.items():
        with decoding(f"{split} in {path}", "give --overwrite to build it anew"):
            records = builder.as_data_source(split) if size else []
            for index in sorted({0, size - 1} if size else ()):
                check_record(records[index])
    return result


def is_there(path: Path) -> bool:
    """Whether a data set is there; one that a kill left aside while it was replaced is put back."""
    aside = _aside(path)
    if aside.exists():
        if path.exists():  # the new one was in place, the old one not yet removed
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(path)
    return path.exists()


def build_or_compare(
    make: Callable[[Path], Any],
    path: Path,
    content: Content,
    source: Path,
    notes: tuple[str, ...],
    overwrite: bool,
) -> Prepared:
    """Write a data set; one that is there is left alone if it was made of the same examples.

    Args:
      make: the builder that writes below a given TFDS folder.
      path: NAME/VERSION or NAME/CONFIG/VERSION in the TFDS folder.
      content: of the source.
      source: for messages.
      notes: what a user should know of a data set that is written.
      overwrite: write it anew in any case.

    Guarantees: the folder of the version appears only when it is whole, and an old one stays until
    then; a run that is killed leaves at most an `incomplete.*` folder beside it. A kill just when
    the new one takes the place of the old one leaves the old one as `replaced.VERSION`, perhaps
    with no data set beside it; the next `prepare` puts it back, or removes it.

    Raises:
        InputError: for anything wrong with the disk, or a data set that was made of others.
    """
    if is_there(path) and not overwrite:
        return _compare(path, content, source)
    remedy = "free space, or choose another --data-dir"
    result = run_builder(make, path, content, remedy, quiet=True)
    return replace(result, notes=notes)


def _compare(path: Path, content: Content, source: Path) -> Prepared:
    """Report a data set that was made of the same examples.

    Raises:
        InputError: it was made of others, or there is no record of what it was made of.
    """
    result = already(path)
    sizes = {name: SplitContent(size) for name, size in result.sizes.items()}
    recorded = read_record(path) or Content(sizes)
    differing = differences(recorded, content)
    if differing:
        raise InputError(
            f"{path} was made of other examples than those of {source}: {'; '.join(differing)}; "
            "give --overwrite to build it anew, or another --data-dir to keep both"
        )
    if not recorded.is_known:
        raise InputError(
            f"{path} has no record of its content, as TFDS or an earlier version made it, and "
            f"cannot be compared with {source}; leave --source out to keep it, or give --overwrite "
            "to build it anew"
        )
    return replace(result, notes=(f"of the same examples as {source}",))


def _describe(builder: Any, path: Path, *, built: bool) -> Prepared:
    name, _, version = builder.info.full_name.rpartition("/")
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    return Prepared(name, version, path, sizes, built)


def run_builder(
    make: Callable[[Path], Any],
    path: Path,
    content: Content | None,
    remedy: str,
    *,
    quiet: bool,
    downloads: Path | None = None,
) -> Prepared:
    """Build beside `path`, then move the result there, in the place of one that may be there.

    Args:
      make: the builder that writes below a given TFDS folder.
      path: where the data set will be.
      content: what it is made of; None records the sizes alone.
      remedy: for anything wrong with the disk or the network.
      quiet: hide what TFDS prints.
      downloads: where TFDS keeps what it downloads.

    Raises:
        InputError: for anything wrong with the disk or the network; what `make` raises.
    """
    hush = contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
    if quiet:
        tfds.disable_progress_bar()  # the examples bring a progress bar of their own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=path.parent) as folder, hush:
            with temporary_files_in(folder):  # TFDS leaves an empty folder there for every builder
                builder = make(Path(folder))
                builder.download_and_prepare(download_dir=downloads)
            result = _describe(builder, path, built=True)
            if content is None:
                content = Content({n: SplitContent(size) for n, size in result.sizes.items()})
            elif result.sizes != content.sizes:
                raise RuntimeError(f"wrote {result.sizes} examples of {content.sizes}")
            write_record(Path(builder.data_dir), content)
            _put(Path(builder.data_dir), path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY):  # as two that prepare it may meet
            remedy = "start again, when no other process prepares it"
        raise InputError(f"cannot prepare {path}: {error}; {remedy}") from error
    finally:
        if quiet:
            tfds.enable_progress_bar()
    return result


@contextlib.contextmanager
def temporary_files_in(folder: str) -> Iterator[None]:
    """Within, Python's temporary files and folders lie in `folder`."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def _put(built: Path, path: Path) -> None:
    """Move a whole data set into its place."""
    settings = built.parent.parent / ".config"  # says which configuration is the default
    if settings.is_dir():
        shutil.copytree(settings, path.parent.parent / ".config", dirs_exist_ok=True)
    aside = _aside(path)
    if path.exists():
        path.rename(aside)
    try:
        built.rename(path)
    except BaseException:
        if aside.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Where an old data set is for the moment in which the new one takes its place."""
    return path.with_name(f"replaced.{path.name}")
