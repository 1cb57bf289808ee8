"""Files that are to be images: which can be used, and what becomes of those that cannot."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageOps

from instahide_jax.data.archives import read_file
from instahide_jax.data.embedded import cause_of, decoding
from instahide_jax.data.file_kinds import (
    ENDINGS,
    HEAD,
    content_kind,
    is_packed,
    kind_of,
    unpacked,
)
from instahide_jax.data.file_tree import FileTree, read_head
from instahide_jax.data.image_damage import refuse_damage
from instahide_jax.data.image_format import (
    BACKGROUND,
    DEEP,
    FORMATS,
    GRAY_MODES,
    UnknownFormatError,
    UnsuitableImageError,
    has_alpha,
    holds_several,
    open_image,
    orientation,
    shows_background,
    upright,
)
from instahide_jax.errors import InputError, how_many, listed

T = TypeVar("T")

SKIP = "pass --skip-unreadable to leave such files out"


@dataclass(frozen=True)
class Facts:
    """What is known of an image that can be used.

    Attributes:
        size: (height, width) of the upright image.
        gray: whether it has no colours.
        plain: mode of the decoded bytes; None where not every reader would decode them to the
            upright image over the background.
        several: whether the file holds more pictures than the first.
        transparent: whether a pixel is transparent.
    """

    size: tuple[int, int]
    gray: bool
    plain: str | None
    several: bool
    transparent: bool


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used.

    Attributes:
        path: of the file.
        kind: in a few words, to be counted.
        cause: what is wrong with it.
        is_promised: whether its name or content says that it is an image that can be read, so
            that leaving it out needs to be asked for.
    """

    path: Path
    kind: str
    cause: str
    is_promised: bool


def inspect(data: bytes, *, decode: bool = True) -> Facts:
    """Learn from an encoded image how it must be stored.

    Args:
        data: the bytes of a file.
        decode: decode it, to find all damage; False for an image that is decoded anyway.

    Raises:
        Exception: of any kind for a damaged file, to be caught by `attempt`.
    """
    with open_image(data) as image:
        turned = orientation(image, data)
        several = holds_several(image, data)
        refuse_damage(image, data)
        if decode:
            image.load()
        # Not from the number: Pillow turns a TIFF when it decodes it, and knows 8 numbers only.
        width, height = image.size if turned == 1 else ImageOps.exif_transpose(image).size
        return Facts(
            size=(height, width),
            gray=image.mode in GRAY_MODES,
            plain=_plain_mode(image, turned),
            several=several,
            transparent=shows_background(image),
        )


def _plain_mode(image: Image.Image, turned: object) -> str | None:
    # OpenCV and Pillow, with which TFDS decodes, read these alike in mode L and RGB.
    plain = image.format in ("JPEG", "PNG") and turned == 1 and not has_alpha(image)
    return image.mode if plain else None


def attempt(path: Path, read: Callable[[bytes], T]) -> T | Problem:
    """What `read` makes of a file's bytes, or why it cannot.

    Raises:
        InputError: for a file whose bytes cannot be had: it may be a good image.
    """
    data = read_file(path)
    try:
        with _without_warnings():
            return read(data)
    except UnsuitableImageError as error:
        return Problem(path, error.kind, str(error), is_promised=error.kind != "camera raw")
    except UnknownFormatError as error:
        return _unknown(path, data[:HEAD], str(error))
    except MemoryError:
        raise
    except Exception as error:
        return Problem(path, "damaged", cause_of(error), is_promised=True)


def read_again(path: Path) -> bytes:
    """The bytes of a file that was inspected before.

    Raises:
        InputError: it is not there any more.
    """
    with _as_before(path):
        return path.read_bytes()


def read_upright(path: Path, mode: str) -> Image.Image:
    """The pixels of an image that was inspected before, as `image_format.upright` gives them.

    Raises:
        InputError: it is not there any more, or not as it was.
    """
    with _as_before(path), _without_warnings(), open_image(path.read_bytes()) as image:
        return upright(image, mode)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without Pillow's warnings, which name no file: of damaged Exif data, of many pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_before(path: Path) -> AbstractContextManager[None]:
    return decoding(str(path), "it has changed meanwhile; start again")


def _unknown(path: Path, head: bytes, cause: str) -> Problem:
    kind, content = kind_of(head, path), content_kind(head)
    if content in FORMATS:
        cause = f"Pillow cannot open this {content}: it is damaged or of a rare form, as of 12 bits"
        return Problem(path, f"damaged {content}", cause, is_promised=True)
    if content is not None:
        cause = f"its content is {content}"
    elif not head:
        cause = "it is empty"
    return Problem(path, kind, cause, is_promised=path.suffix.lower() in ENDINGS)


