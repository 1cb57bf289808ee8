"""The run folder: which experiment it holds, and the secret beside it."""

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import optax

from instahide_jax.config import (
    Experiment,
    differences,
    fingerprint,
    from_json,
    to_json,
    what_it_is,
)
from instahide_jax.distributed import exchange, is_first, merged, together
from instahide_jax.errors import InputError
from instahide_jax.files import RUN_FILES, check_private_place, others_within
from instahide_jax.secret import (
    ALGORITHM,
    SecretKey,
    insecure_secret,
    read_secret,
    secret_key,
    write_secret,
)
from instahide_jax.version import __version__

_PARTITIONABLE = "jax_threefry_partitionable"
_RUN, _CONFIG = RUN_FILES


class Statistics(NamedTuple):
    """Mean and standard deviation per channel, of pixels in [0, 1]; None without images."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


NO_STATISTICS = Statistics(None, None)


class Run(NamedTuple):
    """An opened run folder.

    Attributes:
      folder: where everything but the secrets lies.
      secrets: the keys of the clients of this process, by their numbers, each bound to client and
        fingerprint of data and configuration.
      resumed: whether the folder held this experiment before.
      began_on: devices and processes of its first start, as `layout` says.
    """

    folder: Path
    secrets: dict[int, SecretKey]
    resumed: bool
    began_on: str


def layout() -> str:
    """The devices and processes of this start."""
    kind, processes = jax.devices()[0].device_kind, jax.process_count()
    return f"{jax.device_count()} x {kind} in {processes} process{'es' * (processes > 1)}"


def check_precision() -> None:
    """Refuse to train or score with JAX's 64-bit types: seeds would give other orders and views."""
    if jax.config.values["jax_enable_x64"]:
        raise InputError("JAX_ENABLE_X64 is set; training is in 32 bits: unset it")


def secret_files(folder: Path, named: Path | None, held: range, clients: int) -> dict[int, Path]:
    """The secret file of each client of a process.

    Args:
      folder: the run folder. By default secrets lie beside it, not in it: the folder may be copied,
        the secret stays.
      named: what the user names instead; "{client}" in it stands for the client's number.
      held: the clients of the process.
      clients: K.

    Raises:
      InputError: if several clients would have the same file, or it cannot be a file outside this
        and every other run folder.
    """
    place = folder.resolve()  # of "runs/a/.." too, which names no place beside it
    if not place.name:
        raise InputError(
            f"--workdir is {folder}, and beside it is no place for the secret; name a folder in it"
        )
    if named is None:
        beside = place if ".." in folder.parts else folder.absolute()
        files = {
            client: beside.with_name(
                f"{beside.name}.secret" if clients == 1 else f"{beside.name}.client{client}.secret"
            )
            for client in held
        }
        for file in files.values():
            check_private_place(file, "--secret-file", f"the secret of {folder}", place)
        return files
    if len(held) > 1 and "{client}" not in named.name:
        raise InputError(
            f"--secret-file is {named} for {len(held)} clients, which would share it; put "
            "{client} into the name of the file"
        )
    check_private_place(named, "--secret-file", own=place)
    return {client: named.with_name(named.name.replace("{client}", str(client))) for client in held}


def open_run(
    folder: Path,
    experiment: Experiment,
    identities: dict[int, list[str]],
    files: dict[int, Path],
    statistics: Statistics = NO_STATISTICS,
) -> Run:
    """Create a run folder, or open that of an earlier start for resuming.

    All processes of a job call it, the first one writes. A secret is made by a process of its
    client and stays there.

    Args:
      folder: the run folder, which all processes see.
      experiment: its configuration.
      identities: what identifies the data of each client of this process, see
        `config.fingerprint`.
      files: of `secret_files`. A new run makes those that are missing.
      statistics: with which images are standardised, to be kept for their evaluation.

    Raises:
      InputError: if the folder cannot be written, holds another experiment (the differences are
        listed) or other data, or is new and holds other runs or secrets; or if the secret of a
        resumed run is missing or readable by others.
    """
    data = list(merged({c: _data_mark(named) for c, named in identities.items()}).values())
    mark = _fingerprint(experiment, data)
    resumed = together(lambda: _check_same(folder, experiment, mark))
    if len(set(exchange(resumed))) > 1:
        raise InputError(
            f"work folder {folder} is there for some processes and not for others; put --workdir "
            "where all of them see the same files"
        )
    secrets = together(lambda: _read_secrets(experiment, files, missing_is_new=not resumed))
    is_new = not folder.exists()  # whatever is wrong so far is found before the folder is made
    together(lambda: _make_writable(folder) if is_first() else None)
    try:
        secrets |= _make_secrets({c: path for c, path in files.items() if c not in secrets}, files)
    except InputError:
        if is_new and is_first():
            folder.rmdir()
        raise
    _check_distinct(experiment, secrets)
    if not resumed and is_first():
        described = {
            "fingerprint": mark.hex(),
            "data": data,
            **statistics._asdict(),
            "secret": _kind_of_secret(experiment),
            "versions": {"instahide-jax": __version__}
            | {m.__name__: m.__version__ for m in (jax, flax, optax)},
            "python": platform.python_version(),
            "layout": layout(),
        }
        write_json(folder / _RUN, described)
        write_json(folder / _CONFIG, to_json(experiment))  # last: it marks the folder as a run
    together(lambda: _check_shared(folder))
    bound = {c: secret.run(_client_mark(experiment, data, c)) for c, secret in secrets.items()}
    return Run(folder, bound, resumed, str(_described(folder).get("layout")))


