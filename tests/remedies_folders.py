"""Cases of `remedies`: folders of images."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from remedies import case, refused

from instahide_jax import cli
from instahide_jax.data import image_folder
from instahide_jax.data.image_folder import arrays_from_folder, read_image_folder
from instahide_jax.data.prepare import prepare


def photos(root: Path, *shapes: tuple[int, int], classes: Sequence[str] = "ab") -> Path:
    """Folders of classes, each with images of these shapes."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, (height, width) in enumerate(shapes or ((8, 8),) * 3):
            image = tiny.pixels(height, width, 3, seed=9 * label + number)
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


@case
def folders_of_images(place: Path) -> None:
    with refused("--source photos is no folder; give a folder of images"):
        read_image_folder(Path("photos"))
    with refused("give a folder with one folder per class"):
        arrays_from_folder("photos")
    root = photos(place / "photos")
    arrays_from_folder(root)
    loose = root / "x.png"
    shutil.copy(root / "a" / "0.png", loose)
    with refused("lies outside the class folders: move it into one, or elsewhere"):
        read_image_folder(root)
    loose.rename(root / "a" / "x.png")
    (root / "c").mkdir()
    with refused("remove it or fill it"):
        read_image_folder(root)
    shutil.copy(root / "a" / "0.png", root / "c")
    with refused("a class needs one to train and one to test"):
        read_image_folder(root)
    shutil.copy(root / "a" / "1.png", root / "c")
    read_image_folder(root)
    one = photos(place / "one", classes="a")
    with refused("a folder of images for each of two or more classes"):
        read_image_folder(one)
    read_image_folder(photos(one, classes="b"))
    (place / "empty").mkdir()
    with refused("it needs a folder of images for each class"):
        arrays_from_folder("empty")
    mixed = photos(place / "mixed", (8, 8), (8, 9))
    with refused("give a size (--size) to scale all images to"):
        arrays_from_folder(mixed)
    arrays_from_folder(mixed, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_folder, "np", NoMemory())
        with refused("give a smaller size (--size)"):
            arrays_from_folder(mixed, 4096)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", _forbidden)
        with refused("cannot read the folder", "check its permissions"):
            read_image_folder(root)
    read_image_folder(root)


