"""An experiment as a tree of frozen dataclasses; files below configs/ build them."""

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import DataConfig, PoolConfig
from instahide_jax.data.text_sources import TextData, TextSource
from instahide_jax.encoders import Bert, EncoderConfig, Head
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding
from instahide_jax.instahide import InstaHide
from instahide_jax.optimizers import Optimizer, Sgd
from instahide_jax.parallel import DeviceMap
from instahide_jax.texthide import TextHide


@dataclass(frozen=True)
class Execution:
    """How an experiment is carried out, not what it is.

    Attributes:
      shard_state: cut parameters and the optimizer's state along the devices of a client instead of
        keeping them whole on each (`placement.state_sharding`).
      compilation_cache: folder in which compiled programs are kept for later starts; they hold no
        keys. Relative to the working directory.
    """

    shard_state: bool = False
    compilation_cache: str | None = None


@dataclass(frozen=True)
class Experiment:
    """What every experiment says; `ImageExperiment` and `TextExperiment` say the rest.

    Attributes:
      encoder: the network below the head.
      scheme: how data is hidden.
      optimizer: how parameters are updated.
      epochs: passes over the training examples.
      batch_size: examples per step over all devices.
      seed: of everything random that is not secret: initialisation, order, augmentation, dropout.
      insecure_seed: None keeps a secret of 256 bits from the operating system; an integer makes the
        key guessable and the run repeatable: for experiments, it protects nothing.
      save_every: steps between checkpoints.
      log_every: steps between lines of metrics.
      clients: data owners, K, who train one model together. Each has data, public data and a secret
        of its own, and `batch_size` / K rows of every step; partners are of the same owner.
      client_data: "parts" divides the data set among the clients, which simulates them; with "own"
        the processes of each client load its own, from where the configuration says (a process can
        then have one client only), and a pass is as long as that of the smallest.
      partner_group: where partners come from the batch: the rows of a client's batch among which
        they are drawn, by default all. Groups of no more rows than a device holds (`batch_size`
        over the number of devices) need no communication.
      execution: what changes no result beyond rounding, and may change between starts of a run.
    """

    encoder: EncoderConfig
    scheme: NoHiding
    optimizer: Optimizer = field(default_factory=Sgd, kw_only=True)
    epochs: int = field(default=200, kw_only=True)
    batch_size: int = field(default=128, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    insecure_seed: int | None = field(default=None, kw_only=True)
    save_every: int = field(default=500, kw_only=True)
    log_every: int = field(default=50, kw_only=True)
    clients: int = field(default=1, kw_only=True)
    client_data: Literal["parts", "own"] = field(default="parts", kw_only=True)
    partner_group: int | None = field(default=None, kw_only=True)
    execution: Execution = field(default_factory=Execution, kw_only=True)

    def __post_init__(self) -> None:
        kinds = {"encoder": EncoderConfig, "scheme": NoHiding, "optimizer": Optimizer}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                given = type(getattr(self, name)).__name__
                raise InputError(f"{name} is a {given}; it must be a {kind.__name__}")
        for name in ("epochs", "batch_size", "save_every", "log_every", "clients"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must lie in [0, 2**32)")
        if self.client_data not in ("parts", "own"):
            raise InputError(f"client_data is {self.client_data!r}; choose 'parts' or 'own'")
        if self.batch_size % self.clients:
            raise InputError(
                f"batch_size is {self.batch_size}, which {self.clients} clients cannot share "
                "evenly; use a multiple of clients"
            )
        own, needed = self.batch_size // self.clients, self.scheme.num_partners + 1
        if needed > own:
            of = "" if self.clients == 1 else f", {own} for each of {self.clients} clients"
            raise InputError(
                f"batch_size is {self.batch_size}{of}; mixing {needed} private examples needs a "
                "batch of at least as many: raise it or lower scheme.k"
            )
        if self.partner_group is not None and not max(2, needed) <= self.partner_group <= own:
            raise InputError(
                f"partner_group is {self.partner_group}; mixing {needed} private examples of "
                f"{own} rows of a step needs a number in [{max(2, needed)}, {own}]"
            )


@dataclass(frozen=True)
class ImageExperiment(Experiment):
    """Training on images, hidden with InstaHide or not at all.

    Attributes:
      data: the private data set.
      public_pool: the public images of cross-dataset InstaHide.
      augment: random views of the private images.
      partners: "dataset" draws partners from the whole training set, as published (in memory only);
        "batch" from the client's rows of the step, see `partner_group`.
      device_map: JAX interface that maps hiding over the devices; both give the same bits.
    """

    data: DataConfig = field(kw_only=True)
    public_pool: PoolConfig | None = field(default=None, kw_only=True)
    augment: Augment = field(default_factory=Augment, kw_only=True)
    partners: Literal["dataset", "batch"] = field(default="dataset", kw_only=True)
    device_map: DeviceMap = field(default="shard_map", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scheme(self.scheme, "images", InstaHide)
        if self.partners not in ("dataset", "batch"):
            raise InputError(f"partners is {self.partners!r}; choose 'dataset' or 'batch'")
        if self.device_map not in ("shard_map", "pmap"):
            raise InputError(f"device_map is {self.device_map!r}; choose 'shard_map' or 'pmap'")
        if self.partner_group is not None and self.partners == "dataset":
            raise InputError(
                f"partner_group is {self.partner_group}, but partners come from the whole data "
                "set; set partners to 'batch', or leave it out"
            )
        if self.scheme.num_public and self.public_pool is None:
            raise InputError(
                f"the scheme mixes {self.scheme.num_public} public images but public_pool is not "
                "set; name a pool in the config, or use InstaHide.inside"
            )


@dataclass(frozen=True)
class TextExperiment(Experiment):
    """Training on texts, whose features are hidden with TextHide or not at all.

    Partners are the other examples of the batch, as published.

    Attributes:
      data: the private data set.
      public_text: the public texts of TextHide-inter; labels, if any, are not read.
      head: what maps features to outputs.
    """

    data: TextData = field(kw_only=True)
    public_text: TextSource | None = field(default=None, kw_only=True)
    head: Head = field(default_factory=Head, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scheme(self.scheme, "texts", TextHide)
        if not isinstance(self.encoder, Bert) or self.encoder.output == "sequence":
            output = getattr(self.encoder, "output", None)
            raise InputError(
                f"encoder is {type(self.encoder).__name__} with output {output!r}; texts need a "
                "Bert with output 'pooled', 'cls' or 'mean'"
            )
        if self.data.length > self.encoder.max_length:
            raise InputError(
                f"data.length is {self.data.length}; the encoder has positions for "
                f"{self.encoder.max_length} tokens: lower it"
            )
        if self.scheme.num_public and self.public_text is None:
            raise InputError(
                f"the scheme mixes {self.scheme.num_public} public texts but public_text is not "
                "set; name a source in the config, or use TextHide.intra"
            )
        rows = self.partner_group or self.batch_size // self.clients
        if self.scheme.num_public > rows:
            raise InputError(
                f"the scheme mixes {self.scheme.num_public} public texts; with "
                f"batch_size={self.batch_size} and clients={self.clients} a row has {rows} to "
                "choose from: raise batch_size or partner_group, or lower scheme.k"
            )


def _check_scheme(scheme: NoHiding, what: str, kind: type[NoHiding]) -> None:
    if type(scheme) not in (NoHiding, kind):
        raise InputError(
            f"scheme is {type(scheme).__name__}; {what} are trained on with {kind.__name__} or "
            "NoHiding: choose one of them"
        )


def load_config(reference: str) -> Experiment:
    """The experiment that "configs/mnist5k.py" or "configs/mnist5k.py:inside" names.

    A config file defines one function per variant, each without arguments and with an `Experiment`
    as its result; `default` is used where the reference names none.

    Raises:
      InputError: for an unknown file or variant, with the nearest name; for a file that does not
        run or a variant that fails, with the line; for a variant that takes arguments or gives
        something else.
    """
    path_text, _, variant = reference.partition(":")
    path = Path(path_text)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        known = [str(p) for p in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        what = "is no file" if path.exists() else "does not exist"
        remedy = _nearest(path_text, known) or "; name a file such as configs/mnist5k.py"
        raise InputError(f"config {path_text} {what}{remedy}")
    functions = variants(path)
    if (variant or "default") not in functions:
        raise InputError(
            f"config {path_text} has no variant {variant or 'default'!r}"
            f"{_nearest(variant, list(functions))}"
        )
    name, function = variant or "default", functions[variant or "default"]
    needed = [p.name for p in inspect.signature(function).parameters.values() if _is_needed(p)]
    if needed:
        raise InputError(
            f"variant {name!r} of config {path} needs {', '.join(needed)}; a variant takes no "
            "arguments: give defaults, or start the name of a helper with an underscore"
        )
    with _running(path):
        experiment = function()
    if not isinstance(experiment, Experiment):
        raise InputError(
            f"variant {name!r} of config {path} gives {type(experiment).__name__}; return an "
            "ImageExperiment or a TextExperiment"
        )
    return experiment


def _is_needed(parameter: inspect.Parameter) -> bool:
    is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not is_variadic


@contextmanager
def _running(path: Path) -> Iterator[None]:
    """Turn what the code of a config file raises into an `InputError` that names the line."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever it is, the file is the user's
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        cause = str(error).partition("\n")[0]
        if isinstance(error, SyntaxError) and error.filename:
            where, cause = f"{error.filename}, line {error.lineno}", error.msg
        raise InputError(
            f"config {where}: {type(error).__name__}: {cause}; correct it, or give another file"
        ) from error


def variants(path: Path) -> dict[str, Callable[[], Experiment]]:
    """The public functions that a config file itself defines, by name.

    Raises:
      InputError: for a file that does not run, with the line.
    """
    with _running(path):
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
      InputError: if a class or field is unknown to this version of the package, or the class is
        of a module that is neither of this package nor imported.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(item) for name, item in value.items() if name != "class"}
    unreadable = "the saved configuration cannot be read"
    remedy = "use the version of instahide-jax that wrote it, or train anew"
    if not isinstance(value.get("class"), str):
        raise InputError(f"{unreadable}: an entry names no class; {remedy}")
    module, _, name = value["class"].partition(":")
    # Importing is running: a run folder from elsewhere must not choose what is imported.
    if module.partition(".")[0] != __package__ and module not in sys.modules:
        raise InputError(
            f"{unreadable}: class {name} is of {module}; if you trust that module, pass "
            f"--imports {module}"
        )
    try:
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise TypeError(f"{name} is no configuration class")
        return kind(**fields)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{unreadable}: {error}; {remedy}") from None


def what_it_is(config: Experiment) -> Any:
    """An experiment as JSON values, without `Execution`."""
    described = to_json(config)
    del described["execution"]
    return described


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
    content = json.dumps([what_it_is(config), identities, version], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()