def _read_secrets(
    experiment: Experiment, files: dict[int, Path], missing_is_new: bool
) -> dict[int, SecretKey]:
    """Secrets at hand; with `missing_is_new` those whose file is missing are left out."""
    if experiment.insecure_seed is not None:
        return dict.fromkeys(files, insecure_secret(experiment.insecure_seed))
    there = {c: path for c, path in files.items() if path.exists() or not missing_is_new}
    return {client: read_secret(path) for client, path in there.items()}


def _make_secrets(missing: dict[int, Path], files: dict[int, Path]) -> dict[int, SecretKey]:
    """Make the missing secrets: of several processes of one client the first makes it."""
    maker: dict[int, int] = {}
    for process, held in enumerate(exchange(list(files))):
        for client in held:
            maker.setdefault(client, process)

    def write() -> None:
        for client, path in missing.items():
            if maker[client] == jax.process_index():
                write_secret(path, secret_key())

    together(write)
    return together(lambda: {client: read_secret(path) for client, path in missing.items()})


def _check_distinct(experiment: Experiment, secrets: dict[int, SecretKey]) -> None:
    """Refuse one secret for two clients; processes of one client must have the same one.

    Compared are 128 bits that are drawn from each for this purpose alone, and tell nothing else.
    """
    marks = {
        client: jax.random.bits(secret.stream("which secret").key, (4,), "uint32").tolist()
        for client, secret in secrets.items()
    }
    known = list(merged(marks).values())
    same = [client for client, drawn in enumerate(known) if drawn in known[:client]]
    if same and experiment.insecure_seed is None:
        raise InputError(
            f"client {same[0]} has the secret of client {known.index(known[same[0]])}; remove the "
            "copy, and a new one is made"
        )


def _check_shared(folder: Path) -> None:
    """Refuse a work folder that other processes see elsewhere."""
    for _ in range(20):  # network file systems show new files late
        if (folder / _CONFIG).exists():
            return
        time.sleep(0.5)
    raise InputError(
        f"work folder {folder} is not the one that process 0 writes to; put --workdir where all "
        "processes see the same files"
    )


def _kind_of_secret(experiment: Experiment) -> str:
    if experiment.insecure_seed is None:
        return "256 bits from the operating system"
    return f"INSECURE, integer seed {experiment.insecure_seed}: nothing is protected"


def _fingerprint(experiment: Experiment, data: list[str]) -> bytes:
    # The last decides what order and views a seed gives, and so what a row key meets.
    order = f"{_PARTITIONABLE}={jax.config.values[_PARTITIONABLE]}"
    return fingerprint(experiment, data, f"{__version__} {ALGORITHM} {order}")


def _client_mark(experiment: Experiment, data: list[str], client: int) -> bytes:
    # The data of all clients: what is measured of them, such as the mean, enters every mixture.
    return _fingerprint(experiment, [*data, f"client {client}"])


def check_data(folder: Path, identities: list[str], client: int = 0) -> None:
    """Refuse to score a run on other data than it was started on.

    Raises:
      InputError: if the identities are not those of the client in this run.
    """
    if _data_of(folder)[client : client + 1] != [_data_mark(identities)]:
        raise InputError(
            f"{folder} was trained on other data than its configuration now finds; restore the "
            "data set, or train anew"
        )


def read_statistics(folder: Path) -> Statistics:
    """Mean and deviation with which the run standardises images.

    Raises:
      InputError: if the run's description cannot be read.
    """
    described = _described(folder)
    values = (described.get(name) for name in ("mean", "std"))
    return Statistics(*(None if value is None else tuple(value) for value in values))


def _data_of(folder: Path) -> list[str]:
    data: list[str] = _described(folder)["data"]
    return data


def _described(folder: Path) -> dict[str, Any]:
    path = folder / _RUN
    described = _read_json(path)
    kinds = {"fingerprint": str, "data": list, "mean": list | None, "std": list | None}
    if not isinstance(described, dict) or not all(
        isinstance(described.get(name), kind) for name, kind in kinds.items()
    ):
        raise InputError(
            f"{path} is damaged: it describes no run; restore it, or train anew in another folder"
        )
    return described


def _data_mark(identities: list[str]) -> str:
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


def run_secret(
    folder: Path, experiment: Experiment, identities: list[str], path: Path, client: int = 0
) -> SecretKey:
    """The key of a client of a run that exists, bound to its fingerprint, as `open_run` gives it.

    Raises:
      InputError: if the folder holds another experiment or other data, or the secret is missing.
    """
    check_data(folder, identities, client)
    data = _data_of(folder)
    _check_same(folder, experiment, _fingerprint(experiment, data))
    secret = _read_secrets(experiment, {client: path}, missing_is_new=False)[client]
    return secret.run(_client_mark(experiment, data, client))


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
        if (other := others_within(folder)) is not None:
            raise InputError(
                f"work folder {folder} holds {other} of another run, and may be copied as a whole; "
                f"name a folder of its own, such as --workdir {folder / 'NAME'}"
            )
        return False
    saved = _read_json(path)
    if isinstance(saved, dict):
        saved.pop("execution", None)
    changed = differences(saved, what_it_is(experiment))
    if changed:
        raise InputError(
            f"{folder} holds another experiment ({'; '.join(changed)}); "
            "use the same settings to resume it, or another --workdir"
        )
    if _described(folder)["fingerprint"] != mark.hex():
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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; restore it or start anew") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
