"""instahide_jax.data.public_pool: which patches are chosen, and what is on disk afterwards."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instahide_jax.data import public_pool as module
from instahide_jax.data.public_pool import PoolParameters, build_public_pool, load_public_pool
from instahide_jax.errors import InputError

SMALL = PoolParameters(size=8, count=24, test_size=64, min_keypoints=10)


def textured(seed: int, height: int = 150, width: int = 200) -> Image.Image:
    """Random blocks of 5 pixels: corners everywhere."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 5, width // 5, 3), np.uint8)
    return Image.fromarray(blocks.repeat(5, axis=0).repeat(5, axis=1))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    textured(0).save(folder / "a.png")
    textured(1).save(folder / "deep" / "b.JPG", "JPEG")
    textured(2).save(folder / "deep" / "er" / "c.webp")
    (folder / "notes.txt").write_text("no photo")
    return folder


def take_all(monkeypatch: pytest.MonkeyPatch, keypoints: int = 100) -> None:
    """Count so many keypoints in any patch."""
    monkeypatch.setattr(module, "_keypoint_counter", lambda: lambda gray: keypoints)


def record(out: Path) -> dict:
    return json.loads(out.with_suffix(".json").read_text())


def test_a_pool_and_its_record(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "pool.npy"
    result = build_public_pool(photos, out, SMALL)
    pool = np.load(out)
    assert (pool.shape, pool.dtype) == ((24, 8, 8, 3), np.uint8)
    assert result.shape == pool.shape
    assert result.per_photo == (8, 8, 8)
    assert str(result).startswith(f"wrote {out} 24x8x8x3 uint8: 24 of ")
    saved = record(out)
    assert saved["parameters"] == {
        "size": 8, "count": 24, "test_size": 64, "min_keypoints": 10, "seed": 0, "channels": 3,
        "exclude": [],
    }  # fmt: skip
    assert [p["file"] for p in saved["photos"]] == ["a.png", "deep/b.JPG", "deep/er/c.webp"]
    for photo in saved["photos"]:
        assert photo["sha256"] == hashlib.sha256((photos / photo["file"]).read_bytes()).hexdigest()
        assert photo["accepted"] == 8 <= photo["tried"]
    assert sum(p["tried"] for p in saved["photos"]) == result.tries
    assert saved["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert saved["shape"] == [24, 8, 8, 3]
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.size == (280, 84)  # 10 cells of 3 x 8 + 4 pixels, in 3 rows
    assert sorted(p.name for p in out.parent.iterdir()) == ["pool.json", "pool.npy", "pool.png"]


def test_the_same_seed_gives_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{name}.npy" for name in "abc"]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        build_public_pool(photos, out, PoolParameters(8, 24, 64, 10, seed=seed))
    a, b, c = (out.read_bytes() for out in outs)
    assert a == b
    assert a != c
    assert outs[0].with_suffix(".json").read_bytes() == outs[1].with_suffix(".json").read_bytes()


def test_gray_pools_hold_the_luma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_all(monkeypatch)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (100, 100), (200, 100, 50)).save(tmp_path / "in" / "a.png")
    build_public_pool(tmp_path / "in", tmp_path / "p.npy", PoolParameters(8, 5, 64, channels=1))
    pool = np.load(tmp_path / "p.npy")
    assert pool.shape == (5, 8, 8, 1)
    assert np.unique(pool).tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


@pytest.mark.parametrize(("keypoints", "kept"), [(10, False), (11, True)])
def test_more_keypoints_than_the_bound_are_needed(
    keypoints: int, kept: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_all(monkeypatch, keypoints)
    out = tmp_path / "p.npy"
    if kept:
        assert build_public_pool(photos, out, SMALL).tries == 24
        return
    with pytest.raises(InputError) as caught:
        build_public_pool(photos, out, SMALL)
    assert "gave 0 of 24 patches: 300 tried in 3 photos" in str(caught.value)
    assert "more than 10 keypoints" in str(caught.value)
    assert "lower --min-keypoints or --count" in str(caught.value)
    assert not out.exists()


def test_flat_patches_are_left_out(tmp_path: Path) -> None:
    """Of a photo that is half flat red, nothing but texture gets into the pool."""
    (tmp_path / "in").mkdir()
    pixels = np.asarray(textured(0, 300, 600)).copy()
    pixels[:, 300:] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    parameters = PoolParameters(8, 60, 64, 40)
    result = build_public_pool(tmp_path / "in", tmp_path / "p.npy", parameters)
    pool = np.load(tmp_path / "p.npy")
    assert result.tries > 80
    red = (pool == (255, 0, 0)).all(axis=-1).mean(axis=(1, 2))
    assert red.max() < 0.9
    # A counter that takes all lets flat patches in, so the bound above can tell.
    everything = PoolParameters(8, 60, 64, 0)
    with pytest.MonkeyPatch.context() as patch:
        take_all(patch)
        build_public_pool(tmp_path / "in", tmp_path / "q.npy", everything)
    assert (np.load(tmp_path / "q.npy") == (255, 0, 0)).all(axis=(1, 2, 3)).sum() > 10


def test_photos_give_equal_shares_and_others_step_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photo n is the flat colour n; of photo 1 nothing passes."""
    (tmp_path / "in").mkdir()
    for index in range(5):
        Image.new("RGB", (80, 70), (index,) * 3).save(tmp_path / "in" / f"{index}.png")
    monkeypatch.setattr(
        module, "_keypoint_counter", lambda: lambda gray: 0 if gray[0, 0] == 1 else 99
    )
    parameters = PoolParameters(8, 42, 64, exclude=("4*",))
    result = build_public_pool(tmp_path / "in", tmp_path / "p.npy", parameters)
    colours = np.load(tmp_path / "p.npy")[:, 0, 0, 0]
    assert np.bincount(colours).tolist() == list(result.per_photo) == [14, 0, 14, 14]
    assert result.tries == 42 + 100
    # In random order: not photo by photo.
    assert np.count_nonzero(np.diff(colours)) > 15
    assert "from 3 photos (at most 14 of one)" in str(result)


def test_patches_come_from_everywhere_in_every_size() -> None:
    """Positions are uniform and sides log-uniform between 1 and 8 test sizes."""
    rng = np.random.default_rng(0)
    height, width, test_size = 700, 900, 64
    rows, columns = np.mgrid[:height, :width].astype(np.int32)
    pixels = np.stack([rows, columns], axis=-1)
    crops = [module._random_square(rng, pixels, test_size) for _ in range(4000)]
    sides = np.array([len(crop) for crop, _ in crops])
    assert all(crop.shape == (len(crop), len(crop), 2) for crop, _ in crops)
    assert (sides.min(), sides.max()) == (64, 512)
    # The 99.9 % bound of Kolmogorov-Smirnov for 4000 draws is 0.031.
    octaves = np.sort(np.log2(sides / test_size) / 3)
    assert np.abs(octaves - np.linspace(0, 1, len(octaves))).max() < 0.031
    tops = np.array([crop[0, 0] / (height - len(crop), width - len(crop)) for crop, _ in crops])
    for values in np.sort(tops, axis=0).T:
        assert np.abs(values - np.linspace(0, 1, len(values))).max() < 0.031
    assert abs(np.mean([mirror for _, mirror in crops]) - 0.5) < 0.026  # 3.3 sigma


def test_patches_are_mirrored_and_area_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_all(monkeypatch)
    (tmp_path / "in").mkdir()
    # Columns 0, 255, 0, 255... are seen at full size: an average gives 127.5, a sample 0 or 255.
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    ramp = np.linspace(0, 100, 64).astype(np.uint8)[None].repeat(64, 0)
    Image.fromarray(np.stack([stripes, ramp, ramp], -1)).save(tmp_path / "in" / "a.png")
    build_public_pool(tmp_path / "in", tmp_path / "p.npy", PoolParameters(8, 100, 64))
    pool = np.load(tmp_path / "p.npy").astype(int)
    assert np.abs(pool[..., 0] - 127.5).max() <= 1
    rising = pool[:, :, -1, 1] > pool[:, :, 0, 1]
    assert rising.all(axis=1).sum() + (~rising).all(axis=1).sum() == 100
    assert 30 < rising[:, 0].sum() < 70


def test_upright_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_all(monkeypatch)
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[:, None].repeat(64, 1)
    Image.fromarray(ramp).save(tmp_path / "in" / "a.png", exif=exif)  # gray, top dark, to be turned
    build_public_pool(tmp_path / "in", tmp_path / "p.npy", PoolParameters(8, 3, 64))
    pool = np.load(tmp_path / "p.npy").astype(int)
    assert (np.ptp(pool, axis=1) <= 1).all()  # no change from top to bottom any more


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
    out.with_suffix(".json").unlink()
    refused("no .json beside it says how it was made")
    out.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*p\.json"):
        build_public_pool(photos, out, SMALL)


def test_a_pool_is_built_anew_on_request(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npy"
    build_public_pool(photos, out, SMALL)
    first = out.read_bytes()
    other = PoolParameters(8, 24, 64, 10, seed=1)
    assert build_public_pool(photos, out, other, overwrite=True).built
    assert out.read_bytes() != first
    assert not build_public_pool(photos, out, other).built
    out.with_suffix(".json").write_text("{")  # damage is no hindrance
    assert build_public_pool(photos, out, SMALL, overwrite=True).built
    assert out.read_bytes() == first
    assert sorted(p.name for p in tmp_path.glob("*p.*")) == ["p.json", "p.npy", "p.png"]
    out.with_suffix(".json").unlink()
    out.with_suffix(".png").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"p\.png exists, and would be written with"):
        build_public_pool(photos, out, SMALL, overwrite=True)
    with pytest.raises(InputError, match="nowhere is no folder"):
        build_public_pool(tmp_path / "nowhere", out, SMALL)


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
        {"photos": 3},
        {"photos": [1]},
        {"photos": None},
        {"photos": []},
        {"shape": None},
        {"shape": [1, 8, 8, 3]},
        *({name: None} for name in ("tried", "accepted", "too_small")),
        {"accepted": 0},
    ],
)
def test_a_description_of_other_content_is_another_pool(
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
    with pytest.raises(InputError, match=f"^{out} exists and is another pool: .*give --overwrite"):
        build_public_pool(photos, out, SMALL)


def test_unreadable_photos_are_named(photos: Path, tmp_path: Path) -> None:
    path = photos / "deep" / "b.JPG"
    whole = path.read_bytes()
    for data in (b"", b"no image", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"^{path} cannot be read \(.*\): replace, con"):
            build_public_pool(photos, tmp_path / "p.npy", SMALL)
    Image.fromarray(np.full((99, 99), 9999, np.uint16)).save(photos / "a.png")
    with pytest.raises(InputError, match=r"a\.png \(it has more than 8 bits per channel: 16"):
        build_public_pool(photos, tmp_path / "p.npy", SMALL)


def test_small_photos_are_passed_over_and_counted(photos: Path, tmp_path: Path) -> None:
    textured(3, 60, 500).save(photos / "small.png")
    result = build_public_pool(photos, tmp_path / "p.npy", SMALL)
    assert result.skipped == ("small.png",)
    assert "; 1 photo too small; left out 1 file (1 .txt): " in str(result)
    assert record(tmp_path / "p.npy")["photos"][-1]["too_small"]
    with pytest.raises(InputError, match=r"0 tried in 0 photos \(4 more are smaller than 300 pix"):
        build_public_pool(photos, tmp_path / "q.npy", PoolParameters(test_size=300))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"min_keypoints": -1}, "min_keypoints must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"test_size": 31}, r"test_size must be at least size \(32\), got 31"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
    ],
)
def test_bad_parameters_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        PoolParameters(**changes)  # type: ignore[arg-type]


def test_bad_folders_and_outputs_are_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npy"
    with pytest.raises(InputError, match="nowhere is no folder"):
        build_public_pool(tmp_path / "nowhere", out, SMALL)
    with pytest.raises(InputError, match=r"holds no photos \(BMP"):
        build_public_pool(photos, out, PoolParameters(exclude=("*",)))
    with pytest.raises(InputError, match=r"--out is .*p\.png; it must end in \.npy"):
        build_public_pool(photos, tmp_path / "p.png", SMALL)


def test_opencv_is_asked_for(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"not installed: pip install -e '\.\[public-pool\]'$"):
        build_public_pool(photos, tmp_path / "p.npy", SMALL)


def test_loading(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npy"
    build_public_pool(photos, out, SMALL)
    pool = load_public_pool(out, (8, 8, 3))
    np.testing.assert_array_equal(pool, np.load(out))
    assert not pool.flags.writeable
    remedy = f"instahide prepare public-pool --source FOLDER --out {out}"
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


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    with pytest.raises(InputError, match=r"cannot read the public pool .*No such file.*prepare"):
        load_public_pool(path, (8, 8, 3))
    for data in (b"", b"nonsense"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot read the public pool"):
            load_public_pool(path, (8, 8, 3))
    np.savez(tmp_path / "several.npz", np.zeros(3))
    with pytest.raises(InputError, match="holds several arrays"):
        load_public_pool(tmp_path / "several.npz", (8, 8, 3))
