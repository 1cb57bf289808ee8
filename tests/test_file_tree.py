"""instahide_jax.data.file_tree: links, loops, and what systems leave behind."""

import os
import socket
from pathlib import Path

import pytest

from instahide_jax.data.file_tree import list_folder, tree_notes, walk
from instahide_jax.errors import InputError


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in walk(root).files]


def test_files_at_every_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    make(tmp_path, "b/1", "a.png", "b/deep/er/2", "a/z", "b/deep.x")
    expected = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert list(walk(tmp_path).files) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "@EADIR", ".Trashes", ".Spotlight-V100", "$RECYCLE.BIN", "#recycle"),
        *("System Volume Information", ".snapshot", "~snapshot", "lost+found", "__MACOSX"),
        *(".ipynb_checkpoints", ".git", "@Recycle", ".AppleDouble", ".@__thumb", "#snapshot"),
        *("RECYCLER", "@Recently-Snapshot", ".Trash-1000", ".fseventsd", "__pycache__"),
        *("Network Trash Folder", "Temporary Items", "found.000", ".zfs", ".stversions"),
    ],
)
def test_folders_of_systems_are_left_out_at_every_depth(name: str, tmp_path: Path) -> None:
    make(tmp_path, "1.png", f"{name}/x.png", f"a/{name}/y.png", "a/2.png")
    assert found(tmp_path) == ["1.png", "a/2.png"]
    tree = walk(tmp_path)
    assert set(tree.system_folders) == {tmp_path / name, tmp_path / "a" / name}
    assert tree_notes(tree) == [f"left out 2 hidden or system folders (2 {name})"]
    assert list_folder(tmp_path)[0] == [tmp_path / "a"]


@pytest.mark.parametrize(
    "name", ["trash", "recycled", "@home", "#1", "$5", "~a", "snapshot", "git"]
)
def test_classes_may_have_names_like_these(name: str, tmp_path: Path) -> None:
    make(tmp_path, f"{name}/1.png")
    assert found(tmp_path) == [f"{name}/1.png"]


def test_hidden_files_and_those_of_systems_are_counted(tmp_path: Path) -> None:
    hidden = ("._1.png", "._2.png", ".DS_Store", "Thumbs.db", "desktop.ini", "~$x.doc", "Icon\r")
    make(tmp_path, "1.png", *hidden)
    make(tmp_path, *(f".{index}/x.png" for index in range(12)))
    tree = walk(tmp_path)
    assert found(tmp_path) == ["1.png"]
    assert len(tree.system_files) == len(hidden)
    folders, files = tree_notes(tree)
    assert folders.startswith("left out 12 hidden or system folders (1 .0, 1 .1, 1 .10, ")
    assert folders.endswith(", 1 .7 and 2 more)")
    names = "2 ._*, 1 .DS_Store, 1 Icon, 1 Thumbs.db, 1 desktop.ini, 1 ~$x.doc"
    assert files == f"left out 7 hidden or system files ({names})"


def test_links_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "far/1.png", "far/deep/2.png", "file.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to(tmp_path / "far")
    (root / "x.png").symlink_to(tmp_path / "file.png")
    assert found(root) == ["folder/1.png", "folder/deep/2.png", "x.png"]
    assert list_folder(root)[0] == [root / "folder"]
    (tmp_path / "entry").symlink_to(root)
    assert found(tmp_path / "entry") == found(root)


def test_a_root_that_is_named_by_a_way_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "x").touch()
    monkeypatch.chdir(tmp_path / "root" / "inner")
    for root in (Path(".."), Path("../../root"), tmp_path / "root" / "inner" / ".."):
        tree = walk(root)
        assert [path.name for path in tree.files] == ["x"]
        assert not tree.repeated


def test_no_folder_is_read_twice(tmp_path: Path) -> None:
    root = tmp_path / "src" / "a"
    make(root, "1.png", "z/2.png")
    make(tmp_path, "src/b/other.png", "outside.png")
    (root / "self").symlink_to(root)
    (root / "up").symlink_to(root.parent)
    (root / "top").symlink_to("/")
    (root / "again").symlink_to(root / "z")  # comes before z by name, and still z is what is read
    (root / "z" / "back").symlink_to("..")
    (root / "loop").symlink_to(root / "loop")  # leads to itself
    tree = walk(root)
    assert found(root) == ["1.png", "z/2.png"]
    names = {path.relative_to(root).as_posix() for path in tree.repeated}
    assert names == {"self", "up", "top", "again", "z/back"}
    assert tree.dangling == (root / "loop",)
    assert tree_notes(tree)[0].startswith("left out 5 links to what is read already")


def test_a_link_to_the_folder_around_a_linked_folder(tmp_path: Path) -> None:
    """What lies beside the link is of other classes."""
    make(tmp_path, "far/a/1.png", "src/b/2.png")
    (tmp_path / "src" / "a").symlink_to(tmp_path / "far" / "a")
    (tmp_path / "far" / "a" / "up").symlink_to(tmp_path / "src")
    assert found(tmp_path / "src" / "a") == ["1.png"]


def test_what_is_no_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the paths of sockets are short
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        tree = walk(tmp_path)
    assert tree.files == ()
    assert tree.dangling == (tmp_path / "gone.png",)
    assert tree.special == (tmp_path / "pipe.png", tmp_path / "socket")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^cannot read the folder {tmp_path}/x: No such file"):
        list_folder(tmp_path / "x")
