"""Labelled images of TFDS data sets, without TensorFlow.

`open_split` gives random access to a prepared TFDS split; for a whole one in memory see
`tfds_arrays`. TFDS data sets must be stored in the `array_record` format, the only one that can be
read at random and without TensorFlow.
"""

import fnmatch
import hashlib
import itertools
import json
import os
import re
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instahide_jax.data.embedded import Decoded, decode, decoding, label_message
from instahide_jax.data.image_format import MODE_OF_CHANNELS
from instahide_jax.errors import InputError, did_you_mean
from instahide_jax.folders import user_path

# Text sets that `instahide prepare` makes of local files; TFDS lists neither without TensorFlow.
_PREPARED_FROM = {"glue": "FOLDER_OR_ZIP", "movie_reviews": "vaderSentiment-3.3.2.tar.gz"}
_SLICE = re.compile(r"([^\[\]+]+)\[(-?\d*)(%?):(-?\d*)(%?)\]")  # split[from:to]
_NAME = re.compile(r"(\w[\w.-]*)(?:/(\w[\w.,=+-]*))?(?::([\d.*]+))?")  # name/config:version
FILE_FORMAT = "array_record"  # the only format that reads without TensorFlow at random
ANEW = "prepare the data set anew with `instahide prepare ... --overwrite`"


class DamagedRecordError(InputError):
    """A record that cannot be decoded."""


@dataclass(frozen=True, eq=False)
class Split:
    """Random access to a prepared TFDS split; nothing is decoded before it is asked for.

    Attributes:
      source: `len(source)`, `source[i]`: a dict whose "image" is the encoded file as bytes (the
        array itself for a set that stores plain tensors) and "label" an integer.
      num_examples: number of examples.
      num_classes: number of classes.
      class_names: one name per class.
      image_shape: (H, W, C), None where it varies.
      identity: name, config, version, split and number of examples, followed by a SHA-256 over
        `dataset_info.json`, `features.json` and name and size of every record file of the split.
        It does not cover the bytes of the record files, which may be hundreds of gigabytes: a
        file changed in place to other content of the same size keeps its identity. Moving the
        data set to another folder or machine does not change it.
      first: record of example 0; example i is record first + i * stride.
      stride: as many clients as share the records.
    """

    source: Any
    num_examples: int
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int | None]
    identity: str
    first: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """Name, config, version and split, for messages."""
        return self.identity.rsplit(" ", 2)[0]

    def record(self, index: int) -> int:
        """The number in `source` of example `index`."""
        return self.first + index * self.stride


def is_name(text: str) -> bool:
    """Whether a text can be a TFDS name: NAME or NAME/CONFIG, either with :VERSION.

    A NAME with a dot is rather that of a file.
    """
    match = _NAME.fullmatch(text)
    return match is not None and "." not in match[1]


def open_split(name: str, split: str, data_dir: str | None = None) -> Split:
    """Open a split of a prepared TFDS image classification set.

    Args:
      name: `name`, `name/config`, `name:version` or `name/config:version`. Any name with prepared
        files below `data_dir` will do, known to TFDS or not. Without a version the newest
        prepared one is taken, without a config the data set's default.
      split: a split or a TFDS slice of one, such as "train" or "train[:80%]".
      data_dir: folder of prepared sets; default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
      InputError: unknown or unprepared set, config, version or split; another storage format
        than array_record; no uint8 "image" or no "label" of known classes.
    """
    import tensorflow_datasets as tfds

    builder = open_builder(name, data_dir)
    info, folder = builder.info, Path(builder.data_dir)
    image_shape, label = _image_and_label(name, info.features)
    num_examples, files = split_files(builder, name, split)
    digest = hashlib.sha256()
    for file in (folder / "dataset_info.json", folder / "features.json"):
        digest.update(file.read_bytes())
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    is_encoded = isinstance(info.features["image"], tfds.features.Image)
    decoders = {"image": tfds.decode.SkipDecoding()} if is_encoded else None
    return Split(
        source=builder.as_data_source(split, decoders=decoders),
        num_examples=num_examples,
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        image_shape=image_shape,
        identity=f"{info.full_name}[{split}] {num_examples} {digest.hexdigest()}",
    )


def open_builder(name: str, data_dir: str | None) -> Any:
    """TFDS' builder of a prepared data set, to read from; name and folder as for `open_split`.

    Raises:
      InputError: unknown or unprepared set, config or version; another storage format than
        array_record.
    """
    folder = _find_prepared(name, data_root(data_dir))
    with decoding(f"the description in {folder}", _anew(name)):
        builder = builder_of(folder)
    found = builder.info.file_format.value
    if found != FILE_FORMAT:
        raise InputError(
            f"{name} in {folder} is stored as {found}, expected {FILE_FORMAT}: {_anew(name)}"
        )
    return builder


