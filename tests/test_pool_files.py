"""instahide_jax.data.public_pool: what is on disk before and afterwards, and how it is read."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from photos import SMALL, photos, record, textured
from PIL import Image

from instahide_jax.data import public_pool as module
from instahide_jax.data.public_pool import PoolParameters, build_public_pool, load_public_pool
from instahide_jax.errors import InputError

__all__ = ["photos"]  # a fixture


def test_a_pool_that_is_there_is_left_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npy"
    first = build_public_pool(photos, out, SMALL)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.glob("p.*")}
    again = build_public_pool(photos, out, SMALL)
    assert not again.built
    assert (again.shape, again.tries, again.per_photo) == (
        first.shape,
        first.tries,
        first.per_photo,
    )
    assert str(again).startswith(f"already prepared: {out} 24x8x8x3")

    def refused(why: str) -> None:
        message = f"^{out} exists and is another pool: {why}; give --overwrite to build it anew, or"
        with pytest.raises(InputError, match=message):
            build_public_pool(photos, out, SMALL)

    with pytest.raises(InputError, match="another pool: its seed is 0, not 1; give --overwrite"):
        build_public_pool(photos, out, PoolParameters(8, 24, 64, 10, seed=1))
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.glob("p.*")} == before

    textured(9).save(photos / "a.png")  # another photo of the same name
    refused("1 of the photos is changed")
    (photos / "a.png").rename(photos / "d.png")
    textured(9).save(photos / "e.png")
    refused("2 of the photos are new; 1 of the photos is gone")
    for name in "de":
        (photos / f"{name}.png").unlink()
    textured(0).save(photos / "a.png")
    out.write_bytes(out.read_bytes()[:-1] + b"x")  # another array
    refused("its content is not that of which its .json tells")


def test_a_pool_is_built_anew_on_request(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npy"
    build_public_pool(photos, out, SMALL)
    first = out.read_bytes()
    other = PoolParameters(8, 24, 64, 10, seed=1)
    assert build_public_pool(photos, out, other, overwrite=True).built
    assert out.read_bytes() != first
    assert not build_public_pool(photos, out, other).built
    assert build_public_pool(photos, out, SMALL, overwrite=True).built
    assert out.read_bytes() == first
    assert sorted(p.name for p in tmp_path.glob("*p.*")) == ["p.json", "p.npy", "p.png"]
    out.unlink()
    out.with_suffix(".json").unlink()
    out.with_suffix(".png").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"p\.png exists, and would be written with"):
        build_public_pool(photos, out, SMALL, overwrite=True)
    out.with_suffix(".png").unlink()
    with pytest.raises(InputError, match="nowhere is no folder"):
        build_public_pool(tmp_path / "nowhere", out, SMALL)


@pytest.mark.parametrize(
    "note", [None, "{", "[]", '{"scheme": {"k": 4}, "passes": 1, "class_names": ["0", "1"]}']
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_json_calls_a_pool_is_never_replaced(
    note: str | None, overwrite: bool, tmp_path: Path
) -> None:
    """It may be images or encryptions of the user's own; the last note is that of `encrypt`."""
    out = tmp_path / "p.npy"
    np.save(out, np.zeros((3, 8, 8, 3), np.float32))
    if note is not None:
        out.with_suffix(".json").write_text(note)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=rf"^{out} exists, and no .json beside it says") as caught:
        build_public_pool(tmp_path / "photos", out, SMALL, overwrite)
    assert "--overwrite" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_shows_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.npy"
    build_public_pool(photos, out, SMALL)
    no_work(monkeypatch)

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    for path, overwrite in ((tmp_path / "q.npy", False), (out, True)):
        with pytest.raises(InputError, match=rf"^cannot write {path}: Read-only file system; ch"):
            build_public_pool(photos, path, SMALL, overwrite)
    assert not build_public_pool(photos, out, SMALL).built  # which writes nothing


def test_a_pool_among_its_photos_is_none_of_them(photos: Path) -> None:
    out = photos / "p.npy"
    built = build_public_pool(photos, out, SMALL)
    again = build_public_pool(photos, out, SMALL)
    assert (built.built, again.built) == (True, False)
    anew = build_public_pool(photos, out, SMALL, overwrite=True)
    assert anew.per_photo == built.per_photo


