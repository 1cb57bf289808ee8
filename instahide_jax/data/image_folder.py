"""A data set from a folder of images: one folder per class, optionally below folders of splits.

`read_image_folder` finds what `instahide prepare` stores, `arrays_from_folder` reads a folder of
classes into memory. Both see the same images, and in them the same pixels.
"""

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instahide_jax.data.embedded import Arrays, check_size, decode_image, make_arrays
from instahide_jax.data.file_tree import (
    FileTree,
    join,
    list_folder,
    refuse_shared,
    tree_notes,
    walk,
)
from instahide_jax.data.image_checks import (
    Facts,
    Problem,
    attempt,
    image_notes,
    inspect,
    lost_links,
    read_again,
    read_upright,
    settle,
    settle_beside,
)
from instahide_jax.data.image_format import BACKGROUND, FORMATS, open_image, upright
from instahide_jax.data.spelling import from_disk, on_disk
from instahide_jax.data.split_folders import class_names, find_splits, named_split, nested_note
from instahide_jax.errors import InputError, how_many
from instahide_jax.metrics import progress

_HOLD_OUT = 10


@dataclass(frozen=True)
class ImageFile:
    """An image of a split.

    Attributes:
        path: where it is.
        key: unique in the split.
        label: index of its class.
        stored: whether its bytes are kept.
        background: what shows through where it is transparent, "" for an opaque image.
    """

    path: Path
    key: bytes
    label: int
    stored: bool
    background: str


@dataclass(frozen=True)
class ImageFolder:
    """What a folder of images holds.

    Attributes:
        splits: split name -> its images, sorted by class and file name.
        class_names: the class folders' names, sorted; an image's `label` is an index into it.
        shape: (height, width, channels); height and width are None where sizes differ.
        notes: what a user should know: images held out or converted, files left out.
    """

    splits: Mapping[str, Sequence[ImageFile]]
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    notes: tuple[str, ...]

    def read(self, file: ImageFile) -> bytes:
        """The image as 8-bit PNG or JPEG with `shape[2]` channels."""
        if file.stored:
            return read_again(file.path)
        stream = io.BytesIO()
        read_upright(file.path, _mode(self.shape[2])).save(stream, "PNG")
        return stream.getvalue()


class FolderArrays(NamedTuple):
    """Images of a folder in memory, and what a user should know: files left out, for example."""

    arrays: Arrays
    notes: tuple[str, ...]


def read_image_folder(source: Path, *, skip_unreadable: bool = False) -> ImageFolder:
    """Find and check (decode) all images below `source`.

    Layout: SOURCE/CLASS/**/image, or SOURCE/SPLIT/CLASS/**/image with at least the split train;
    see `split_folders.split_of` for how splits may be spelled. Without a test or validation folder
    every 10th image of a class (in order of file names; the last one of a smaller class) becomes
    the split `test`. What a file is follows from its content. Links are followed. Hidden files and
    folders and those that systems make are left out. 8-bit gray or RGB images in PNG or JPEG are
    stored byte for byte, all other images are converted to PNG: upright, the first picture of
    several, over white where transparent; one colour image makes all of them colour images.

    Args:
        source: the folder.
        skip_unreadable: leave out files that cannot be used, which `notes` counts by kind. By
            default a few that are no images are left out, and all others are errors; see
            `image_checks.settle`.

    Raises:
        InputError: for no images, a single class, classes of the test folder that train lacks,
            an image or an archive beside the class folders, folders that seem to be splits by
            another name, an image in two classes or splits through a link, and files that cannot be
            used (up to ten named): those that do not decode, have more than 8 bits per channel, or
            are of another format.
    """
    if not source.is_dir():
        raise InputError(f"--source {source} is no folder; give a folder of images")
    roots = find_splits(source)
    names = class_names(roots, at_least=2)
    above = _above([source, *roots.values()])
    beside = settle_beside(above.files, skip_unreadable)
    trees = {split: _walk_classes(root) for split, root in roots.items()}
    paths = [path for classes in trees.values() for tree in classes.values() for path in tree.files]
    outcomes = {
        path: attempt(path, inspect) for path in progress(paths, "checking", len(paths), " images")
    }
    facts = {path: found for path, found in outcomes.items() if isinstance(found, Facts)}
    problems = [found for found in outcomes.values() if isinstance(found, Problem)]
    everything = join(tree for classes in trees.values() for tree in classes.values())
    notes = _left_out(above, everything, problems, skip_unreadable) + beside
    images = {
        split: {name: [p for p in tree.files if p in facts] for name, tree in classes.items()}
        for split, classes in trees.items()
    }
    for split, classes in images.items():
        _check_filled(roots[split], classes)
    notes += nested_note(roots["train"], images["train"])
    if len(images) == 1:
        images = _hold_out(images["train"], roots["train"])
        notes.append(f"no test folder: every {_HOLD_OUT}th image of a class is held out as test")
    # After the hold-out, which may part an image from a link to it in the same class.
    refuse_shared(chain(*(classes.values() for classes in images.values())))
    return _assemble(source, images, names, facts, notes)