def _anew(name: str) -> str:
    base = name.partition(":")[0]
    return f"run `instahide prepare {base} --overwrite`, with --source and --data-dir as before"


def builder_of(folder: Path) -> Any:
    """TFDS' builder of a prepared folder; OSError or ValueError if its description is damaged."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]

    try:
        return tfds.builder_from_directory(folder)
    except (ParseError, TypeError) as error:  # TypeError: for JSON of other content
        raise ValueError(error) from error


def split_files(builder: Any, name: str, split: str) -> tuple[int, list[Path]]:
    """Number of records of a split (or of a TFDS slice of one), and the files that hold them.

    Raises:
      InputError: no such split, a slice beyond its end, an empty one, one that takes a record
        twice, or a file that is missing.
    """
    splits = builder.info.splits
    available = ", ".join(splits)
    try:
        selected = splits[split]
        num_examples = selected.num_examples
        parts = sorted(selected.file_instructions, key=lambda part: (part.filename, part.skip))
    except (KeyError, ValueError, NotImplementedError) as error:  # the last for all[:10%]
        for base, start, of_start, stop, of_stop in _SLICE.findall(split):
            total = splits[base].num_examples if base in splits else sys.maxsize
            for bound, percent in ((start, of_start), (stop, of_stop)):
                if abs(int(bound or 0)) > (100 if percent else total):
                    raise InputError(
                        f"split {split!r} of {name} goes beyond the {total} records of {base}: "
                        f"take fewer, at most {base}[:{total}]"
                    ) from error
        raise InputError(f"{name} has no split {split!r}: available are {available}") from error
    if num_examples < 1:
        raise InputError(f"split {split!r} of {name} is empty: available are {available}")
    for part, following in itertools.pairwise(parts):
        if part.filename == following.filename and part.skip + part.take > following.skip:
            raise InputError(
                f"split {split!r} of {name} takes records twice, and what is mixed with itself is "
                "not hidden: name every record once"
            )
    files = [Path(file) for file in selected.filepaths]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing: {_anew(name)}")
    return num_examples, files


def data_root(data_dir: str | Path | None) -> Path:
    """The TFDS folder: `data_dir`, or what the environment names now, or TFDS' own default.

    Raises:
      InputError: for an address such as gs://..., or a path that is no valid UTF-8, which
        array_record does not take.
    """
    what = "data_dir"
    if data_dir is None:
        what = "TFDS_DATA_DIR"
        data_dir = os.environ.get(what) or "~/tensorflow_datasets"
    path = user_path(data_dir, what)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{what} is {path.absolute()}, which is no valid UTF-8: name another folder"
        ) from None
    return path


def _find_prepared(name: str, root: Path) -> Path:
    """The folder of the newest prepared version that `name` asks for."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"data set name {name!r}: expected NAME, NAME/CONFIG or NAME:VERSION")
    base, config, version = match.groups()
    top = root / base
    configs = {
        path.name: versions
        for path in (sorted(top.iterdir()) if top.is_dir() else [])
        if path.is_dir() and (versions := _prepared_versions(path))
    }
    versions = _prepared_versions(top)
    if not versions and not configs:
        raise InputError(_not_prepared(base, name, root))
    if config is not None or not versions:
        config = config or _default_config(top, list(configs))
        if config not in configs:
            there = ", ".join(f"{base}/{other}" for other in configs) or base
            remedy = f" or run {_prepare_command(base, name, root)}" if base == "glue" else ""
            raise InputError(f"{name} is not prepared in {root}: name one of {there}{remedy}")
        versions = configs[config]
    wanted = [v for v in versions if fnmatch.fnmatchcase(v, version or "*")]
    if not wanted:
        raise InputError(
            f"{name}: version {version} is not prepared in {root}: available are "
            f"{', '.join(versions)}"
        )
    return versions[wanted[-1]]


def _prepared_versions(folder: Path) -> dict[str, Path]:
    """Folders `1.2.3` of `folder` that hold a prepared set, oldest version first."""
    found = [
        path
        for path in (folder.iterdir() if folder.is_dir() else [])
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
        and (path / "features.json").is_file()
        and (path / "dataset_info.json").is_file()
    ]
    found.sort(key=lambda path: tuple(map(int, path.name.split("."))))
    return {path.name: path for path in found}


def _default_config(top: Path, configs: list[str]) -> str | None:
    """The config that TFDS recorded as the default, or the only one there is."""
    metadata = top / ".config" / "metadata.json"
    if metadata.is_file():
        with decoding(str(metadata), "remove it and name the config"):
            default = json.loads(metadata.read_bytes()).get("default_config_name")
        if default in configs:
            return default
    return configs[0] if len(configs) == 1 else None


