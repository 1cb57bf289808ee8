"""Files of encryptions: whole or absent, and without dates, owners and modes inside."""

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from instahide_jax.errors import InputError
from instahide_jax.files import file_above

# What an output is put together from, in its partial folder.
_PARTS = {"image.npy", "label.npy", "description.npy", "packed.npz", "note.json"}


def write_encrypted(
    path: Path,
    batches: Iterator[dict[str, np.ndarray]],
    total: int,
    described: dict[str, Any],
) -> None:
    """Write streamed encryptions to one file that is whole or absent.

    PATH.npz holds "image", "label" and "description" (a JSON text), and no dates, owners or modes.
    PATH.npy holds the images, beside it PATH.labels.npy and PATH.json, which are in place before
    it. Until then everything lies in the folder .NAME.partial beside PATH; what a kill has left in
    it is removed, and a folder that holds anything else is refused.

    Args:
      path: ends in .npz or .npy.
      batches: of `encrypt_dataset`.
      total: number of encryptions.
      described: what a reader should know; no secrets.

    Raises:
      InputError: for another suffix, an existing file, a folder that cannot be written, or while
        another process writes the same file.
    """
    check_output(path)
    try:
        with _own_partial_folder(path) as folder:
            check_output(path)  # another process may have been faster
            images, labels = _write_parts(folder, batches, total)
            note = json.dumps(described, indent=2) + "\n"
            if path.suffix == ".npz":
                np.save(folder / "description.npy", np.array(note))
                packed = folder / "packed.npz"
                with zipfile.ZipFile(packed, "w") as archive:  # numpy.savez would load every array
                    for part in (images, labels, folder / "description.npy"):
                        _pack(archive, part)
                os.replace(packed, path)
            else:
                (folder / "note.json").write_text(note)
                _put_all((folder / "note.json", labels, images), output_files(path))
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; free space, or name another --out"
        ) from error


def partial_folder(path: Path) -> Path:
    """Where an output is put together before it gets its name."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _own_partial_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that this process alone has, and that is gone afterwards.

    Raises:
      InputError: while another process has it, if something else has its name, or if it holds what
        is no part of an output.
      OSError: where it cannot be made.
    """
    folder = partial_folder(path)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is in the way; remove it or name another --out")
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        handle = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, handle)  # which ends the lock, as the end of the process does
        if not _lock(handle, folder):
            raise InputError(
                f"another process is writing {path}; wait for it, or name another --out"
            )
        left = list(folder.iterdir())
        for file in left:
            if file.name not in _PARTS or file.is_dir():
                raise InputError(
                    f"{file} lies where {path} is put together; move it elsewhere, or name another "
                    "--out"
                )
        stack.callback(shutil.rmtree, folder)
        for file in left:
            file.unlink()
        yield folder


def _lock(handle: int, folder: Path) -> bool:
    """Whether no other process has the folder; the lock ends when its handle is closed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    # What was opened may have been removed by its owner, and another one made in its place.
    return folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())


def _put_all(parts: tuple[Path, ...], targets: tuple[Path, ...]) -> None:
    """Give files their names, all of them or none; the last one last."""
    try:
        for part, target in zip(parts, targets, strict=True):
            os.replace(part, target)
    except BaseException:
        if parts[-1].exists():
            for part, target in zip(parts, targets, strict=True):
                if not part.exists():
                    target.unlink(missing_ok=True)
        raise


def _pack(archive: zipfile.ZipFile, part: Path) -> None:
    """Add a file without what `ZipFile.write` takes over from it: its date and its mode."""
    member = zipfile.ZipInfo(part.name)  # of 1980-01-01
    member.external_attr = 0o644 << 16
    with part.open("rb") as source, archive.open(member, "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def output_files(path: Path) -> tuple[Path, ...]:
    """The files of an output in the order in which they appear; the last one makes it whole."""
    if path.suffix == ".npz":
        return (path,)
    return path.with_suffix(".json"), path.with_suffix(".labels.npy"), path


def check_output(path: Path) -> None:
    """Refuse an output that could not be written, before hours are spent on it."""
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"output {path} must end in .npz or .npy")
    for file in output_files(path):
        check_new_file(file, "output", "--out")


def check_new_file(path: Path, kind: str, option: str) -> None:
    """Refuse a file that exists already or could not be written, naming the option that named it.

    Raises:
      InputError: for such a file.
    """
    if path.exists():
        raise InputError(f"{kind} {path} exists already; remove it or name another {option}")
    if (file := file_above(path)) is not None:
        raise InputError(
            f"{kind} {path} lies below {file}, which is no folder; name another {option}"
        )
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist; create it or name another {option}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"folder {path.parent} cannot be written; name another {option}")


def _write_parts(
    folder: Path, batches: Iterator[dict[str, np.ndarray]], total: int
) -> tuple[Path, Path]:
    """image.npy and label.npy, filled batch by batch.

    As ordinary files: a disk that fills up under a memory map kills the process without a word.
    """
    paths = (folder / "image.npy", folder / "label.npy")
    done = 0
    with paths[0].open("wb") as images, paths[1].open("wb") as labels:
        for batch in batches:
            for file, name in ((images, "image"), (labels, "label")):
                values = np.ascontiguousarray(batch[name])
                if not done:
                    header = np.lib.format.header_data_from_array_1_0(values)
                    header["shape"] = (total, *values.shape[1:])
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(values.reshape(-1).view(np.uint8).data)
            done += len(batch["label"])
    assert done == total, f"{done} encryptions instead of {total}"
    return paths
