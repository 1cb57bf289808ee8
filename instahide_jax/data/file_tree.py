"""The files below a folder: links are followed, and what systems leave behind is told apart."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

from instahide_jax.data.file_kinds import HEAD
from instahide_jax.errors import InputError, how_many, listed

# Folders of servers and systems: indices, thumbnails, recycled files, snapshots. A class may well
# be called trash or recycled.
_SYSTEM_FOLDERS = re.compile(
    r"\..*|__macosx|__pycache__|node_modules|_vti_.*|dfsrprivate"
    r"|\$recycle\.bin|(?-i:RECYCLER|RECYCLED)|system volume information|found\.\d{3}"
    r"|lost\+found|lost\.dir|network trash folder|temporary items|thevolumesettingsfolder"
    r"|#recycle|#snapshots?|#trash|#sync|~snap.*|snapshots?~"
    r"|@eadir|@syno.*|@tmp|@share(bin|snap)|@snapshots?|@recycle|@recently-snapshot|@__thumb"
    r"|@downloadstation|@transcode|@qphoto|@qfiling|@appstore|@database",
    re.IGNORECASE,
)
_SYSTEM_FILES = re.compile(
    r"\..*|~\$.*|thumbs\.db.*|ehthumbs(_vista)?\.db|desktop\.ini|icon\r|picasa\.ini"
    r"|zbthumbnail\.info|synoindex_media_info",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FileTree:
    """What lies below a folder, at any depth, each sorted by path.

    Attributes:
        files: files and links to files.
        system_files: hidden files, and others that systems write.
        system_folders: folders likewise; what they hold is not looked at.
        dangling: links that lead nowhere.
        special: pipes, sockets and devices.
        repeated: links to folders whose files are there already, or that contain the link.
    """

    files: tuple[Path, ...] = ()
    system_files: tuple[Path, ...] = ()
    system_folders: tuple[Path, ...] = ()
    dangling: tuple[Path, ...] = ()
    special: tuple[Path, ...] = ()
    repeated: tuple[Path, ...] = ()


def join(trees: Iterable[FileTree]) -> FileTree:
    """Several trees as one, in their order."""
    listed = list(trees)
    return FileTree(
        *(tuple(chain(*(getattr(tree, f.name) for tree in listed))) for f in fields(FileTree))
    )


def list_folder(folder: Path) -> tuple[list[Path], FileTree]:
    """The folders right in a folder, sorted, links among them; and all else right in it.

    Raises:
        InputError: for a folder that cannot be read.
    """
    folders: list[Path] = []
    found: dict[str, list[Path]] = {}
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"cannot read the folder {folder}: {error.strerror}; check its permissions"
        ) from error
    for entry in entries:
        path = Path(entry.path)
        if _leads_to(entry.is_dir):
            if _SYSTEM_FOLDERS.fullmatch(entry.name):
                found.setdefault("system_folders", []).append(path)
            else:
                folders.append(path)
            continue
        if _SYSTEM_FILES.fullmatch(entry.name):
            kind = "system_files"
        elif _leads_to(entry.is_file):
            kind = "files"
        else:
            kind = "dangling" if entry.is_symlink() else "special"
        found.setdefault(kind, []).append(path)
    return folders, FileTree(**{kind: tuple(paths) for kind, paths in found.items()})


def read_head(path: Path) -> bytes:
    """The first bytes of a file, which tell what kind it is.

    Raises:
        InputError: for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _leads_to(is_kind: Callable[[], bool]) -> bool:
    try:
        return is_kind()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def walk(root: Path) -> FileTree:
    """All that lies below a folder. Links are followed, but no folder is read twice.

    Raises:
        InputError: for a folder that cannot be read.
    """
    # A link to a folder around the root would bring in what is not meant, and then the root.
    around = {*Path(os.path.abspath(root)).parents, *root.resolve().parents}
    seen = {_identity(folder) for folder in around}
    found: list[FileTree] = []
    repeated: list[Path] = []
    waiting, links = [root], list[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)  # folders come before links to them
        identity = _identity(folder)
        if identity in seen:
            repeated.append(folder)
            continue
        seen.add(identity)
        folders, rest = list_folder(folder)
        found.append(rest)
        for child in folders:
            (links if child.is_symlink() else waiting).append(child)
    tree = join([*found, FileTree(repeated=tuple(repeated))])
    return FileTree(*(tuple(sorted(getattr(tree, f.name))) for f in fields(FileTree)))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def refuse_shared(groups: Iterable[Iterable[Path]]) -> None:
    """Refuse files that are in two of several groups, as symbolic links make possible.

    Hard links are copies, as far as this is concerned.

    Raises:
        InputError: for such files, of which the first is named.
    """
    seen: dict[object, tuple[int, Path]] = {}
    for number, files in enumerate(groups):
        for file in files:
            status = file.stat()
            # Resolving takes much longer, and tells more only where there are hard links.
            alone = status.st_nlink == 1
            identity = (status.st_dev, status.st_ino) if alone else file.resolve()
            other, first = seen.setdefault(identity, (number, file))
            if other != number:
                raise InputError(
                    f"{first} and {file} are one file through a link: remove the link that does "
                    "not belong there"
                )


def tree_notes(tree: FileTree) -> list[str]:
    """What a user should know of a tree that was read: what was passed over."""
    notes = [
        f"left out {how_many(len(paths), what)} ({_counted(path.name for path in paths)})"
        for paths, what in (
            (tree.system_folders, "hidden or system folder"),
            (tree.system_files, "hidden or system file"),
        )
        if paths
    ]
    if tree.repeated:
        notes.append(
            f"left out {how_many(len(tree.repeated), 'link')} to what is read already or contains "
            f"the link: {listed(tree.repeated)}"
        )
    return notes


def _counted(names: Iterable[str]) -> str:
    """The most frequent names and how often they come; the copies that macOS makes are one."""
    counts = Counter("._*" if name.startswith("._") else name for name in names)
    # A name may hold a line feed, as the one of a folder icon of macOS.
    return listed([f"{n} {' '.join(name.split())}" for name, n in counts.most_common()])