def _prepare_command(base: str, name: str, root: Path) -> str:
    task = name.partition(":")[0] if "/" in name or base != "glue" else "glue/TASK"
    return f"`instahide prepare {task} --source {_PREPARED_FROM[base]} --data-dir {root}`"


def _not_prepared(base: str, name: str, root: Path) -> str:
    import tensorflow_datasets as tfds

    if base in _PREPARED_FROM:
        return f"{name} is not prepared in {root}: run {_prepare_command(base, name, root)}"
    official = tfds.list_builders(with_community_datasets=False)
    if base in official:
        return (
            f"{name} is not prepared in {root}: run `instahide prepare {name} --data-dir {root}`, "
            "with `--source PATH` for files you have"
        )
    patterns = ("*/*/features.json", "*/*/*/features.json")  # NAME/VERSION, NAME/CONFIG/VERSION
    prepared = sorted({path.parts[len(root.parts)] for p in patterns for path in root.glob(p)})
    everything = f"prepared are {', '.join(prepared) or 'none'}"
    hint = did_you_mean(base, prepared, did_you_mean(base, official, everything))
    return (
        f"unknown data set {base!r}, neither prepared in {root} nor known to TFDS: {hint} "
        f"(`instahide prepare {base} --source PATH --data-dir {root}` makes one of your files)"
    )


def _image_and_label(
    name: str, features: Any
) -> tuple[tuple[int | None, int | None, int | None], Any]:
    """Shape of the "image" feature and the "label" feature itself."""
    import tensorflow_datasets as tfds

    keys = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    if "image" not in keys or "label" not in keys:
        raise InputError(
            f'{name} has features {", ".join(keys) or None}: needs "image", "label"; choose another'
        )
    image, label = features["image"], features["label"]
    if len(image.shape or ()) != 3 or image.np_dtype != np.uint8:
        raise InputError(
            f'"image" of {name} is {image}: expected uint8 (H, W, C); choose another data set'
        )
    height, width, channels = image.shape
    if channels not in (None, *MODE_OF_CHANNELS):
        raise InputError(
            f'"image" of {name} has {channels} channels: expected 1, 3 or 4; choose another set'
        )
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise InputError(
            f'"label" of {name} is {label}: expected classes (ClassLabel); choose another data set'
        )
    return (height, width, channels), label


def reading(source: Any, name: str, start: int, stop: int) -> AbstractContextManager[None]:
    """Report damage met while records `start` to `stop` - 1 of a TFDS data source are decoded.

    The `InputError` names the files that hold them, `name` (data set and split) and the records.
    """
    records = f"record {start}" if stop == start + 1 else f"records {start} to {stop - 1}"
    return decoding(lambda: f"{record_files(source, start, stop)}, {name}: {records}", ANEW)


def record_files(source: Any, start: int, stop: int) -> str:
    files, first = [], 0
    for part in source.dataset_info.splits[source.split].file_instructions:
        if first < stop and start < first + part.take:
            files.append(str(part.filename))
        first += part.take
    return ", ".join(files)


def check_record(record: dict[str, Any]) -> None:
    """ValueError for a record without its features.

    Of a file that is cut short at the end of a block all records are found, and all are empty.
    """
    missing = [name for name, value in record.items() if value is None]
    if missing:
        raise ValueError(f"it holds no {', '.join(missing)}: the file is damaged or cut short")


def read_example(split: Split, index: int, size: int | None = None) -> tuple[np.ndarray, int]:
    """Image uint8 [H, W, C] and label of one record; see `decode_image` for `size`.

    A set that leaves its number of channels open is read as RGB.

    Raises:
      DamagedRecordError: as for `decode_example`.
      InputError: likewise.
    """
    decoded, label = decode_example(split, index, size)
    return decoded.pixels, label


def decode_example(split: Split, index: int, size: int | None = None) -> tuple[Decoded, int]:
    """As `read_example`, with what its pixels do not tell of the file.

    Raises:
      DamagedRecordError: the record or its image cannot be decoded, or not without loss (see
        `image_format.open_image`); the message names data set, split, record and file.
      InputError: its label is outside [0, num_classes).
    """
    number = split.record(index)
    try:
        with reading(split.source, split.name, number, number + 1):
            record = split.source[number]
            check_record(record)
            decoded = decode(record["image"], split.image_shape[2] or 3, size)
    except InputError as error:
        raise DamagedRecordError(str(error)) from error.__cause__
    label = int(record["label"])
    if not 0 <= label < split.num_classes:
        raise InputError(f"{split.name}: {label_message(number, label, split.num_classes)}")
    return decoded, label
