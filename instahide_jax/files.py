"""Files that show private data: for their owner's eyes, and whole or absent."""

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from instahide_jax.errors import InputError

RUN_FILES = ("run.json", "config.json")  # a folder with both is a run folder
_SECRET = re.compile(rb"[0-9a-f]{64}\n?")  # what `secret.write_secret` writes


def without_detours(path: Path) -> Path:
    """A path without "x/.." where there is no x, which would have to be made to get there.

    Where x exists it may be a link, beside whose target the path goes on: it stays.
    """
    place = Path()
    for part in path.parts:
        detour = part == ".." and place.name not in ("", "..") and not os.path.lexists(place)
        place = place.parent if detour else place / part
    return place


def file_above(path: Path) -> Path | None:
    """A file where a path needs a folder, if any."""
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    return None if there.is_dir() else there


def new_private_file(path: Path) -> tuple[int, str]:
    """Open a file of mode 0600 that is to take the place of `path`: its descriptor and its name.

    It lies in the same folder, because a rename is atomic only within a file system.

    Raises:
      InputError: where the file system keeps no modes, as FAT and many network shares: everybody
        could read the file, and no chmod helps.
      OSError: where the folder cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if mode & 0o077:
        os.close(handle)
        os.unlink(temporary)
        raise InputError(
            f"the file system of {path.parent} keeps no modes, so others could read {path.name} "
            f"(mode {mode:04o}, at most 0600); put it on another one"
        )
    return handle, temporary


@contextmanager
def private_file(path: Path) -> Iterator[IO[bytes]]:
    """A file of mode 0600 that takes the place of `path` when the block ends without an error.

    Nobody else can read it at any moment, whatever the umask is and whatever mode a file had that
    was there before.

    Raises:
      InputError: where the file system keeps no modes.
      OSError: where the folder cannot be written.
    """
    handle, temporary = new_private_file(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_private_place(
    path: Path, option: str, what: str | None = None, own: Path | None = None
) -> None:
    """Refuse a place where a private file cannot lie, or would be copied with a run folder.

    Args:
      path: of the file.
      option: names the file.
      what: the file, for the message, where it follows from another one that the user has named and
        that is checked elsewhere; None: the option names it.
      own: absolute path, without links, of a folder that is to be a run folder.

    Raises:
      InputError: for a folder, for a file below another file, and inside a run folder.
    """
    said, by = (
        (f"{option} is {path}", "") if what is None else (f"{what} is {path}", f" with {option}")
    )
    if not path.name or path.name == ".." or path.is_dir():
        raise InputError(f"{said}, a folder; name a file{by}")
    place = path.resolve()
    there = next(folder for folder in place.parents if folder.exists())
    if what is None and not there.is_dir():
        raise InputError(f"{said}, but {there} is no folder; name a file elsewhere{by}")
    for folder in (place, *place.parents):
        if folder == own or all((folder / name).is_file() for name in RUN_FILES):
            remedy = (
                "move it elsewhere, and name it there" if path.exists() else "name a file elsewhere"
            )
            raise InputError(
                f"{said}, inside the run folder {folder}, which may be copied; {remedy}{by}"
            )


def others_within(folder: Path) -> Path | None:
    """A run folder or a secret file at any depth below a folder, links not followed, if any.

    A secret is known by the suffix .secret, or by what it holds.
    """
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if _is_secret(Path(place, name)):
                return Path(place, name)
        if Path(place) != folder and all(name in files for name in RUN_FILES):
            return Path(place)
    return None


def _is_secret(path: Path) -> bool:
    if path.suffix == ".secret":
        return True
    try:
        status = path.lstat()  # a pipe would never end
        if not stat.S_ISREG(status.st_mode) or status.st_size > 65:
            return False
        return _SECRET.fullmatch(path.read_bytes()) is not None
    except OSError:  # gone meanwhile, or of somebody else
        return False
