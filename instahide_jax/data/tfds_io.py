"""Labelled images from TFDS, `.npz` files and class folders, without TensorFlow.

`open_split` gives random access to a prepared TFDS split, `load_arrays` decodes a whole split
into memory. TFDS data sets must be stored in the `array_record` format, the only one that can be
read at random and without TensorFlow.
"""

import difflib
import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from instahide_jax.errors import InputError

# What Pillow and its codecs raise on damaged or hostile files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_IMAGE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
_GREY_MODES = frozenset(["1", "L"])
_COLOUR_MODES = frozenset(["LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
_MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_CHUNK = 256  # examples decoded by a thread at a time


@dataclass(frozen=True, eq=False)
class Arrays:
    """A labelled image set in memory.

    Attributes:
      images: [N, H, W, C] uint8; float32 only when a `.npz` file held floating-point pixels.
      labels: [N] int32 in [0, num_classes).
      num_classes: number of classes, also of those without an example.
      class_names: one name per class.
      identity: hexadecimal SHA-256 over shape, dtype and bytes of images and labels. It covers
        the content and its order, not the names of the classes or where the data came from.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    identity: str


@dataclass(frozen=True, eq=False)
class Split:
    """Random access to a prepared TFDS split; nothing is decoded before it is asked for.

    Attributes:
      source: `len(source)`, `source[i]`: a dict whose "image" is the encoded file as bytes (the
        array itself for a set that stores plain tensors) and "label" an integer.
      num_examples: number of records.
      num_classes: number of classes.
      class_names: one name per class.
      image_shape: (H, W, C), None where it varies.
      identity: name, config, version, split and number of examples, followed by a SHA-256 over
        `dataset_info.json`, `features.json` and name and size of every record file of the split.
        It does not cover the bytes of the record files, which may be hundreds of gigabytes: a
        file changed in place to other content of the same size keeps its identity. Moving the
        data set to another folder or machine does not change it.
    """

    source: Any
    num_examples: int
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int | None]
    identity: str

    @property
    def name(self) -> str:
        """Name, config, version and split, for messages."""
        return self.identity.split(" ", 1)[0]


def check_arrays(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Accept images [N, H, W, C] (uint8 or floating) with labels [N] (integers in range).

    Raises:
      InputError: for an empty set, another number of dimensions, different lengths, another
        dtype, a label outside [0, num_classes), or a pixel that is NaN or infinite.
    """
    if images.ndim != 4:
        raise InputError(
            f"images have shape {images.shape}: expected 4 dimensions [N, H, W, C] "
            "(for greyscale add a last axis of length 1)"
        )
    if labels.ndim != 1:
        raise InputError(f"labels have shape {labels.shape}: expected one integer per image, [N]")
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images but {len(labels)} labels: need one per image")
    if images.size == 0:
        raise InputError(f"the image set is empty, shape {images.shape}: give at least one image")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"images have dtype {images.dtype}: convert to uint8 or float32")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have dtype {labels.dtype}: convert to integers")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: must be at least 1")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise InputError(_label_message(index, int(labels[index]), num_classes))
    if images.dtype != np.uint8:
        _check_finite(images)


def _label_message(index: int, label: int, num_classes: int) -> str:
    return (
        f"label {index} is {label}: must be in [0, {num_classes}) for {num_classes} classes; "
        "correct the label or the number of classes"
    )


def _check_finite(images: np.ndarray) -> None:
    for start in range(0, len(images), 1024):  # a mask of the whole set could be gigabytes
        finite = np.isfinite(images[start : start + 1024]).all(axis=(1, 2, 3))
        if not finite.all():
            index = start + int(np.argmin(finite))
            raise InputError(f"image {index} holds NaN or infinite pixels: correct or remove it")


