"""Which folders of a source are its splits, and which are its classes."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path

from instahide_jax.data.file_kinds import is_image
from instahide_jax.data.file_tree import list_folder, read_head
from instahide_jax.data.spelling import appearance, from_disk, on_disk
from instahide_jax.errors import InputError, listed

SPLITS = ("train", "validation", "test")
_SPELLINGS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
_WORD = "|".join(f"(?P<{split}>{'|'.join(words)})" for split, words in _SPELLINGS.items())
# What may follow, as in "Training Set", "test_images", "val2017".
_AFTER = r"[\W_]*(?:set|data|dataset|split|images?|imgs?|folder)?"
_NAME = re.compile(rf"[\W\d_]*(?:{_WORD}){_AFTER}[\W\d_]*", re.IGNORECASE)
_IF_CLASSES = "if they are the classes, move the images right into them"


def split_of(name: str) -> str | None:
    """The split that a folder's name means, whatever its case and usual spelling, or None."""
    match = _NAME.fullmatch(name)
    return match.lastgroup if match else None


def named_split(option: str, roots: Mapping[str, Path]) -> str | None:
    """The split that a user names: by its folder, or in one of the usual spellings; else None."""
    of_folders = {folder.name: split for split, folder in roots.items()}
    # Words alone: with a number or a bracket a slice may be meant, as in train[:2].
    is_words = re.fullmatch(r"[a-z_ -]*[a-z]", option, re.IGNORECASE)
    split = of_folders.get(option) or (split_of(option) if is_words else None)
    return split if split in roots else None


def find_splits(source: Path) -> dict[str, Path]:
    """Split -> the folder of its class folders, in the order of `SPLITS`.

    A source without folders of splits is itself the folder of `train`.

    Raises:
        InputError: for folders of splits among others or without train, two of one split or two
            that are one folder, and for folders that seem to be splits by another name; for an
            image or a broken link beside the folders.
    """
    folders = class_folders(source)
    named = [folder for folder in folders if split_of(folder.name)]
    others = [folder for folder in folders if not split_of(folder.name)]
    if not named or _is_class(named, others):
        roots = {"train": source}
    elif others:
        raise InputError(
            f"{source} mixes folders of splits ({_names(named)}) with others ({_names(others)}): "
            "name the splits train, validation and test, rename a class that is named like one, or "
            "move the others elsewhere"
        )
    else:
        roots = _by_split(source, named)
    _refuse_unnamed_splits(roots)
    return roots


