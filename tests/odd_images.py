"""Encoded images that are easily misread: deep, transparent, several in a file, of odd formats."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def deep(suffix: str, channels: int) -> bytes:
    """6 x 8 pixels of 16 bits, all 1000, by OpenCV."""
    pixels = np.full((6, 8, channels) if channels > 1 else (6, 8), 1000, np.uint16)
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


def four_bit_bmp() -> bytes:
    """6 x 8 pixels, the first of 16 colours, which is white."""
    palette, pixels = b"\xff\xff\xff\0" + bytes(60), bytes(6 * 4)
    start = 14 + 40 + len(palette)
    sizes = struct.pack("<IiiHHIIiiII", 40, 8, 6, 1, 4, 0, len(pixels), 0, 0, 16, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return head + sizes + palette + pixels


COLOUR = Image.fromarray(np.indices((3, 6, 8)).sum(0).astype(np.uint8).transpose(1, 2, 0) * 15)
_TINY = Image.new("RGB", (8, 6))
# Pixels of more than 8 bits, which Pillow cuts off or refuses.
DEEP = {
    "16-bit gray png": deep(".png", 1),
    "16-bit colour png": deep(".png", 3),
    "16-bit png with alpha": deep(".png", 4),
    "16-bit gray tiff": deep(".tiff", 1),
    "16-bit colour tiff": deep(".tiff", 3),
    "16-bit ppm": deep(".ppm", 3),
    "16-bit pgm": deep(".pgm", 1),
    "10-bit ppm": b"P6\n2 1\n# of a scanner\n1023\n" + bytes([3, 255] * 6),
    "10-bit pgm": b"P5 2 1 1023\n" + bytes([3, 255] * 2),
    "10-bit plain ppm": b"P3 1 1 1023\n1023 512 0\n",
    "10-bit plain pgm": b"P2 1 1 1023\n512\n",
    "float tiff": encode(Image.new("F", (8, 6), 0.5), "TIFF"),
    "32-bit tiff": encode(Image.new("I", (8, 6), 70000), "TIFF"),
    "pfm": encode(Image.new("F", (8, 6), 0.5), "PPM"),
}
# At most 8 bits, though some other number than 8.
SHALLOW = {
    "1-bit png": encode(Image.new("1", (8, 6), 1), "PNG"),
    "2-bit png": encode(Image.new("P", (8, 6), 1), "PNG", bits=2),
    "1-bit tiff": encode(Image.new("1", (8, 6), 1), "TIFF"),
    "4-bit bmp": four_bit_bmp(),
    "plain pbm": b"P1\n2 1\n0 1\n",
    "4-bit pgm": b"P5 2 1 15\n" + bytes([0, 15]),
    "8-bit ppm": b"P6 #c\n2 1 255\n" + bytes(6),
    "cmyk jpeg": encode(_TINY.convert("CMYK"), "JPEG"),
    "cmyk tiff": encode(_TINY.convert("CMYK"), "TIFF"),
    "ycbcr tiff": encode(_TINY.convert("YCbCr"), "TIFF", compression="tiff_lzw"),
}
# Of 8 bits, and yet not what Pillow reads of them.
UNSUITABLE = {
    "reduced tiff": encode(_TINY, "TIFF", tiffinfo={254: 1}),
    "dng": encode(_TINY, "TIFF", tiffinfo={50706: b"\1\4\0\0"}),
    "signed tiff": encode(Image.new("L", (8, 6)), "TIFF", tiffinfo={339: 2}),
    "tiff of four channels": encode(_TINY.convert("RGBX"), "TIFF"),
}


def black_on_nothing(mode: str) -> Image.Image:
    """A black square of 2 x 2 pixels on a ground of 6 x 8 that is transparent, and black below."""
    alpha = Image.new("L", (8, 6), 0)
    alpha.paste(255, (3, 2, 5, 4))
    image = Image.new("RGB" if mode == "RGBA" else "L", alpha.size)
    image.putalpha(alpha)
    return image


SQUARE = np.full((6, 8), 255, np.uint8)
SQUARE[2:4, 3:5] = 0


def gray_png(grays: np.ndarray, bits: int, transparent: int) -> bytes:
    """A PNG of one row of grays of 1 to 8 bits, one of which is transparent."""
    row = np.packbits(np.unpackbits(grays.astype(np.uint8)[:, None], axis=1)[:, -bits:])
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", len(grays), 1, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", transparent)),
        (b"IDAT", zlib.compress(b"\0" + row.tobytes())),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _palette() -> bytes:
    image = Image.fromarray((SQUARE == 0).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0] * 2)
    return encode(image, "PNG", transparency=bytes([0, 255]))


def _named_colour(mode: str) -> bytes:
    """The transparent ground has a colour of its own, nearly black."""
    image = Image.fromarray(np.where(SQUARE == 255, 1, 0).astype(np.uint8)).convert(mode)
    return encode(image, "PNG", transparency=1 if mode == "L" else (1, 1, 1))


# All show `SQUARE` over white, and are all black without their transparency.
TRANSPARENT = {
    "rgba png": encode(black_on_nothing("RGBA"), "PNG"),
    "la png": encode(black_on_nothing("LA"), "PNG"),
    "palette png": _palette(),
    "gif": encode(black_on_nothing("RGBA"), "GIF"),
    "webp": encode(black_on_nothing("RGBA"), "WEBP", lossless=True),
    "tiff": encode(black_on_nothing("RGBA"), "TIFF"),
    "gray png with a colour that is transparent": _named_colour("L"),
    "png with a colour that is transparent": _named_colour("RGB"),
}

_PAGES = [COLOUR, Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")]
# All show `COLOUR` first, the GIF in 256 colours.
SEVERAL = {
    f: encode(COLOUR, f, save_all=True, append_images=_PAGES[1:], **options)
    for f, options in {
        "GIF": {}, "TIFF": {}, "PNG": {}, "WEBP": {"lossless": True}, "MPO": {"quality": 100},
    }.items()
}  # fmt: skip

SEVERAL["PPM"] = encode(COLOUR, "PPM") + b"\n" + encode(COLOUR, "PPM")

FTYP = b"\0\0\0\x18ftyp"
# Formats that are not read here: kind -> first bytes.
FOREIGN = {
    "HEIC": FTYP + b"heic\0\0\0\0mif1heic" + bytes(900),
    "AVIF": FTYP + b"avif\0\0\0\0mif1avif" + bytes(900),
    "DICOM": bytes(128) + b"DICM" + bytes(900),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(900),
    "JPEG XL": b"\xff\x0a" + bytes(900),
    "PDF": b"%PDF-1.7\n",
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "Photoshop": b"8BPS\0\1" + bytes(90),
    "camera raw": b"IIRO\x08\0\0\0" + bytes(90),
    "film": FTYP + b"isom" + bytes(90),
    "zip": b"PK\3\4" + bytes(90),
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(90),
}


def write_classes(root: Path, count: int, classes: str = "ab", **options: Any) -> None:
    """Random PNGs 00.png, 01.png, ... in a folder for each class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            seed = 100 * label + index
            pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png", **options)