def make_arrays(
    images: np.ndarray, labels: np.ndarray, num_classes: int, class_names: Iterable[str]
) -> Arrays:
    """`Arrays` from checked parts: labels become int32, the identity is computed.

    Raises:
      InputError: whatever `check_arrays` finds.
    """
    check_arrays(images, labels, num_classes)
    labels = labels.astype(np.int32)
    digest = hashlib.sha256()
    for array in (images, labels):
        digest.update(f"{array.shape} {array.dtype.str} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return Arrays(images, labels, num_classes, tuple(class_names), digest.hexdigest())


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

    folder = _find_prepared(name, _data_root(data_dir))
    builder = tfds.builder_from_directory(folder)
    info = builder.info
    if info.file_format.value != "array_record":
        raise InputError(
            f"{name} in {folder} is stored as {info.file_format.value}, expected array_record: "
            f"remove the folder and run `instahide prepare {name}`"
        )
    image_shape, label = _image_and_label(name, info.features)
    available = ", ".join(info.splits)
    try:
        selected = info.splits[split]
        num_examples = selected.num_examples
        files = list(selected.filepaths)
    except (KeyError, ValueError) as error:
        raise InputError(f"{name} has no split {split!r}: available are {available}") from error
    if num_examples < 1:
        raise InputError(f"split {split!r} of {name} is empty: available are {available}")
    digest = hashlib.sha256()
    for file in (folder / "dataset_info.json", folder / "features.json"):
        digest.update(file.read_bytes())
    for file in map(Path, files):
        if not file.is_file():
            raise InputError(f"{file} is missing: prepare {name} again in a new folder")
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


def _data_root(data_dir: str | None) -> Path:
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in root:
        raise InputError(f"data_dir is {root!r}: must be a local folder; mount or copy the bucket")
    return Path(root).expanduser()


def _find_prepared(name: str, root: Path) -> Path:
    """The folder of the newest prepared version that `name` asks for."""
    match = re.fullmatch(r"(\w[\w.-]*)(?:/(\w[\w.,=+-]*))?(?::([\d.*]+))?", name)
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
            raise InputError(
                f"{name} is not prepared in {root}: name one of "
                f"{', '.join(f'{base}/{other}' for other in configs) or base}"
            )
        versions = configs[config]
    wanted = [v for v in versions if version is None or _version_matches(version, v)]
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


def _version_matches(wanted: str, version: str) -> bool:
    """Whether `1.2.3` fits `wanted`, in which `*` stands for any number."""
    pairs = list(zip(wanted.split("."), version.split("."), strict=False))
    return len(wanted.split(".")) == 3 and all(w in ("*", v) for w, v in pairs)


def _default_config(top: Path, configs: list[str]) -> str | None:
    """The config that TFDS recorded as the default, or the only one there is."""
    metadata = top / ".config" / "metadata.json"
    if metadata.is_file():
        default = re.search(r'"default_config_name":\s*"([^"]+)"', metadata.read_text())
        if default and default[1] in configs:
            return default[1]
    return configs[0] if len(configs) == 1 else None


def _not_prepared(base: str, name: str, root: Path) -> str:
    import tensorflow_datasets as tfds

    official = tfds.list_builders(with_community_datasets=False)
    if base in official:
        return (
            f"{name} is not prepared in {root}: run `instahide prepare {name}`, or "
            f"`instahide prepare {name} --source PATH` with files you have"
        )
    patterns = ("*/*/features.json", "*/*/*/features.json")  # NAME/VERSION, NAME/CONFIG/VERSION
    prepared = sorted({path.parts[len(root.parts)] for p in patterns for path in root.glob(p)})
    near = difflib.get_close_matches(base, prepared, 1) or difflib.get_close_matches(
        base, official, 1
    )
    hint = f"did you mean {near[0]}?" if near else f"prepared are {', '.join(prepared) or 'none'}"
    return (
        f"unknown data set {base!r}, neither prepared in {root} nor known to TFDS: {hint} "
        f"(`instahide prepare {base} --source PATH` makes one of your own files)"
    )


def _image_and_label(
    name: str, features: Any
) -> tuple[tuple[int | None, int | None, int | None], Any]:
    """Shape of the "image" feature and the "label" feature itself."""
    import tensorflow_datasets as tfds

    keys = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    if "image" not in keys or "label" not in keys:
        raise InputError(f'{name} has features {", ".join(keys) or None}: needs "image", "label"')
    image, label = features["image"], features["label"]
    if len(image.shape or ()) != 3 or image.np_dtype != np.uint8:
        raise InputError(f'"image" of {name} is {image}: expected uint8 of shape (H, W, C)')
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise InputError(f'"label" of {name} is {label}: expected a ClassLabel with classes')
    height, width, channels = image.shape
    return (height, width, channels), label


def decode_image(data: bytes | np.ndarray | Path, channels: int, size: int | None) -> np.ndarray:
    """Decode an image file to uint8 [H, W, channels], or [size, size, channels] with `size`.

    With `size` the largest centred square is scaled to size x size (which is: shorter side to
    `size`, then centre crop) by an antialiased bilinear filter. Orientation tags are ignored.

    Args:
      data: an encoded image, the path of one, or pixels already decoded [H, W, channels].
      channels: 1 (greyscale), 3 (RGB) or 4 (RGBA); other colour spaces are converted.
      size: side of the result, or None for the size of the file.

    Raises:
      one of `DECODE_ERRORS` for a file that cannot be decoded; the caller knows its name.
    """
    mode = _MODE_OF_CHANNELS[channels]
    if isinstance(data, np.ndarray):
        if size is None:
            return data
        image = Image.fromarray(data[..., 0] if channels == 1 else data)
    else:
        image = Image.open(BytesIO(data) if isinstance(data, bytes) else data)
    with image:
        if image.mode not in _GREY_MODES | _COLOUR_MODES:
            raise ValueError(f"pixels of mode {image.mode}; convert the file to 8 bits a channel")
        if size is not None:
            image.draft(mode, (2 * size, 2 * size))  # JPEG: decode at reduced scale, much faster
        image = image.convert(mode)
    if size is not None:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).reshape(image.height, image.width, channels)


