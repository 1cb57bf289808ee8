"""A data set from a folder of images: one folder per class, optionally below train/ and test/.

`read_image_folder` finds what `instahide prepare` stores, `arrays_from_folder` reads a folder of
classes into memory. Both see the same images, and in them the same pixels.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, ImageOps

from instahide_jax.data.embedded import (
    EIGHT_BIT_MODES,
    GRAY_MODES,
    Arrays,
    check_size,
    decode_image,
    decoding,
    make_arrays,
    open_image,
)
from instahide_jax.errors import InputError
from instahide_jax.metrics import progress

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
_HOLD_OUT = 10
# Offset of the bit depth in a PNG: signature, length and type of IHDR, width, height.
_PNG_DEPTH = 24
# Exif orientations from this one on exchange height and width.
_FIRST_QUARTER_TURN = 5
_REPLACE = "replace or remove the file"


@dataclass(frozen=True)
class ImageFile:
    """An image of a split; `key` is unique in it, `stored` tells whether its bytes are kept."""

    path: Path
    key: str
    label: int
    stored: bool


@dataclass(frozen=True)
class ImageFolder:
    """What a folder of images holds.

    Attributes:
        splits: split name -> its images, sorted by class and file name.
        class_names: the class folders' names, sorted; an image's `label` is an index into it.
        shape: (height, width, channels); height and width are None where sizes differ.
        notes: what a user should know: images held out, converted or ignored.
    """

    splits: Mapping[str, Sequence[ImageFile]]
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    notes: tuple[str, ...]

    def read(self, file: ImageFile) -> bytes:
        """The image as 8-bit PNG or JPEG with `shape[2]` channels."""
        data = file.path.read_bytes()
        return data if file.stored else _upright_png(data, _mode(self.shape[2]))


@dataclass(frozen=True)
class _Facts:
    """What decides how an image is stored."""

    size: tuple[int, int]  # (height, width) of the upright image
    gray: bool
    plain: str | None  # mode of the decoded bytes, None where no reader gets them right


def read_image_folder(source: Path) -> ImageFolder:
    """Find and check (decode) all images below `source`.

    Layout: SOURCE/CLASS/**/image, or SOURCE/{train,test,val,validation}/CLASS/**/image with at
    least `train`. Without a test or validation folder every 10th image of a class (in order of
    file names; the last one of a smaller class) becomes the split `test`. Hidden files are passed
    over. 8-bit gray or RGB images in PNG or JPEG are stored byte for byte, all other images are
    converted to PNG; one colour image makes all of them colour images.

    Raises:
        InputError: for no images, a single class, classes of the test folder that train lacks,
            an image beside the class folders, one that does not decode (named) or has more than 8
            bits per channel.
    """
    if not source.is_dir():
        raise InputError(f"--source {source} is no folder")
    roots = _split_roots(source)
    class_names = _class_names(roots)
    images: dict[str, dict[str, list[Path]]] = {}
    ignored: list[Path] = []
    for split, root in roots.items():
        images[split], others = _class_images(root)
        ignored += others
    held_out = len(images) == 1
    if held_out:
        images = _hold_out(images["train"], source)
    return _assemble(source, images, class_names, held_out, ignored)


def arrays_from_folder(path: str | Path, size: int | None = None) -> Arrays:
    """Images of a folder of class folders, `path/CLASS/**/image`, sorted by class, then path.

    The classes are the folder names in sorted order. Which files are images, and how they are
    converted to gray or RGB and turned upright, is as for `read_image_folder`. Images are gray
    [N, H, W, 1] when all files are, else RGB [N, H, W, 3].

    Args:
        path: the outer folder.
        size: scale and crop each image to [size, size] (shorter side to `size`, then centre crop);
            None keeps the pixels of the files, which then must agree in size.

    Raises:
        InputError: no such folder, no class folder, folders of splits, a class without images, an
            image beside the class folders, one that cannot be decoded (named) or has more than 8
            bits per channel, mixed sizes without `size`.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give a folder with one folder per class")
    check_size(size)
    roots = _split_roots(root)
    if root not in roots.values():
        raise InputError(
            f"{root} has a folder for each split, not for each class: give {roots['train']}"
        )
    classes, _ = _class_images(root)
    if not classes:
        raise InputError(f"{root} holds no class folders: put the images in one folder per class")
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    paths = [file for files in classes.values() for file in files]
    images = np.empty((0, 0, 0, 0), np.uint8)
    for number, file in enumerate(progress(paths, root.name, len(paths), " images")):
        image = _pixels(file, size)
        if not number:  # one array from the start: a list of images would be there twice
            images = np.empty((len(paths), *image.shape), np.uint8)
        if image.shape[:2] != images.shape[1:3]:
            (height, width), (first_height, first_width) = image.shape[:2], images.shape[1:3]
            raise InputError(
                f"{file} has {height} x {width} pixels, {paths[0]} has {first_height} x "
                f"{first_width}: give a size (--size) to scale all images to"
            )
        if image.shape[2] > images.shape[3]:  # the first in colour
            images = np.repeat(images, image.shape[2], axis=3)
        images[number] = image
    return make_arrays(images, np.array(labels), len(classes), classes)


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(
        child
        for child in folder.iterdir()
        if child.is_dir() and not child.name.startswith((".", "__MACOSX"))
    )


