"""The run folder: which experiment it holds, and the secret beside it."""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instahide_jax.config import Experiment, differences, fingerprint, from_json, to_json
from instahide_jax.errors import InputError
from instahide_jax.secret import (
    ALGORITHM,
    SecretKey,
    insecure_secret,
    read_secret,
    secret_key,
    write_secret,
)

_PARTITIONABLE = "jax_threefry_partitionable"
_CONFIG = "config.json"
_RUN = "run.json"


class Run(NamedTuple):
    """An opened run folder.

    Attributes:
      folder: where everything but the secret lies.
      secret: the key of the run, bound to the fingerprint of its data and configuration.
      resumed: whether the folder held this experiment before.
    """

    folder: Path
    secret: SecretKey
    resumed: bool


def check_precision() -> None:
    """Refuse to train or score with JAX's 64-bit types: seeds would give other orders and views."""
    if jax.config.values["jax_enable_x64"]:
        raise InputError("JAX_ENABLE_X64 is set; training is in 32 bits: unset it")


def default_secret_file(folder: Path) -> Path:
    """Beside the run folder, not in it: the folder may be copied, the secret stays."""
    return folder.absolute().with_name(folder.absolute().name + ".secret")


def open_run(
    folder: Path, experiment: Experiment, identities: list[str], secret_file: Path | None
) -> Run:
    """Create a run folder, or open that of an earlier start for resuming.

    Args:
      folder: the run folder.
      experiment: its configuration.
      identities: what identifies the data, see `config.fingerprint`.
      secret_file: None is `default_secret_file`. A new run makes it where it is missing.

    Raises:
      InputError: if the folder cannot be written, holds another experiment (the differences are
        listed) or other data, or the secret of a resumed run is missing or readable by others.
    """
    mark = _fingerprint(experiment, identities)
    resumed = _check_same(folder, experiment, mark)
    path = secret_file or default_secret_file(folder)
    secret = None  # whatever is wrong with it is found before the folder is made
    if experiment.insecure_seed is not None:
        secret = insecure_secret(experiment.insecure_seed)
        kind = f"INSECURE, integer seed {experiment.insecure_seed}: nothing is protected"
    else:
        kind = "256 bits from the operating system"
        if resumed or path.exists():
            secret = read_secret(path)
    is_new = not folder.exists()
    _make_writable(folder)
    if secret is None:
        try:
            write_secret(path, secret_key())
        except InputError:
            if is_new:
                folder.rmdir()
            raise
        secret = read_secret(path)
    if not resumed:
        described = {
            "fingerprint": mark.hex(),
            "data": _data_mark(identities),
            "secret": kind,
            "versions": {p: version(p) for p in ("instahide-jax", "jax", "flax", "optax")},
            "python": platform.python_version(),
            "devices": [str(device.device_kind) for device in jax.devices()],
        }
        write_json(folder / _RUN, described)
        write_json(folder / _CONFIG, to_json(experiment))  # last: it marks the folder as a run
    return Run(folder, secret.run(mark), resumed)


def _fingerprint(experiment: Experiment, identities: list[str]) -> bytes:
    # The last decides what order and views a seed gives, and so what a row key meets.
    order = f"{_PARTITIONABLE}={jax.config.values[_PARTITIONABLE]}"
    return fingerprint(experiment, identities, f"{version('instahide-jax')} {ALGORITHM} {order}")


def check_data(folder: Path, identities: list[str]) -> None:
    """Refuse to score a run on other data than it was started on.

    Raises:
      InputError: if the identities are not those of the run.
    """
    described = _read_json(folder / _RUN)
    if not isinstance(described, dict) or described.get("data") != _data_mark(identities):
        raise InputError(
            f"{folder} was trained on other data than its configuration now finds; restore the "
            "data set, or train anew"
        )


def _data_mark(identities: list[str]) -> str:
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


def run_secret(
    folder: Path, experiment: Experiment, identities: list[str], secret_file: Path
) -> SecretKey:
    """The key of a run that exists, bound to its fingerprint, as `open_run` gives it.

    Raises:
      InputError: if the folder holds another experiment or other data, or the secret is missing.
    """
    mark = _fingerprint(experiment, identities)
    _check_same(folder, experiment, mark)
    if experiment.insecure_seed is not None:
        return insecure_secret(experiment.insecure_seed).run(mark)
    return read_secret(secret_file).run(mark)


def read_experiment(folder: Path) -> Experiment:
    """The experiment of a run folder.

    Raises:
      InputError: if the folder is no run folder or was written by an incompatible version.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise InputError(f"{folder} is no run folder ({_CONFIG} is missing); train there first")
    experiment = from_json(_read_json(path))
    if not isinstance(experiment, Experiment):
        raise InputError(f"{path} holds no experiment; restore it or train anew")
    return experiment


def _check_same(folder: Path, experiment: Experiment, mark: bytes) -> bool:
    """Whether the folder holds exactly this experiment; refuses another one."""
    path = folder / _CONFIG
    if not path.exists():
        if any(folder.glob("checkpoints/[0-9]*")):
            raise InputError(
                f"{folder} holds checkpoints but no {_CONFIG} that says of which experiment; "
                "restore it, or use another --workdir"
            )
        return False
    changed = differences(_read_json(path), to_json(experiment))
    if changed:
        raise InputError(
            f"{folder} holds another experiment ({'; '.join(changed)}); "
            "use the same settings to resume it, or another --workdir"
        )
    described = _read_json(folder / _RUN)
    if not isinstance(described, dict) or described.get("fingerprint") != mark.hex():
        raise InputError(
            f"{folder} was started on other data or with another version of instahide-jax; "
            "its one-time keys must not meet other images: use another --workdir"
        )
    return True


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"work folder {folder} cannot be written: {error.strerror}; choose another --workdir"
        ) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; restore it or start anew") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