class NoMemory:
    """NumPy on a machine that is too small."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: tuple[int, ...], *_: Any) -> np.ndarray:
        if 0 not in shape:
            raise MemoryError
        return np.empty(shape)


def _forbidden(_: Path) -> None:
    raise PermissionError(13, "Permission denied")


@case
def files_that_are_no_images(place: Path) -> None:
    root = photos(place / "photos")
    damaged, deep = root / "a" / "0.png", root / "b" / "0.png"
    sound = deep.read_bytes()
    damaged.write_bytes(b"damaged")
    with refused("replace, convert or remove the file, or pass --skip-unreadable"):
        read_image_folder(root)
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(deep)
    with refused("replace, convert or remove the files, reduce more than 8 bits to 8 with the"):
        read_image_folder(root)
    read_image_folder(root, skip_unreadable=True)
    damaged.unlink()
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(deep)
    folder = read_image_folder(root)
    file = next(file for file in folder.splits["train"] if file.path == deep)
    deep.write_bytes(b"other")
    with refused("it has changed meanwhile; start again"):
        folder.read(file)
    deep.write_bytes(sound)
    folder = read_image_folder(root)
    folder.read(next(file for file in folder.splits["train"] if file.path == deep))
    for name in "xyz":
        (root / "a" / name).write_bytes(b"%PDF-1.7")
    with refused("3 PDF", "convert them to PNG or remove them, or pass --skip-unreadable"):
        read_image_folder(root)
    cli.run(["prepare", "photos", "--source", "photos", "--data-dir", "d", "--skip-unreadable"])
    for name in "xyz":
        (root / "a" / name).unlink()
    read_image_folder(root)
    with refused("which alone --skip-unreadable is for; leave it out"):
        prepare("mnist", root, place / "d", skip_unreadable=True)


@case
def folders_of_splits(place: Path) -> None:
    root = place / "split"
    photos(root / "train")
    arrays_from_folder("split")
    with refused("choose from train"):
        arrays_from_folder("split", split="test")
    arrays_from_folder("split", split="train")
    with refused("leave --split out"):
        arrays_from_folder("split/train", split="train")
    arrays_from_folder("split/train")
    photos(root / "other")
    with refused("name the splits train, validation and test", "or move the others elsewhere"):
        read_image_folder(root)
    (root / "other").rename(place / "other")
    read_image_folder(root)
    (place / "other").rename(root / "val")
    photos(root / "validation")
    with refused("put them together, or rename one, or move it elsewhere"):
        read_image_folder(root)
    shutil.rmtree(root / "validation")
    (root / "train").rename(place / "train")
    with refused("but no train folder: name one train, or give one of them, such as"):
        read_image_folder(root)
    read_image_folder(root / "val")
    (place / "train").rename(root / "train")
    photos(root / "val", classes="c")
    with refused("has classes that train lacks: c; rename them as in train, or move them"):
        read_image_folder(root)
    (root / "train" / "b").rename(root / "train" / "caf\u00e9")
    (root / "val" / "b").rename(root / "val" / "cafe\u0301")
    with refused("looks like 'caf\\xe9' in", "rename both to the same name"):
        read_image_folder(root)
    (root / "train" / "caf\u00e9").rename(root / "train" / "b")
    (root / "val" / "cafe\u0301").rename(root / "val" / "b")
    shutil.rmtree(root / "val" / "c")
    read_image_folder(root)
    for name in "ab":
        shutil.rmtree(root / "val" / name)
    with refused("has no class folders; fill or remove it"):
        read_image_folder(root)
    photos(root / "val")
    read_image_folder(root)
    link = root / "train" / "c"
    link.symlink_to(place / "nowhere")
    with refused("is a link that leads nowhere: mend or remove it"):
        read_image_folder(root)
    link.unlink()
    read_image_folder(root)


@case
def folders_that_seem_to_be_splits(place: Path) -> None:
    root = place / "own"
    for name in ("fold1", "fold2"):
        photos(root / name)
    with refused("name the splits train, validation and test, or give one of them"):
        read_image_folder(root)
    read_image_folder(root / "fold1")
    (root / "fold1").rename(root / "train")
    (root / "fold2").rename(root / "test")
    read_image_folder(root)
    photos(place / "words" / "my_train", classes="abc")
    photos(place / "words" / "my_test", classes="bcd")
    with refused("name them train, validation and test, or give one of them, such as"):
        read_image_folder(place / "words")
    read_image_folder(place / "words" / "my_test")
    photos(place / "outer" / "inner")
    with refused("alone: move what it holds into", "or give"):
        read_image_folder(place / "outer")
    read_image_folder(place / "outer" / "inner")
    for name in "ab":
        (place / "outer" / "inner" / name).rename(place / "outer" / name)
    (place / "outer" / "inner").rmdir()
    read_image_folder(place / "outer")
    for name in ("a", "b"):
        for split in ("train", "test"):
            photos(place / "below" / name / split, classes="x")
    with refused("put the splits above the classes, such as"):
        read_image_folder(place / "below")
    for name in ("a", "b"):
        for split in ("train", "test"):
            (place / "above" / split).mkdir(parents=True, exist_ok=True)
            (place / "below" / name / split / "x").rename(place / "above" / split / name)
    read_image_folder(place / "above")
    for fold in ("fold_1", "fold_2"):
        for split in ("train", "val"):
            photos(place / "folds" / fold / split)
    with refused("give one of the folders in", "such as", "put the splits above them"):
        read_image_folder(place / "folds")
    read_image_folder(place / "folds" / "fold_1")
    photos(place / "flat", classes=("seg_train", "seg_test"))
    with refused("name them train, validation and test, with a folder for each", "rename them"):
        read_image_folder(place / "flat")
    (place / "flat" / "seg_train").rename(place / "flat" / "rails")
    read_image_folder(place / "flat")
    for split in ("train", "test"):
        photos(place / "named" / split)
    read_image_folder(place / "named")


@case
def names_of_classes(place: Path) -> None:
    root = photos(place / "photos")
    for name in (os.fsdecode(b"caf\xe9"), " ", " a"):
        (root / "a").rename(root / name)
        with refused("rename it"):
            read_image_folder(root)
        (root / name).rename(root / "a")
    read_image_folder(root)
    shutil.copytree(root / "b", root / "a ")
    with refused("put them together, or rename one"):
        read_image_folder(root)
    (root / "a ").rename(root / "cafe\u0301")
    shutil.copytree(root / "b", root / "caf\u00e9")
    with refused("look the same: put them together, or rename one"):
        read_image_folder(root)
    shutil.rmtree(root / "cafe\u0301")
    (root / "caf\u00e9").rename(root / "c")
    read_image_folder(root)
    (root / "d").symlink_to("c")
    with refused("c and", "d are the same folder through a link: remove the link"):
        read_image_folder(root)
    (root / "d").unlink()
    (root / "b" / "more").symlink_to("../c")
    with refused("are one file through a link: remove the link that does not belong there"):
        read_image_folder(root)
    (root / "b" / "more").unlink()
    read_image_folder(root)
    packed = root / "d.zip"
    shutil.make_archive("d", "zip", root / "c")
    shutil.move("d.zip", packed)
    with refused("1 archive beside", "unpack it into a folder of its name, or move it elsewhere"):
        read_image_folder(root)
    read_image_folder(root, skip_unreadable=True)
    shutil.unpack_archive(packed, root / "d")
    read_image_folder(root)
    shutil.rmtree(root / "d")
    packed.rename(root / "more")
    with refused("unpack it and remove it, or move it elsewhere"):
        read_image_folder(root)
    shutil.unpack_archive(root / "more", root / "d", "zip")
    (root / "more").unlink()
    read_image_folder(root)
    file = root / "labels.csv"
    file.write_text("a", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: _forbidden(file))
        with refused("cannot read", "check its permissions"):
            read_image_folder(root)
    read_image_folder(root)