def arrays_from_folder(
    path: str | Path,
    size: int | None = None,
    split: str | None = None,
    *,
    skip_unreadable: bool = False,
) -> FolderArrays:
    """Images of a folder of class folders, `path/CLASS/**/image`, sorted by class, then path.

    The classes are the folder names in sorted order. Where folders of splits lie above them, one
    split is read. Which files are images, and how they are converted to gray or RGB and turned
    upright, is as for `read_image_folder`. Images are gray [N, H, W, 1] when all files are, else
    RGB [N, H, W, 3].

    Args:
        path: the outer folder.
        size: scale and crop each image to [size, size] (shorter side to `size`, then centre crop);
            None keeps the pixels of the files, which then must agree in size.
        split: where there are folders of splits, which one; default train. Labels are those of
            train in any case.
        skip_unreadable: as for `read_image_folder`.

    Raises:
        InputError: no such folder, no class folder, a class without images, mixed sizes without
            `size`, a split that is not there, and otherwise as for `read_image_folder`.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give a folder with one folder per class")
    check_size(size)
    roots = find_splits(root)
    chosen, notes = _choose_split(root, roots, split)
    names = class_names({part: roots[part] for part in ("train", chosen)}, at_least=1)
    above = _above([root, roots[chosen]])
    beside = settle_beside(above.files, skip_unreadable)
    trees = _walk_classes(roots[chosen])
    labels = [names.index(name) for name, tree in trees.items() for _ in tree.files]
    everything = join(trees.values())
    images = np.empty((0, 0, 0, 0), np.uint8)
    taken: list[tuple[Path, Facts]] = []
    kept: list[int] = []
    problems: list[Problem] = []
    files = progress(everything.files, root.name, len(labels), " images")
    for file, label in zip(files, labels, strict=True):
        found = attempt(file, lambda data: _pixels(data, size))
        if isinstance(found, Problem):
            problems.append(found)
            continue
        pixels, facts = found
        if not taken:
            images = _empty((len(labels), *pixels.shape), root)
        if pixels.shape[:2] != images.shape[1:3]:
            (height, width), (first_height, first_width) = pixels.shape[:2], images.shape[1:3]
            raise InputError(
                f"{file} has {height} x {width} pixels, {taken[0][0]} has {first_height} x "
                f"{first_width}: give a size (--size) to scale all images to"
            )
        if pixels.shape[2] > images.shape[3]:  # the first in colour
            gray, images = images, _empty((*images.shape[:3], pixels.shape[2]), root)
            images[: len(taken)] = gray[: len(taken)]
        images[len(taken)] = pixels
        taken.append((file, facts))
        kept.append(label)
    notes += _left_out(above, everything, problems, skip_unreadable) + beside
    used = dict(taken)
    classes = {name: [p for p in tree.files if p in used] for name, tree in trees.items()}
    refuse_shared(classes.values())
    _check_filled(roots[chosen], classes)
    notes += [*nested_note(roots[chosen], classes), *image_notes(taken)]
    arrays = make_arrays(images[: len(taken)], np.array(kept), len(names), names)
    return FolderArrays(arrays, tuple(notes))


def _walk_classes(root: Path) -> dict[str, FileTree]:
    """Class name, as `class_names` gives it -> what lies below its folder, by name."""
    folders, _ = list_folder(root)
    return {from_disk(folder.name): walk(folder) for folder in folders}


def _choose_split(
    root: Path, roots: Mapping[str, Path], split: str | None
) -> tuple[str, list[str]]:
    """The split to read, and a note of it where there is a choice."""
    if root in roots.values():
        if split is not None:
            raise InputError(
                f"split is {split}, but {root} has no folders of splits; leave --split out"
            )
        return "train", []
    chosen = named_split("train" if split is None else split, roots)
    if chosen is None:
        raise InputError(
            f"{root} has no folder of the split {split!r}; choose from {', '.join(roots)}"
        )
    others = [name for part, folder in roots.items() for name in [folder.name] if part != chosen]
    rest = f", left out {', '.join(others)}" if others else ""
    return chosen, [f"read the split {roots[chosen].name}{rest}"]


def _above(roots: Iterable[Path]) -> FileTree:
    """What lies right in folders, beside the folders in them."""
    return join(list_folder(root)[1] for root in dict.fromkeys(roots))


def _left_out(
    above: FileTree, tree: FileTree, problems: Sequence[Problem], skip_unreadable: bool
) -> list[str]:
    """Notes of what is not read below the class folders, and of systems' files above them."""
    system = FileTree(system_files=above.system_files, system_folders=above.system_folders)
    lost = [*problems, *lost_links(tree)]
    total = len(tree.files) + len(lost) - len(problems)
    return tree_notes(join([system, tree])) + settle(lost, total, skip_unreadable)


