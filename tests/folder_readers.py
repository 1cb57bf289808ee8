"""For tests: what reads folders of images, `prepare`, `encrypt` and `prepare public-pool`."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_images import write_classes
from PIL import Image

from instahide_jax.data import public_pool
from instahide_jax.data.image_folder import arrays_from_folder, read_image_folder
from instahide_jax.data.public_pool import PoolParameters, build_public_pool
from instahide_jax.errors import InputError

Reader = Callable[..., tuple[int, tuple[str, ...]]]  # number of images, notes


def by_prepare(source: Path, *, skip_unreadable: bool = False) -> tuple[int, tuple[str, ...]]:
    folder = read_image_folder(source, skip_unreadable=skip_unreadable)
    files = [file for files in folder.splits.values() for file in files]
    for file in files:  # as TFDS stores them
        Image.open(io.BytesIO(folder.read(file))).load()
    return len(files), folder.notes


def by_encrypt(source: Path, *, skip_unreadable: bool = False) -> tuple[int, tuple[str, ...]]:
    arrays, notes = arrays_from_folder(source, size=4, skip_unreadable=skip_unreadable)
    return len(arrays.labels), notes


def by_pool(source: Path, *, skip_unreadable: bool = False) -> tuple[int, tuple[str, ...]]:
    out = source.parent / "pool.npy"
    parameters = PoolParameters(size=4, count=50, test_size=4, min_keypoints=0)
    pool = build_public_pool(source, out, parameters, skip_unreadable=skip_unreadable)
    for suffix in (".npy", ".png", ".json"):
        out.with_suffix(suffix).unlink()
    return len(pool.per_photo), pool.notes


READERS = {"prepare": by_prepare, "encrypt": by_encrypt, "pool": by_pool}


@pytest.fixture(params=READERS.values(), ids=READERS)
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(public_pool, "_keypoint_counter", lambda: lambda gray: 1)
    return request.param


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten images in two classes."""
    write_classes(tmp_path / "source", 5)
    return tmp_path / "source"


def refused(read: Reader, source: Path, *fragments: str) -> str:
    with pytest.raises(InputError) as caught:
        read(source)
    (message,) = str(caught.value).splitlines()
    for fragment in fragments:
        assert fragment in message, message
    return message
