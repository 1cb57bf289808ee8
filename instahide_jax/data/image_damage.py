"""Damage of encoded images that Pillow decodes without a word: what is missing becomes gray."""

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

from instahide_jax.data.image_format import holds_several, tag_values

_SIGNATURE = 8  # bytes of a PNG before its chunks
_AROUND = 12  # bytes of a chunk beside its content: length, type, checksum
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
# Of the passes of an interlaced PNG: first column and row, steps to the next ones.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# A marker of a JPEG; 0 after FF is data, D0 to D7 divide them, FF fills.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_END, _START, _ALONE = 0xD9, 0xD8, 0x01
_ZEROS = 64  # at an end, that are no chance
_ZERO_PART = 8  # of a WEBP: zeros at its end are looked at from one in so many bytes
_ROWS = 4  # at the picture's end, which are the same where a WEBP rightly ends in zeros
_BLOCK, _BLOCK_ZEROS = 16, 8  # side of a lossy WEBP's blocks, and zeros that one has at most
# Compressions of a TIFF that end in a code or a checksum: LZW, deflate (two numbers), LZMA,
# Zstandard. Uncompressed zeros, and those of others, may be black.
_ENDING = (5, 8, 32946, 34925, 50000)
_JPEG = 7


def refuse_damage(image: Image.Image, data: bytes) -> None:
    """Refuse what is not as its format says, as far as that is known without decoding.

    An interrupted download or copy often leaves a file of the right length that ends in zeros.

    Args:
        image: as Pillow opens it, not yet decoded.
        data: the file.

    Raises:
        ValueError: for damage. Not for what is appended to a whole image.
    """
    if image.format == "PNG":
        _refuse_damaged_png(image, data)
    elif image.format in ("JPEG", "MPO"):
        if not _has_end(data):
            raise ValueError("its end marker is missing")
    elif image.format == "GIF":
        # A picture ends in a zero, and the file in ";".
        if _zeros(data) >= _ZEROS and not data.rstrip(b"\0").endswith(b";"):
            raise ValueError(_only_zeros(data))
    elif image.format == "WEBP":
        _refuse_damaged_webp(image, data)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_damaged_tiff(image, data)


def _refuse_damaged_png(image: Image.Image, data: bytes) -> None:
    encoded = b"".join([part for kind, part in _chunks(data) if kind == b"IDAT"])
    depth, colour, _, _, interlaced = data[24:29]
    expected = _scan_bytes(*image.size, depth * _CHANNELS[colour], bool(interlaced))
    # One more than expected: zlib compares the checksum of the pixels at their end.
    found = len(zlib.decompressobj().decompress(encoded, expected + 1))
    if found < expected:
        raise ValueError(f"it holds {found} of {expected} bytes of pixels")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of a PNG's chunks, whose checksums are compared."""
    view, start, kind = memoryview(data), _SIGNATURE, b""
    while kind != b"IEND":
        if start + _AROUND > len(data):
            raise ValueError("its end is missing")
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + _AROUND + size
        if end > len(data):
            raise ValueError("its end is missing")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[start + 4 : end - 4]) != checksum:
            raise ValueError(f"a checksum does not fit, of the part {kind!r} at byte {start}")
        yield kind, view[start + 8 : end - 4]
        start = end


def _scan_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of a PNG's pixels before compression: each row has one more, for its filter."""
    total = 0
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _has_end(data: bytes) -> bool:
    """Whether a JPEG has its end marker. One within a segment is that of a thumbnail."""
    place = 2
    while found := _MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        if marker == _END:
            return True
        if marker not in (_START, _ALONE):
            place += int.from_bytes(data[place : place + 2])
    return False


def _refuse_damaged_webp(image: Image.Image, data: bytes) -> None:
    # What follows the length that it says is appended. Pillow opens none that is shorter.
    content = data[: 8 + int.from_bytes(data[4:8], "little")]
    zeros = _zeros(content)
    if holds_several(image, data) or zeros < max(_ZEROS, len(content) // _ZERO_PART):
        return
    if data[12:16] == b"VP8L" or zeros > _most_zeros(*image.size) or _rows_differ(image):
        raise ValueError(_only_zeros(content))


def _most_zeros(width: int, height: int) -> int:
    """How many zeros a lossy WEBP that is of one colour below may end in: 7 a block were seen."""
    return -(-width // _BLOCK) * -(-height // _BLOCK) * _BLOCK_ZEROS


def _rows_differ(image: Image.Image) -> bool:
    """Whether an image's last rows differ.

    Zeros may stand for rows like the one above. Where others are cut off, they are guessed from
    what is around them, in one way here and in another there.
    """
    rows = np.asarray(image)[-_ROWS:]
    return bool((rows != rows[-1]).any())


def _refuse_damaged_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    def values(tag: int) -> tuple[int, ...]:
        return tag_values(image.tag_v2.get(tag))

    (compression,) = values(TiffImagePlugin.COMPRESSION) or (1,)
    starts = values(TiffImagePlugin.STRIPOFFSETS) or values(TiffImagePlugin.TILEOFFSETS)
    sizes = values(TiffImagePlugin.STRIPBYTECOUNTS) or values(TiffImagePlugin.TILEBYTECOUNTS)
    # Not by the end of the file, where a palette may lie.
    for start, size in zip(starts, sizes, strict=False):
        part = data[start : start + size]
        if part and compression == _JPEG and not _has_end(part):
            raise ValueError(f"the part of {size} bytes at byte {start} has no end marker")
        if part and compression in _ENDING and not any(part[-_ZEROS:]):
            raise ValueError(f"the part of {size} bytes at byte {start} ends in zeros")


def _zeros(data: bytes) -> int:
    """Number of zeros at the end."""
    return len(data) - len(data.rstrip(b"\0"))


def _only_zeros(data: bytes) -> str:
    return f"its last {_zeros(data)} of {len(data)} bytes are zeros"