def _check_filled(root: Path, classes: Mapping[str, Sequence[Path]]) -> None:
    for name, files in classes.items():
        if not files:
            raise InputError(
                f"{root / on_disk(name)} holds no images ({', '.join(FORMATS)}); remove it or "
                "fill it"
            )


def _empty(shape: tuple[int, ...], root: Path) -> np.ndarray:
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        raise InputError(
            f"the images of {root} need {math.prod(shape) / 1e9:.0f} GB of memory: give a smaller "
            "size (--size)"
        ) from error


def _hold_out(classes: Mapping[str, list[Path]], root: Path) -> dict[str, dict[str, list[Path]]]:
    """Every 10th file of a class for `test`, or its last one, the rest for `train`."""
    splits: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for name, files in classes.items():
        if len(files) < 2:
            raise InputError(
                f"{root / on_disk(name)} holds a single image; a class needs one to train and "
                "one to test"
            )
        test = files[_HOLD_OUT - 1 :: _HOLD_OUT] or files[-1:]
        held_out = set(test)
        splits["test"][name] = test
        splits["train"][name] = [file for file in files if file not in held_out]
    return splits


def _assemble(
    source: Path,
    images: Mapping[str, Mapping[str, list[Path]]],
    class_names: tuple[str, ...],
    facts: Mapping[Path, Facts],
    notes: Sequence[str],
) -> ImageFolder:
    channels = 1 if all(fact.gray for fact in facts.values()) else 3
    sizes = {fact.size for fact in facts.values()}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    splits = {
        split: tuple(
            ImageFile(
                path,
                os.fsencode(f"{split}/{path.relative_to(source)}"),
                class_names.index(name),
                facts[path].plain == _mode(channels),
                BACKGROUND if facts[path].transparent else "",
            )
            for name in class_names
            for path in classes.get(name, ())
        )
        for split, classes in images.items()
    }
    converted = sum(not file.stored for files in splits.values() for file in files)
    all_notes = [*notes, *image_notes(facts.items())]
    if converted:
        all_notes.append(f"{how_many(converted, 'image')} converted to 8-bit {_mode(channels)} PNG")
    return ImageFolder(splits, class_names, (height, width, channels), tuple(all_notes))


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _pixels(data: bytes, size: int | None) -> tuple[np.ndarray, Facts]:
    """An image as it would be decoded once it is stored, gray [H, W, 1] or RGB [H, W, 3]."""
    facts = inspect(data, decode=False)
    channels = 1 if facts.gray else 3
    if facts.plain == _mode(channels):
        return decode_image(data, channels, size), facts
    with open_image(data) as image:
        picture = upright(image, _mode(channels))
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    return decode_image(pixels, channels, size), facts
