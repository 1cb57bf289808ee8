"""What `prepare` and `encrypt` do with files beside the class folders."""

from pathlib import Path

import pytest
from folder_readers import Reader, by_encrypt, by_prepare, refused, source
from odd_images import FOREIGN

__all__ = ["source"]  # a fixture


def beside(source: Path, *files: str, splits: bool) -> Path:
    """A folder of classes, or of splits of them, with files beside the folders."""
    if splits:
        source.rename(source.parent / "train")
        source.mkdir()
        (source.parent / "train").rename(source / "train")
    for name in files:
        content = FOREIGN["zip"] if name.endswith((".zip", ".docx", "packed")) else b"text"
        (source / name).write_bytes(content)
    return source


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("by", [by_prepare, by_encrypt])
def test_files_beside_the_class_folders_are_told(by: Reader, splits: bool, source: Path) -> None:
    names = ["LICENSE", "labels.csv", "labels.csv.gz", "more.bin", "x.docx", "y.bin"]
    count, notes = by(beside(source, *names, splits=splits))
    assert count == 10
    kinds = "2 .bin, 1 of no ending, 1 .csv, 1 .gz, 1 zip"
    places = ", ".join(f"{source}/{name}" for name in names)
    assert f"left out 6 files beside the class folders ({kinds}): {places}" in notes


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("by", [by_prepare, by_encrypt])
def test_archives_beside_the_class_folders(by: Reader, splits: bool, source: Path) -> None:
    beside(source, "c.zip", "d.tar.gz", "packed", "README", splits=splits)
    archives = ", ".join(f"{source}/{name}" for name in ("c.zip", "d.tar.gz", "packed"))
    refused(by, source, f"3 archives beside the class folders, {archives}: unpack them and remove")
    count, notes = by(source, skip_unreadable=True)
    assert count == 10
    assert any(note.startswith("left out 4 files beside the class folders (2") for note in notes)
    (source / "packed").unlink()
    refused(by, source, "2 archives beside the class folders", "unpack them into a folder of their")
    (source / "d.tar.gz").unlink()
    refused(by, source, f"1 archive beside the class folders, {source}/c.zip: unpack it into a f")


def test_archives_that_are_unpacked_beside_are_told(source: Path) -> None:
    for by in (by_prepare, by_encrypt):
        for name in ("a.zip", "b.tar.gz"):
            (source / name).write_bytes(FOREIGN["zip"])
        count, notes = by(source)
        assert count == 10
        assert any("left out 2 files beside the class folders (2 zip): " in n for n in notes)
