"""instahide_jax.data.image_damage: what Pillow would decode without a word."""

import io
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import COLOUR, DEEP, SEVERAL, SHALLOW, TRANSPARENT, encode
from PIL import Image

from instahide_jax.data.image_checks import Facts, Problem, attempt, inspect
from instahide_jax.data.image_damage import refuse_damage

# A photo's share of noise, and of areas.
_GROUND = np.indices((64, 48)).sum(0)[..., None] + np.random.default_rng(0).integers(
    0, 60, (64, 48, 3)
)
PHOTO = Image.fromarray(_GROUND.astype(np.uint8))
COMPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "jpeg tiff": ("TIFF", {"compression": "jpeg"}),
}


def refuse(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        refuse_damage(image, data)


def encoded(name: str, image: Image.Image) -> bytes:
    file_format, options = COMPRESSED[name]
    return encode(image, file_format, **options)


@pytest.mark.parametrize("part", [0.2, 0.5])
@pytest.mark.parametrize("name", COMPRESSED)
def test_an_end_of_zeros_is_damage(name: str, part: float, tmp_path: Path) -> None:
    data = encoded(name, PHOTO)
    path = tmp_path / "x"
    path.write_bytes(data)
    assert isinstance(attempt(path, inspect), Facts)
    cut = int(len(data) * part)
    path.write_bytes(data[:-cut] + bytes(cut))
    for decode in (True, False):
        found = attempt(path, partial(inspect, decode=decode))
        assert isinstance(found, Problem)
        assert found.is_promised
        assert found.kind.startswith("damaged"), found


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("value", [0, 255])
def test_pictures_of_one_colour_are_sound(name: str, value: int) -> None:
    for side in (1, 40, 700):
        pixels = np.full((side, side, 3), value, np.uint8)
        refuse(encoded(name, Image.fromarray(pixels)))
        pixels[: side // 3, : side // 2] = 77
        refuse(encoded(name, Image.fromarray(pixels)))


@pytest.mark.parametrize("quality", [80, 100])
def test_a_webp_that_rightly_ends_in_zeros_is_sound(quality: int) -> None:
    for rows in (0, 60):
        pixels = np.full((1000, 1000, 3), 128, np.uint8)
        pixels[:rows] = np.asarray(PHOTO.resize((1000, 1000)))[:rows]
        pixels[rows:] = np.arange(1000)[:, None] // 100  # columns
        data = encode(Image.fromarray(pixels), "WEBP", method=0, quality=quality)
        refuse(data)
    flat = encode(Image.new("RGB", (1000, 1000), (128,) * 3), "WEBP", method=0, quality=100)
    assert flat.endswith(bytes(len(flat) // 4))
    refuse(flat)


@pytest.mark.parametrize("file_format", ["BMP", "PPM", "TIFF"])
def test_pixels_that_are_not_compressed_may_be_black(file_format: str) -> None:
    refuse(encode(Image.new("RGB", (40, 40)), file_format))


@pytest.mark.parametrize("images", [SHALLOW, TRANSPARENT, SEVERAL, DEEP])
def test_odd_images_are_sound(images: dict[str, bytes]) -> None:
    for data in images.values():
        refuse(data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pngs_of_all_modes_are_sound(mode: str) -> None:
    for size in ((1, 1), (3, 2), (9, 17)):
        refuse(encode(COLOUR.convert(mode).resize(size), "PNG"))


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, rows: bytes, *, interlaced: bool = False) -> bytes:
    """A gray PNG of 8 bits; `rows` are not checked."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_a_png_holds_all_rows() -> None:
    refuse(png(5, 64, bytes(6 * 64)))
    refuse(png(5, 64, bytes(6 * 64 + 9)))
    with pytest.raises(ValueError, match="it holds 180 of 384 bytes of pixels"):
        refuse(png(5, 64, bytes(6 * 30)))


def test_an_interlaced_png_holds_all_passes() -> None:
    """Of 3 x 2 pixels: one, none, none, one more, none, one, and the second row."""
    refuse(png(3, 2, bytes(2 + 2 + 2 + 4), interlaced=True))
    with pytest.raises(ValueError, match="it holds 9 of 10 bytes of pixels"):
        refuse(png(3, 2, bytes(9), interlaced=True))
    # The passes of 8 x 8 pixels: 1, 1, 2, 4, 8, 16 and 32 pixels in 1, 1, 1, 2, 2, 4, 4 rows.
    refuse(png(8, 8, bytes(64 + 15), interlaced=True))
    with pytest.raises(ValueError, match="it holds 78 of 79 bytes"):
        refuse(png(8, 8, bytes(64 + 14), interlaced=True))


def test_checksums_of_a_png_are_compared() -> None:
    whole = encode(PHOTO, "PNG")
    for place in (whole.index(b"IDAT") + 900, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="a checksum does not fit, of the part b'I"):
            refuse(bytes(damaged))
    for end in (1, 4, 12, 40):
        with pytest.raises(ValueError, match="its end is missing"):
            refuse(whole[:-end])
    pixels = zlib.compress(bytes(6 * 64))
    wrong = png(5, 64, b"").replace(
        chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", pixels[:-1] + b"\7")
    )
    with pytest.raises(zlib.error):
        refuse(wrong)


@pytest.mark.parametrize("name", ["png", "gif", "jpeg", "progressive jpeg", "webp"])
@pytest.mark.parametrize("more", [bytes(9000), b"\n", b"made by a camera" * 99])
def test_what_is_appended_is_no_damage(name: str, more: bytes) -> None:
    refuse(encoded(name, PHOTO) + more)


def test_the_end_of_a_thumbnail_is_not_that_of_a_jpeg() -> None:
    whole = encode(PHOTO, "JPEG")
    thumbnail = b"Exif\0\0" + encode(COLOUR, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = whole[:2] + segment + whole[2:]
    refuse(data)
    with pytest.raises(ValueError, match="its end marker is missing"):
        refuse(data[:-500] + bytes(500))


def test_the_length_of_a_webp_is_compared(tmp_path: Path) -> None:
    """By Pillow."""
    whole = encode(PHOTO, "WEBP")
    path = tmp_path / "x.webp"
    path.write_bytes(whole[:4] + struct.pack("<I", len(whole)) + whole[8:])
    assert isinstance(attempt(path, inspect), Problem)


def test_pillow_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of its own would name no file."""
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(COLOUR, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\1\3\0"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Image.open(path).getexif()
        assert said
        said.clear()
        assert isinstance(attempt(path, inspect), Facts)
    assert not said