def lost_links(tree: FileTree) -> list[Problem]:
    """Links that lead nowhere, and what is no file."""
    return [
        Problem(path, kind, f"it is a {kind}", is_promised=path.suffix.lower() in ENDINGS)
        for paths, kind in (
            (tree.dangling, "link that leads nowhere"),
            (tree.special, "pipe, socket or device"),
        )
        for path in paths
    ]


def settle(problems: Sequence[Problem], total: int, skip_unreadable: bool) -> list[str]:
    """Refuse what cannot be used, or say what is left out.

    A few files that do not promise to be images are left out: up to 5, but no more than one in
    five, or one in a hundred where that is more, and always one. With `skip_unreadable` all are.

    Args:
        problems: the files that cannot be used.
        total: how many files there are, these among them.
        skip_unreadable: leave them out whatever they are and however many.

    Raises:
        InputError: names up to ten files and counts the rest.
    """
    if not problems:
        return []
    promised = [problem for problem in problems if problem.is_promised]
    if promised and not skip_unreadable:
        raise InputError(_refusal(promised, total))
    kinds = _counted(problem.kind for problem in problems)
    few = max(1, min(5, total // 5), total // 100)
    if len(problems) > few and not skip_unreadable:
        raise InputError(
            f"{len(problems)} of {total} files are no images that can be read here ({kinds}), "
            f"{_paths(problems)}: convert them to PNG or remove them, or {SKIP}"
        )
    return [f"left out {how_many(len(problems), 'file')} ({kinds}): {_paths(problems)}"]


def settle_beside(files: Sequence[Path], skip_unreadable: bool) -> list[str]:
    """Refuse archives beside the class folders, or say what is left out there.

    An archive may be a class or a split that is still packed; not one whose folder lies beside it.

    Args:
        files: right in the folders of the classes and of the splits.
        skip_unreadable: leave archives out.

    Raises:
        InputError: names up to ten archives and counts the rest.
    """
    if not files:
        return []
    heads = {path: read_head(path) for path in files}
    packed = [
        path for path, head in heads.items() if is_packed(head, path) and not _is_unpacked(path)
    ]
    if packed and not skip_unreadable:
        their, them = ("its", "it") if len(packed) == 1 else ("their", "them")
        # Where a file has no ending, its folder would have the file's own name.
        in_the_way = any(unpacked(path) == path for path in packed)
        what = f"and remove {them}" if in_the_way else f"into a folder of {their} name"
        raise InputError(
            f"{how_many(len(packed), 'archive')} beside the class folders, {listed(packed)}: "
            f"unpack {them} {what}, or move {them} elsewhere, or {SKIP}"
        )
    kinds = _counted(kind_of(head, path) for path, head in heads.items())
    number = how_many(len(files), "file")
    return [f"left out {number} beside the class folders ({kinds}): {listed(files)}"]


def _is_unpacked(path: Path) -> bool:
    folder = unpacked(path)
    return folder != path and folder.is_dir()


def _refusal(problems: Sequence[Problem], total: int) -> str:
    """The complaint about files that cannot be used, of `total`; names up to ten."""
    deep = sum(problem.kind == DEEP for problem in problems)
    remedies = ["replace, convert or remove the file"] if deep < len(problems) else []
    if deep:
        remedies.append("reduce more than 8 bits to 8 with the window that suits the images")
    remedy = f"{', '.join(remedies)}, or {SKIP}"
    if len(problems) == 1:
        return f"{problems[0].path} cannot be read ({problems[0].cause}): {remedy}"
    named = listed([f"{problem.path} ({problem.cause})" for problem in problems])
    remedy = remedy.replace("the file", "the files")
    return f"{len(problems)} of {total} files cannot be read: {named}: {remedy}"


def _paths(problems: Sequence[Problem]) -> str:
    return listed([problem.path for problem in problems])


def _counted(kinds: Iterable[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def image_notes(images: Iterable[tuple[Path, Facts]]) -> list[str]:
    """What was not taken over from images as it stands in their files."""
    found = list(images)
    several = [path for path, facts in found if facts.several]
    transparent = [path for path, facts in found if facts.transparent]
    notes = []
    if several:
        notes.append(
            f"{how_many(len(several), 'file')} with more than one picture, of which the first is "
            f"taken: {listed(several)}"
        )
    if transparent:
        notes.append(
            f"{how_many(len(transparent), 'image')} with transparent parts, which are {BACKGROUND} "
            f"now: {listed(transparent)}"
        )
    return notes