def _is_class(named: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether a lone "train" is a class: it and "car" and "bus" beside it hold images alike."""
    return (
        len(named) == 1
        and bool(others)
        and not class_folders(named[0], loose=True)
        and all(_holds_images(folder) and not _holds_classes(folder) for folder in others)
    )


def _by_split(source: Path, folders: Sequence[Path]) -> dict[str, Path]:
    roots: dict[str, Path] = {}
    for folder in folders:
        split = split_of(folder.name)
        assert split is not None
        if split in roots:
            raise InputError(
                f"{source} has both {roots[split].name} and {folder.name}, which mean the split "
                f"{split}; put them together, or rename one, or move it elsewhere"
            )
        roots[split] = folder
    if "train" not in roots:
        raise InputError(
            f"{source} has {_names(folders)} but no train folder: name one train, or give one of "
            f"them, such as {folders[0]}"
        )
    _refuse_overlap(roots.values())
    return {split: roots[split] for split in SPLITS if split in roots}


def _refuse_overlap(folders: Iterable[Path]) -> None:
    """Refuse folders that are one through a link, or of which one lies in another."""
    places = sorted((folder.resolve().parts, folder) for folder in folders)
    for (outer, one), (inner, other) in pairwise(places):  # what lies within follows at once
        if inner[: len(outer)] == outer:
            how = "are the same folder" if inner == outer else "lie one in the other"
            raise InputError(
                f"{one} and {other} {how} through a link: remove the link, by which images would "
                "be used twice"
            )


def class_folders(root: Path, *, loose: bool = False) -> list[Path]:
    """The folders right in `root`, sorted, without those that systems make.

    Raises:
        InputError: unless `loose`, for an image or a broken link beside them: it may be part of a
            class, or a class.
    """
    folders, beside = list_folder(root)
    if not loose:
        for link in beside.dangling:
            raise InputError(f"{link} is a link that leads nowhere: mend or remove it")
        for file in beside.files:
            if _is_image(file):
                raise InputError(
                    f"{file} lies outside the class folders: move it into one, or elsewhere"
                )
    return folders


def _is_image(path: Path) -> bool:
    return is_image(read_head(path), path)


def _refuse_unnamed_splits(roots: Mapping[str, Path]) -> None:
    """Refuse folders that hold folders which look more like the classes than they themselves do.

    Those of train, by whose classes those of the other splits are checked.
    """
    root = roots["train"]
    folders = class_folders(root)
    above = [folder for folder in folders if _holds_classes(folder)]
    if above and len(folders) == 1:
        remedy = f"move what it holds into {root}"
        others = [folder for folder in roots.values() if folder != root]
        remedy += f", and likewise in {_names(others)}" if others else f", or give {folders[0]}"
        raise InputError(f"{root} holds the folder {folders[0].name} alone: {remedy}")
    for folder in folders:
        _refuse_splits_within(root, folder)
    inner = {folder: _below_lone_folders(class_folders(folder, loose=True)) for folder in above}
    kinds = {folder: {child.name for child in below} for folder, below in inner.items()}
    fullest = max(above, key=lambda folder: len(kinds[folder]), default=root)
    common = kinds.get(fullest, set())
    # One folder among the others may hold images alone, as a test set without labels does.
    most = len(above) > 1 and 2 * len(above) > len(folders)
    if most and len(common) > 1 and all(kind <= common for kind in kinds.values()):
        raise InputError(
            f"{'all' if above == folders else 'most'} folders in {root} ({_names(above)}) hold "
            f"folders of the same names ({_names(inner[fullest])}), as splits do: name the splits "
            f"train, validation and test, or give one of them, such as {above[0]}; {_IF_CLASSES}"
        )
    if above and 2 * len(above) >= len(folders) and len(_mentioned(folders)) > 1:
        raise InputError(
            f"the folders in {root} seem to be splits ({_names(folders)}): name them train, "
            f"validation and test, or give one of them, such as {above[0]}; {_IF_CLASSES}"
        )
    if alike := _alike_but_for_splits(folders):
        raise InputError(
            f"the names of folders in {root} differ by the split alone ({_names(alike)}): name "
            "them train, validation and test, with a folder for each class in them; if they are "
            "the classes, rename them"
        )


def _refuse_splits_within(root: Path, folder: Path) -> None:
    """Refuse a folder of `root` that holds splits: a class, or a fold of a cross-validation."""
    below = class_folders(folder, loose=True)
    splits = [child for child in below if split_of(child.name)]
    if len({split_of(child.name) for child in splits}) < 2:
        return
    moved = root / splits[0].name / folder.name
    if any(_holds_classes(child) and len(class_folders(child, loose=True)) > 1 for child in splits):
        raise InputError(
            f"{folder} holds splits of its own ({_names(below)}) with folders in them: give one of "
            f"the folders in {root}, such as {folder}; if they are the classes, put the splits "
            f"above them, such as {moved}"
        )
    raise InputError(
        f"{folder} holds the folders of splits {_names(below)}: put the splits above the "
        f"classes, such as {moved}"
    )


def _below_lone_folders(folders: list[Path]) -> list[Path]:
    """Folders, or those below them where a folder lies alone and holds folders, as classes are."""
    while len(folders) == 1 and _holds_classes(folders[0]):
        folders = class_folders(folders[0], loose=True)
    return folders


def _holds_classes(folder: Path) -> bool:
    """Whether what a folder holds are folders, beside which there may be a few stray images."""
    below = class_folders(folder, loose=True)
    _, beside = list_folder(folder)
    images = (file for file in beside.files if _is_image(file))
    return bool(below) and len(list(islice(images, len(below) + 1))) <= len(below)


def _holds_images(folder: Path) -> bool:
    _, beside = list_folder(folder)
    return any(_is_image(file) for file in beside.files)


def _mentioned(folders: Sequence[Path]) -> set[str]:
    """The splits whose names are words of the folders' names, as in seg_train and seg_test."""
    words = {word for folder in folders for word in re.findall(r"[^\W\d_]+", folder.name)}
    return {split for word in words if (split := split_of(word))}


def _alike_but_for_splits(folders: Sequence[Path]) -> list[Path]:
    """Folders, most of all, whose names are one but for the split, as seg_train and seg_test.

    None where names say more, as train_station and test_tube.
    """
    alike: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        words = re.split(r"([^\W\d_]+|\d+)", folder.name.casefold())
        rest = ("#" if word.isdigit() else "" if split_of(word) else word for word in words)
        if _mentioned([folder]):
            alike["|".join(rest)].append(folder)
    for found in alike.values():
        if len(_mentioned(found)) > 1 and 2 * len(found) > len(folders):
            return found
    return []


def class_names(roots: Mapping[str, Path], *, at_least: int) -> tuple[str, ...]:
    """The names of the class folders of `train`, sorted; those of other splits are among them.

    They are read as UTF-8 in any locale; `spelling.on_disk` leads back to the folders.

    Raises:
        InputError: for fewer than `at_least` (1 or 2) classes, a class that train lacks, a split
            without classes, two class folders that are one or lie in one another, and names that
            cannot be stored as lines of UTF-8, or of which two look the same or differ by case
            alone.
    """
    folders = {split: class_folders(root) for split, root in roots.items()}
    found_in = {split: list(map(_utf8_name, found)) for split, found in folders.items()}
    names = tuple(sorted(found_in["train"]))
    if len(names) < at_least:
        found = f"only the folder {names[0]}" if names else "no folders"
        each = "class" if at_least == 1 else "of two or more classes"
        raise InputError(
            f"{roots['train']} has {found}; it needs a folder of images for each {each}"
        )
    looks = {appearance(name).casefold(): name for name in names}
    for split, classes in found_in.items():
        unknown = sorted(set(classes) - set(names))
        for name in unknown:
            if (other := looks.get(appearance(name).casefold())) is not None:
                raise InputError(
                    f"the class {name!a} in {roots[split]} looks like {other!a} in "
                    f"{roots['train']}, but is spelled differently: rename both to the same name"
                )
        if unknown:
            raise InputError(
                f"{roots[split]} has classes that train lacks: {listed(unknown)}; rename "
                "them as in train, or move them elsewhere"
            )
        if not classes:
            raise InputError(f"{roots[split]} has no class folders; fill or remove it")
    for name in names:
        other = looks[appearance(name).casefold()]
        if other != name:
            same = appearance(other) == appearance(name)
            how = "look the same" if same else "differ by case alone"
            raise InputError(
                f"the class folders {name!a} and {other!a} in {roots['train']} {how}: put "
                "them together, or rename one"
            )
    for name in names:
        if name != name.strip() or len(name.splitlines()) > 1:
            raise InputError(
                f"the name of a class folder in {roots['train']} is {name!r}: rename it to a line "
                "of text without blanks around it"  # which TFDS removes
            )
    _refuse_overlap(chain(*folders.values()))
    return names


def _utf8_name(folder: Path) -> str:
    try:
        return from_disk(folder.name)
    except UnicodeDecodeError:
        raise InputError(
            f"the name of the class folder {folder} is no valid UTF-8: rename it"
        ) from None


def nested_note(root: Path, classes: Mapping[str, Sequence[Path]]) -> list[str]:
    """A note where all images of all classes lie in folders below the class folders."""
    if not all(
        files and all(file.parent != root / on_disk(name) for file in files)
        for name, files in classes.items()
    ):
        return []
    return [f"the classes are the folders right in {root}, not those below them"]


def _names(folders: Sequence[Path]) -> str:
    return listed([folder.name for folder in folders])