@pytest.mark.parametrize("fails", [".png", ".npy", ".json"])
def test_a_failed_write_leaves_no_half_pool(
    fails: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full_disk(source: Path, target: Path) -> None:
        if Path(target).suffix == fails:
            raise OSError(28, "No space left on device")
        replace(source, target)

    out = tmp_path / "out" / "p.npy"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(InputError, match=rf"^cannot write {out}: No space left on device; fr"):
            build_public_pool(photos, out, SMALL)
    assert not list(out.parent.iterdir())  # nothing that the next attempt would stumble over
    assert build_public_pool(photos, out, SMALL).built


@pytest.mark.parametrize("fails", ["sheet", "array"])
def test_an_old_pool_stays_until_the_new_one_is_whole(
    fails: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.npy"
    build_public_pool(photos, out, SMALL)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("p.*")}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((Image.Image, "save") if fails == "sheet" else (np, "save")), full_disk)
        with pytest.raises(InputError, match="No space left on device"):
            build_public_pool(photos, out, PoolParameters(8, 12, 64, 10), overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*p.*")} == before
    assert len(load_public_pool(out, (8, 8, 3))) == 24


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where patches would be cut."""

    def patches(*_: object) -> None:
        raise AssertionError("patches were cut")

    monkeypatch.setattr(module, "_patches", patches)


@pytest.mark.parametrize("suffix", [".png", ".json"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_files_of_another_origin_are_not_overwritten(
    suffix: str, is_folder: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    other = tmp_path / f"p{suffix}"
    other.mkdir() if is_folder else other.write_text("precious")
    with pytest.raises(
        InputError, match=rf"^{other} exists, and would be written with .*p\.npy; m"
    ):
        build_public_pool(photos, tmp_path / "p.npy", SMALL)
    assert {p.name for p in tmp_path.iterdir()} == {"photos", other.name}
    assert is_folder or other.read_text() == "precious"


def test_an_output_that_cannot_be_written_is_found_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    for below in ("p.npy", "deep/p.npy"):
        out = photos / "a.png" / below
        with pytest.raises(InputError, match=rf"^cannot write {out}: Not a directory; choose ano"):
            build_public_pool(photos, out, SMALL)


def test_a_pool_larger_than_the_memory_is_refused(photos: Path, tmp_path: Path) -> None:
    huge = PoolParameters(size=8, count=10**11, test_size=64)
    with pytest.raises(InputError, match=r"^--count is 100000000000: .* 19,200 GB.*to at most \d+"):
        build_public_pool(photos, tmp_path / "p.npy", huge)
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


@pytest.mark.parametrize(
    "changes",
    [
        {"photos": []},
        {"shape": None},
        {"shape": [1, 8, 8, 3]},
        {"accepted": 0},
        {"photos": 3},
        {"photos": [1]},
        {"photos": None},
        {"parameters": None},
        *({name: None} for name in ("tried", "accepted", "too_small")),
    ],
)
def test_a_description_of_other_content_is_of_another_pool_or_of_none(
    changes: dict[str, object], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.npy"
    build_public_pool(photos, out, SMALL)
    saved = record(out)
    if changes.keys() <= saved.keys():
        saved |= changes
    else:
        for photo in saved["photos"]:
            photo |= changes
    out.with_suffix(".json").write_text(json.dumps(saved))
    is_pool = changes in ({"photos": []}, {"accepted": 0}) or "shape" in changes
    said = " and is another pool: .*give --overwrite" if is_pool else ", and no .json beside it sa"
    with pytest.raises(InputError, match=f"^{out} exists{said}"):
        build_public_pool(photos, out, SMALL)


def test_loading(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npy"
    build_public_pool(photos, out, SMALL)
    pool = load_public_pool(out, (8, 8, 3))
    np.testing.assert_array_equal(pool, np.load(out))
    assert not pool.flags.writeable
    remedy = "instahide prepare public-pool --source FOLDER --out ANOTHER.npy"
    with pytest.raises(InputError) as caught:
        load_public_pool(out, (28, 28, 1))
    for part in ("(8, 8, 3)", "(28, 28, 1)", f"{remedy} --size 28 --channels 1"):
        assert part in str(caught.value)
    for shape in ((8, 8, 1), (8, 9, 3), (9, 8, 3)):
        with pytest.raises(InputError, match="the private images are"):
            load_public_pool(out, shape)
    out.with_suffix(".json").write_text('{"sha256": "of another pool"}')
    with pytest.raises(InputError, match=r"p\.json describes another pool than .*p\.npy"):
        load_public_pool(out, (8, 8, 3))
    out.with_suffix(".json").unlink()
    assert len(load_public_pool(out, (8, 8, 3))) == 24  # a pool of the user's own


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((3, 8, 8, 3), np.float32), r"holds float32 \(3, 8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), r"holds uint8 \(3, 8, 8\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"holds uint8 \(0, 8, 8, 3\)"),
        (np.array([{}], object), "Array can't be memory-mapped|Object arrays cannot"),
    ],
)
def test_other_arrays_are_no_pools(array: np.ndarray, found: str, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(InputError, match=found):
        load_public_pool(tmp_path / "p.npy", (8, 8, 3))


def test_pools_in_another_order_of_axes_say_how_to_turn_them(tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    for shape, pool, remedy in (
        (
            (6, 8, 3),
            np.zeros((5, 3, 6, 8), np.uint8),
            r"save np\.transpose\(pool, \(0, 2, 3, 1\)\)",
        ),
        ((6, 8, 1), np.zeros((5, 6, 8), np.uint8), r"save pool\[\.\.\., None\] instead"),
    ):
        np.save(path, pool)
        with pytest.raises(InputError, match=remedy):
            load_public_pool(path, shape)
        np.save(path, np.transpose(pool, (0, 2, 3, 1)) if pool.ndim == 4 else pool[..., None])
        assert load_public_pool(path, shape).shape == (5, *shape)


# NumPy leaves a damaged archive open until it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    with pytest.raises(InputError, match=r"public pool .*p\.npy does not exist; .*prepare"):
        load_public_pool(path, (8, 8, 3))
    np.save(path, np.zeros((3, 8, 8, 3), np.uint8))
    whole = path.read_bytes()
    np.savez(tmp_path / "p.npz", np.zeros((3, 8, 8, 3), np.uint8))
    packed = (tmp_path / "p.npz").read_bytes()
    damaged = (whole[:-9], whole.replace(b"}", b"("), whole.replace(b"descr", b"d(scr"))
    for data in (b"", b"nonsense", packed[: len(packed) // 2], *damaged):
        path.write_bytes(data)
        with pytest.raises(
            InputError, match=r"public pool .* cannot be decoded .*: build one with"
        ):
            load_public_pool(path, (8, 8, 3))
    np.savez(tmp_path / "several.npz", np.zeros(3))
    with pytest.raises(InputError, match="holds several arrays"):
        load_public_pool(tmp_path / "several.npz", (8, 8, 3))