def _split_roots(source: Path) -> dict[str, Path]:
    """Split name -> folder of class folders."""
    folders = _visible_folders(source)
    if not any(folder.name in _SPLITS for folder in folders):
        return {"train": source}
    strangers = [folder.name for folder in folders if folder.name not in _SPLITS]
    if strangers:
        raise InputError(f"{source} mixes split folders with others: {', '.join(strangers[:5])}")
    _refuse_loose_images(source)
    roots = {_SPLITS[folder.name]: folder for folder in folders}
    if "train" not in roots:
        raise InputError(f"{source} has {', '.join(f.name for f in folders)} but no train folder")
    if len(roots) < len(folders):
        raise InputError(f"{source} has both val and validation; keep one")
    return {name: roots[name] for name in ("train", "validation", "test") if name in roots}


def _class_images(root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Class name -> its images, by names and paths, and what else lies in the class folders."""
    _refuse_loose_images(root)
    classes: dict[str, list[Path]] = {}
    others: list[Path] = []
    for folder in _visible_folders(root):
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        classes[folder.name] = [path for path in files if _is_image(path)]
        others += [path for path in files if not _is_image(path)]
        if not classes[folder.name]:
            raise InputError(
                f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); remove it or fill it"
            )
    return classes, others


def _refuse_loose_images(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and _is_image(path) and not path.name.startswith("."):
            raise InputError(f"{path} lies outside the class folders: move it into one")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _class_names(roots: Mapping[str, Path]) -> tuple[str, ...]:
    listed = {split: [f.name for f in _visible_folders(root)] for split, root in roots.items()}
    names = tuple(listed["train"])
    if len(names) < 2:
        found = f"only the folder {names[0]}" if names else "no folders"
        raise InputError(
            f"{roots['train']} has {found}; it needs a folder of images for each of two or more "
            "classes"
        )
    for split, classes in listed.items():
        unknown = sorted(set(classes) - set(names))
        if unknown:
            raise InputError(f"{roots[split]} has classes that train lacks: {', '.join(unknown)}")
        if not classes:
            raise InputError(f"{roots[split]} has no class folders")
    return names


def _hold_out(classes: Mapping[str, list[Path]], source: Path) -> dict[str, dict[str, list[Path]]]:
    """Every 10th file of a class for `test`, or its last one, the rest for `train`."""
    splits: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for name, files in classes.items():
        if len(files) < 2:
            raise InputError(
                f"{source / name} holds a single image; a class needs one to train and one to test"
            )
        test = files[_HOLD_OUT - 1 :: _HOLD_OUT] or files[-1:]
        splits["test"][name] = test
        splits["train"][name] = [file for file in files if file not in set(test)]
    return splits


def _assemble(
    source: Path,
    images: Mapping[str, Mapping[str, list[Path]]],
    class_names: tuple[str, ...],
    held_out: bool,
    ignored: Sequence[Path],
) -> ImageFolder:
    paths = [path for classes in images.values() for files in classes.values() for path in files]
    facts = {path: _inspect(path) for path in progress(paths, "checking", len(paths), " images")}
    channels = 1 if all(fact.gray for fact in facts.values()) else 3
    sizes = {fact.size for fact in facts.values()}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    splits = {
        split: tuple(
            ImageFile(
                path,
                f"{split}/{path.relative_to(source)}",
                class_names.index(name),
                facts[path].plain == _mode(channels),
            )
            for name in class_names
            for path in classes.get(name, ())
        )
        for split, classes in images.items()
    }
    notes = []
    if held_out:
        notes.append(f"no test folder: every {_HOLD_OUT}th image of a class is held out as test")
    converted = sum(not file.stored for files in splits.values() for file in files)
    if converted:
        notes.append(f"{converted} images converted to 8-bit {_mode(channels)} PNG")
    if ignored:
        notes.append(f"{len(ignored)} files ignored that are no images, such as {ignored[0]}")
    return ImageFolder(splits, class_names, (height, width, channels), tuple(notes))


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _inspect(path: Path, *, whole: bool = True) -> _Facts:
    """Learn an image's size and how it must be stored; `whole` decodes it, to find damage."""
    with decoding(str(path), _REPLACE):
        data = path.read_bytes()
        with open_image(data) as image:
            deep = image.format == "PNG" and data[_PNG_DEPTH] > 8
            if deep or image.mode not in EIGHT_BIT_MODES:
                raise InputError(
                    f"{path} has more than 8 bits per channel ({image.mode}); "
                    "convert the images to 8 bits first, with the window that suits them"
                )
            if whole:
                image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            # OpenCV and Pillow, with which TFDS decodes, read these alike in mode L and RGB.
            plain = (
                image.format in ("JPEG", "PNG")
                and orientation == 1
                and "transparency" not in image.info
            )
            width, height = image.size if orientation < _FIRST_QUARTER_TURN else image.size[::-1]
            return _Facts((height, width), image.mode in GRAY_MODES, image.mode if plain else None)


def _upright_png(data: bytes, mode: str) -> bytes:
    stream = io.BytesIO()
    with open_image(data) as image:
        ImageOps.exif_transpose(image).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def _pixels(path: Path, size: int | None) -> np.ndarray:
    """An image as it would be decoded once it is stored, gray [H, W, 1] or RGB [H, W, 3]."""
    facts = _inspect(path, whole=False)
    channels = 1 if facts.gray else 3
    with decoding(str(path), _REPLACE):
        data = path.read_bytes()
        if facts.plain != _mode(channels):
            data = _upright_png(data, _mode(channels))
        return decode_image(data, channels, size)
