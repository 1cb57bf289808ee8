"""`instahide prepare --overwrite` that is killed or fails loses nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from original_files import small_sizes  # a fixture: tiny data sets in all tests
from test_prepare_again import other_photo, photos

from instahide_jax.data import prepare as prepare_module
from instahide_jax.data.content import SplitContent
from instahide_jax.data.prepare import prepare
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.errors import InputError

__all__ = ["small_sizes"]


_KILLED = """
import os, signal, sys
from pathlib import Path
import instahide_jax.data.prepared as prepared
from instahide_jax.data.image_folder import ImageFolder
from instahide_jax.data.prepare import prepare

when, source, root = sys.argv[1:]
read, rename, rmtree, seen = ImageFolder.read, Path.rename, prepared.shutil.rmtree, []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def read_then_die(self, file):
    seen.append(file)
    if len(seen) > 21:
        die()
    return read(self, file)

def rename_then_die(self, target):
    rename(self, target)
    if Path(target).name.startswith("replaced."):
        die()

def die_or_remove(path, *rest, **options):
    if Path(path).name.startswith("replaced."):
        die()
    rmtree(path, *rest, **options)

if when == "writing":
    ImageFolder.read = read_then_die
if when == "moved aside":
    Path.rename = rename_then_die
if when == "in place":
    prepared.shutil.rmtree = die_or_remove
prepare("rainy_days", Path(source), Path(root), overwrite=True)
"""


@pytest.mark.parametrize("when", ["writing", "moved aside", "in place"])
def test_a_kill_while_overwriting_loses_nothing(when: str, tmp_path: Path) -> None:
    source, root = photos(tmp_path / "source"), tmp_path / "tfds"
    prepare("rainy_days", source, root)
    old = load_arrays("rainy_days", "train", str(root)).identity
    new_source = photos(tmp_path / "new")
    other_photo(new_source)
    command = [sys.executable, "-c", _KILLED, when, str(new_source), str(root)]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (root / "rainy_days" / "1.0.0").exists() == (when != "moved aside")
    if when == "writing":  # the old one is where it was
        assert load_arrays("rainy_days", "train", str(root)).identity == old
    expected = new_source if when == "in place" else source
    assert not prepare("rainy_days", expected, root).built  # whole, and puts all in its place
    assert (load_arrays("rainy_days", "train", str(root)).identity == old) == (expected == source)
    assert not list((root / "rainy_days").glob("replaced.*"))
    assert prepare("rainy_days", new_source, root, overwrite=True).built


def test_a_failure_while_overwriting_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = photos(tmp_path / "source"), tmp_path / "tfds"
    path = prepare("rainy_days", source, root).path
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    rename = Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if "incomplete." in str(self) and Path(target) == path:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(InputError, match=rf"^cannot prepare {path}: .*No space left on device"):
        prepare("rainy_days", source, root, overwrite=True)
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_too_few_examples_do_not_replace_an_old_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of a reader or of TFDS, found before the old data set is gone."""
    source, root = photos(tmp_path / "source"), tmp_path / "tfds"
    path = prepare("rainy_days", source, root).path
    assert path.stat().st_mode & 0o755 == 0o755  # as TFDS has it: others may read
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    wrong = SplitContent(23, "x")
    monkeypatch.setattr(prepare_module, "_file_content", lambda split, files: wrong)
    with pytest.raises(RuntimeError, match=r"wrote .*'train': 22.* of .*'train': 23"):
        prepare("rainy_days", source, root, overwrite=True)
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before
    assert [f.name for f in path.parent.iterdir()] == [path.name]