def load_arrays(name: str, split: str, data_dir: str | None = None) -> Arrays:
    """Decode a whole TFDS split into memory, images uint8 [N, H, W, C], in the order of the split.

    Shows a progress bar when it takes longer than a second. Arguments as for `open_split`.

    Raises:
      InputError: whatever `open_split` finds, a corrupt image (with its record index), images of
        different shapes, or a label out of range.
    """
    opened = open_split(name, split, data_dir)
    first = read_example(opened, 0, None)[0]
    images = np.empty((opened.num_examples, *first.shape), np.uint8)
    labels = np.empty(opened.num_examples, np.int64)

    def decode(start: int) -> int:
        stop = min(start + _CHUNK, opened.num_examples)
        for index in range(start, stop):
            image, labels[index] = read_example(opened, index, None)
            if image.shape != first.shape:
                raise InputError(
                    f"{opened.name}: image {index} has shape {image.shape}, image 0 {first.shape}: "
                    "arrays need one shape; stream the data set with a resize instead"
                )
            images[index] = image
        return stop - start

    starts = range(0, opened.num_examples, _CHUNK)
    with (
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        tqdm(total=opened.num_examples, desc=opened.name, unit=" images", delay=1) as bar,
    ):
        for count in pool.map(decode, starts):
            bar.update(count)
    return make_arrays(images, labels, opened.num_classes, opened.class_names)


def read_example(split: Split, index: int, size: int | None) -> tuple[np.ndarray, int]:
    """Image uint8 [H, W, C] (or [size, size, C]) and label of one record.

    A set that leaves its number of channels open is read as RGB.

    Raises:
      InputError: the record or its image cannot be decoded, or its label is outside
        [0, num_classes); the message names data set, split and record.
    """
    try:
        record = split.source[index]
        image = decode_image(record["image"], split.image_shape[2] or 3, size)
    except DECODE_ERRORS as error:
        raise InputError(
            f"{split.name}: record {index} cannot be decoded ({error}): prepare the set again"
        ) from error
    label = int(record["label"])
    if not 0 <= label < split.num_classes:
        raise InputError(f"{split.name}: {_label_message(index, label, split.num_classes)}")
    return image, label
