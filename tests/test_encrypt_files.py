"""Files of encryptions that are whole or absent, and what they do not tell."""

import json
import os
import time
import zipfile

import numpy as np
import pytest
from programs import short_files

from instahide_jax import InputError
from instahide_jax.encrypt_files import check_output, write_encrypted

__all__ = ["short_files"]  # a fixture


def _batches(sizes, fail=False):
    rng = np.random.default_rng(0)
    for size in sizes:
        image = rng.normal(size=(size, 4, 4, 1)).astype(np.float32)
        yield {"image": image, "label": rng.random((size, 3)).astype(np.float32)}
    if fail:
        raise RuntimeError("the disk is full")


@pytest.mark.parametrize("name", ["hidden.npz", "hidden.npy"])
def test_files_are_read_by_numpy(tmp_path, name):
    write_encrypted(tmp_path / name, _batches([5, 5, 2]), 12, {"k": 4})
    if name.endswith("npz"):
        with np.load(tmp_path / name, allow_pickle=False) as file:
            image, label, note = file["image"], file["label"], str(file["description"])
        expected_files = ["hidden.npz"]
    else:
        image = np.load(tmp_path / name, mmap_mode="r")
        label = np.load(tmp_path / "hidden.labels.npy")
        note = (tmp_path / "hidden.json").read_text()
        expected_files = ["hidden.json", "hidden.labels.npy", "hidden.npy"]
    expected = list(_batches([5, 5, 2]))
    np.testing.assert_array_equal(image, np.concatenate([b["image"] for b in expected]))
    np.testing.assert_array_equal(label, np.concatenate([b["label"] for b in expected]))
    assert json.loads(note) == {"k": 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == expected_files


@pytest.mark.parametrize("name", ["hidden.npz", "hidden.npy"])
def test_a_failure_half_way_leaves_nothing(tmp_path, name):
    with pytest.raises(RuntimeError, match="disk is full"):
        write_encrypted(tmp_path / name, _batches([5, 5], fail=True), 12, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError, match="10 encryptions instead of 12"):
        write_encrypted(tmp_path / name, _batches([5, 5]), 12, {})
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_write_the_same_file(tmp_path):
    def batches():
        with pytest.raises(InputError, match=r"another process is writing .*a\.npz; wait for it"):
            write_encrypted(tmp_path / "a.npz", _batches([5]), 5, {})
        yield from _batches([5])

    write_encrypted(tmp_path / "a.npz", batches(), 5, {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_what_a_kill_has_left_is_removed_and_nothing_else(tmp_path):
    left = tmp_path / ".a.npz.partial"
    left.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"\.a\.npz\.partial is in the way; remove it or name an"):
        write_encrypted(tmp_path / "a.npz", _batches([5]), 5, {})
    assert left.read_bytes() == b"precious"
    left.unlink()
    left.mkdir()
    (left / "image.npy").write_bytes(b"half")
    (left / "mine").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"mine lies where .*a\.npz is put together; move it"):
        write_encrypted(tmp_path / "a.npz", _batches([5]), 5, {})
    assert sorted(p.name for p in left.iterdir()) == ["image.npy", "mine"]
    (left / "mine").unlink()
    (left / "label.npy").mkdir()
    with pytest.raises(InputError, match=r"label\.npy lies where .*a\.npz is put together"):
        write_encrypted(tmp_path / "a.npz", _batches([5]), 5, {})
    (left / "label.npy").rmdir()
    write_encrypted(tmp_path / "a.npz", _batches([5]), 5, {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("place", range(3))
def test_a_failure_between_the_files_leaves_none(tmp_path, monkeypatch, place):
    replace, calls = os.replace, []

    def interrupted(*paths):
        calls.append(paths)
        if len(calls) > place:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_encrypted(tmp_path / "a.npy", _batches([5]), 5, {})
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_for_the_folder(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*: File name too long; .* another --out"):
        write_encrypted(tmp_path / f"{'a' * 245}.npz", _batches([5]), 5, {})
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_used(tmp_path):
    taken = tmp_path / "taken.npz"
    taken.write_bytes(b"precious")
    for path, message in {
        taken: "exists already; remove it or name another --out",
        tmp_path / "hidden.txt": r"must end in \.npz or \.npy",
        tmp_path / "nowhere" / "hidden.npz": "nowhere does not exist; create it",
        taken / "hidden.npz": "hidden.npz lies below .*taken.npz, which is no folder; name anot",
        taken / "a" / "hidden.npz": "hidden.npz lies below .*taken.npz, which is no folder",
    }.items():
        for refuse in (check_output, lambda p: write_encrypted(p, _batches([1]), 1, {})):
            with pytest.raises(InputError, match=message):
                refuse(path)
    assert taken.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["taken.npz"]


@pytest.mark.parametrize("taken", ["out.json", "out.labels.npy", "out.npy"])
def test_no_file_beside_the_images_is_overwritten(tmp_path, taken):
    (tmp_path / taken).write_text("precious")
    for refuse in (check_output, lambda p: write_encrypted(p, _batches([1]), 1, {})):
        with pytest.raises(InputError, match=rf"{taken} exists already; remove it or name another"):
            refuse(tmp_path / "out.npy")
    assert [p.name for p in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path, short_files):
    with pytest.raises(InputError, match=r"cannot write .*: File too large; free space, or name"):
        write_encrypted(tmp_path / "a.npz", _batches([5000]), 5000, {})
    assert not list(tmp_path.iterdir())


def test_a_zip_tells_nothing_of_when_and_how_it_was_made(tmp_path):
    """Two files with the same content, written at other times under other umasks, are the same."""
    written = []
    for name, umask, sizes in (("a.npz", 0o022, [5, 5, 2]), ("b.npz", 0o077, [5, 5, 2])):
        before = os.umask(umask)
        try:
            write_encrypted(tmp_path / name, _batches(sizes), 12, {"k": 4})
        finally:
            os.umask(before)
        written.append((tmp_path / name).read_bytes())
        time.sleep(2.1)  # a zip file counts in steps of two seconds
    assert written[0] == written[1]
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        members = archive.infolist()
    assert [m.filename for m in members] == ["image.npy", "label.npy", "description.npy"]
    for member in members:
        assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert (member.external_attr, member.comment, member.compress_type) == (0o644 << 16, b"", 0)
        assert member.internal_attr == member.volume == member.flag_bits == 0
