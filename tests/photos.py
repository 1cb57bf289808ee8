"""Photographs for public pools, made up of blocks, and the pool that tests cut from them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instahide_jax.data.public_pool import PoolParameters

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


def record(out: Path) -> dict:
    return json.loads(out.with_suffix(".json").read_text())
