"""instahide_jax.data.public_pool: which patches are chosen, and what is refused."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import SMALL, photos, record, textured
from PIL import Image

from instahide_jax.data import public_pool as module
from instahide_jax.data.public_pool import PoolParameters, build_public_pool
from instahide_jax.errors import InputError

__all__ = ["photos"]  # a fixture


def take_all(monkeypatch: pytest.MonkeyPatch, keypoints: int = 100) -> None:
    """Count so many keypoints in any patch."""
    monkeypatch.setattr(module, "_keypoint_counter", lambda: lambda gray: keypoints)


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
    with pytest.raises(InputError, match=r"no photo of at least 300 pixels on its shorter side: "):
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
