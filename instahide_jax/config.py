"""An experiment as a tree of frozen dataclasses; files below configs/ build them."""

import dataclasses
import difflib
import hashlib
import importlib
import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import DataConfig, PoolConfig
from instahide_jax.encoders.base import EncoderConfig
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding
from instahide_jax.instahide import InstaHide
from instahide_jax.parallel import DeviceMap


@dataclass(frozen=True)
class Schedule:
    """A constant learning rate after a linear warm-up; base of the other schedules.

    Attributes:
      warmup_epochs: epochs in which the learning rate rises from 0.
    """

    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise InputError(f"warmup_epochs is {self.warmup_epochs}; it must be at least 0")


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiply the learning rate at given epochs.

    Attributes:
      boundaries: epochs, ascending; as published, 100 and 150 of 200.
      factor: multiplier at each.
    """

    boundaries: tuple[float, ...] = (100, 150)
    factor: float = 0.1


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the learning rate to 0 over the whole run."""


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Attributes:
      learning_rate: peak, > 0.
      momentum: in [0, 1).
      nesterov: look ahead.
      weight_decay: coefficient on every parameter, as in the published PyTorch code.
      schedule: of the learning rate.
      accumulate: steps whose gradients are averaged into one update; steps at the end of a run that
        do not fill a group change nothing but the running statistics.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Schedule = field(default_factory=Cosine)
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum}; it must lie in [0, 1)")
        if self.weight_decay < 0:
            raise InputError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if self.accumulate < 1:
            raise InputError(f"accumulate is {self.accumulate}; it must be at least 1")


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a run's result.

    Attributes:
      data: the private data set.
      encoder: the network below the linear head.
      scheme: how data is hidden.
      public_pool: the public images of cross-dataset InstaHide.
      augment: random views of the private images.
      optimizer: how parameters are updated.
      epochs: passes over the training images.
      batch_size: images per step over all devices.
      partners: "dataset" draws partners from the whole training set, as published (in memory only);
        "batch" from the step's batch over all devices.
      seed: of everything random that is not secret: initialisation, order, augmentation, dropout.
      insecure_seed: None keeps a secret of 256 bits from the operating system; an integer makes the
        key guessable and the run repeatable: for experiments, it protects nothing.
      device_map: JAX interface that maps hiding over the devices; both give the same bits.
      save_every: steps between checkpoints.
      log_every: steps between lines of metrics.
    """

    data: DataConfig
    encoder: EncoderConfig
    scheme: NoHiding
    public_pool: PoolConfig | None = None
    augment: Augment = field(default_factory=Augment)
    optimizer: Sgd = field(default_factory=Sgd)
    epochs: int = 200
    batch_size: int = 128
    partners: Literal["dataset", "batch"] = "dataset"
    seed: int = 0
    insecure_seed: int | None = None
    device_map: DeviceMap = "shard_map"
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if type(self.scheme) not in (NoHiding, InstaHide):
            raise InputError(
                f"scheme is {type(self.scheme).__name__}; images are trained on with InstaHide or "
                "NoHiding: choose one of them"
            )
        if self.partners not in ("dataset", "batch"):
            raise InputError(f"partners is {self.partners!r}; choose 'dataset' or 'batch'")
        if self.device_map not in ("shard_map", "pmap"):
            raise InputError(f"device_map is {self.device_map!r}; choose 'shard_map' or 'pmap'")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must lie in [0, 2**32)")
        if self.scheme.num_partners >= self.batch_size:
            raise InputError(
                f"batch_size is {self.batch_size}; mixing {self.scheme.num_partners + 1} private "
                "images needs a batch of at least as many: raise it or lower scheme.k"
            )
        if self.scheme.num_public and self.public_pool is None:
            raise InputError(
                f"the scheme mixes {self.scheme.num_public} public images but public_pool is not "
                "set; name a pool in the config, or use InstaHide.inside"
            )


def load_config(reference: str) -> Experiment:
    """The experiment that "configs/mnist5k.py" or "configs/mnist5k.py:inside" names.

    A config file defines one function per variant, each without arguments and with an `Experiment`
    as its result; `default` is used where the reference names none.

    Raises:
      InputError: for an unknown file or variant, with the nearest name.
    """
    path_text, _, variant = reference.partition(":")
    path = Path(path_text)
    if not path.is_file():
        known = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise InputError(f"config {path_text} does not exist{_nearest(path_text, known)}")
    functions = variants(path)
    if (variant or "default") not in functions:
        raise InputError(
            f"config {path_text} has no variant {variant or 'default'!r}"
            f"{_nearest(variant, list(functions))}"
        )
    return functions[variant or "default"]()


def variants(path: Path) -> dict[str, Callable[[], Experiment]]:
    """The public functions that a config file itself defines, by name."""
    namespace = runpy.run_path(str(path))
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == "<run_path>"
    }


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]}? (known: {', '.join(known)})" if close else ""


def to_json(config: Any) -> Any:
    """A dataclass tree as JSON values; every dataclass carries its class under "class"."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        kind = type(config)
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return config


def from_json(value: Any) -> Any:
    """The inverse of `to_json`.

    Raises:
      InputError: if a class or field is unknown to this version of the package.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(item) for name, item in value.items() if name != "class"}
    try:
        module, _, name = value["class"].partition(":")
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise TypeError(f"{name} is no configuration class")
        return kind(**fields)
    except (KeyError, ImportError, AttributeError, TypeError) as error:
        raise InputError(f"the saved configuration cannot be read: {error}") from None


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Where two JSON values of `to_json` differ, one "field: old -> new" each."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in sorted({*old, *new}):
            child = f"{prefix}.{name}" if prefix else name
            lines += differences(old.get(name), new.get(name), child)
        return lines
    return [] if old == new else [f"{prefix}: {json.dumps(old)} -> {json.dumps(new)}"]


def fingerprint(config: Experiment, identities: list[str], version: str) -> bytes:
    """32 bytes that change with the data, its order, the configuration or the package's version.

    Folded into the secret, they keep a one-time key from ever meeting other plaintext.
    """
    content = json.dumps([to_json(config), identities, version], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()
