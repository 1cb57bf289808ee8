"""instahide_jax.data.image_format, file_kinds: what can be read without loss, and what is what."""

from pathlib import Path

import numpy as np
import pytest
from odd_images import (
    COLOUR,
    DEEP,
    FOREIGN,
    FTYP,
    SEVERAL,
    SHALLOW,
    SQUARE,
    TRANSPARENT,
    UNSUITABLE,
    encode,
    gray_png,
)
from PIL import Image

from instahide_jax.data.embedded import decode_image
from instahide_jax.data.file_kinds import content_kind, is_image, kind_of
from instahide_jax.data.image_format import (
    UnknownFormatError,
    UnsuitableImageError,
    holds_several,
    open_image,
    orientation,
    shows_background,
)


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_more_than_8_bits_are_refused(data: bytes) -> None:
    for read in (open_image, lambda data: decode_image(data, 3, None)):
        with pytest.raises(UnsuitableImageError, match="more than 8 bits per channel"):
            read(data)


@pytest.mark.parametrize("data", SHALLOW.values(), ids=SHALLOW)
def test_at_most_8_bits_are_read(data: bytes) -> None:
    assert decode_image(data, 3, None).dtype == np.uint8


def test_few_bits_are_scaled() -> None:
    np.testing.assert_array_equal(decode_image(SHALLOW["4-bit pgm"], 1, None).ravel(), [0, 255])
    np.testing.assert_array_equal(decode_image(SHALLOW["plain pbm"], 1, None).ravel(), [255, 0])
    assert (decode_image(SHALLOW["1-bit png"], 1, None) == 255).all()


@pytest.mark.parametrize("data", UNSUITABLE.values(), ids=UNSUITABLE)
def test_other_pixels_than_meant_are_refused(data: bytes) -> None:
    with pytest.raises(UnsuitableImageError, match=r"preview|signed|4 channels, of which 3"):
        open_image(data)


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(UnknownFormatError, match="not a file of format BMP, GIF, JPEG"):
        open_image(data)


def test_a_header_without_an_end_is_damage() -> None:
    with pytest.raises(ValueError, match="its header is too long"):
        open_image(b"P6\n#" + b"c" * (1 << 17) + b"\n2 1 1023\n" + bytes(12))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("data", TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_becomes_white(data: bytes, channels: int) -> None:
    expected = np.repeat(SQUARE[..., None], channels, 2)
    np.testing.assert_array_equal(decode_image(data, channels, None), expected)
    with open_image(data) as image:
        assert shows_background(image)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_gray_that_is_named_transparent_becomes_white_at_any_depth(bits: int) -> None:
    largest = 2**bits - 1
    grays = np.arange(8) * largest // 7
    named = int(grays[2])
    expected = np.where(grays == named, 255, grays * 255 // largest)
    data = gray_png(grays, bits, named)
    for channels in (1, 3):
        assert (decode_image(data, channels, None) == expected[None, :, None]).all()
    with open_image(data) as image:
        assert shows_background(image)
    with open_image(gray_png(grays * 0, bits, largest)) as image:
        assert not shows_background(image)


def test_half_transparent_pixels_are_mixed_with_white_and_rgba_keeps_them() -> None:
    data = encode(Image.new("RGBA", (2, 2), (100, 0, 200, 128)), "PNG")
    expected = [round((c * 128 + 255 * 127) / 255) for c in (100, 0, 200)]
    assert abs(decode_image(data, 3, None)[0, 0].astype(int) - expected).max() <= 1
    assert decode_image(data, 4, None)[0, 0].tolist() == [100, 0, 200, 128]


def test_opaque_images_show_no_background() -> None:
    for mode in ("RGBA", "LA", "RGB", "L", "P"):
        with open_image(encode(COLOUR.convert(mode), "PNG")) as image:
            assert not shows_background(image)


@pytest.mark.parametrize(("name", "data"), SEVERAL.items(), ids=SEVERAL)
def test_the_first_of_several_pictures_is_read(name: str, data: bytes) -> None:
    difference = np.abs(decode_image(data, 3, None).astype(int) - np.asarray(COLOUR))
    assert difference.mean() <= {"GIF": 9, "MPO": 9}.get(name, 0)


@pytest.mark.parametrize(
    ("data", "is_one"),
    [
        (b"P4 9 2\n" + b"P5P6", True),  # two bytes a row
        (b"P4 9 2\n" + bytes(4) + b"P4 1 1\n\1", False),
        (b"P5 2 1 255\n" + b"P5" + b"\n\n", True),
        (b"P5 2 1 255\n" + b"P5" + b"P6 1 1 255\n" + bytes(3), False),
        (b"P6 # two\n1 1 100\n" + bytes(3) + b"\nP6 1 1 255\n" + bytes(3), False),
        (b"P2 2 1 255\n1 2\n", True),
    ],
)
def test_netpbm_files_may_hold_several_pictures(data: bytes, is_one: bool) -> None:
    with open_image(data) as image:
        assert holds_several(image, data) != is_one


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_found_without_decoding(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(COLOUR, file_format, exif=exif)
    with open_image(data) as image:
        assert orientation(image, data) == 6
    plain = encode(COLOUR, file_format)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with open_image(plain) as image:
        assert orientation(image, plain) == 1


@pytest.mark.parametrize(("kind", "data"), FOREIGN.items(), ids=FOREIGN)
def test_kinds_follow_from_the_content(kind: str, data: bytes) -> None:
    for name in ("x.jpg", "x", "x.txt"):
        assert kind_of(data, Path(name)) == kind
    missed = kind not in ("PDF", "SVG", "film", "zip", "HTML", "Git LFS pointer", "HDF5")
    assert is_image(data, Path("x")) == missed


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_formats_that_are_read_are_known_without_an_ending(file_format: str) -> None:
    assert content_kind(encode(COLOUR, file_format)) == file_format


def test_kinds_follow_from_the_name_where_the_content_does_not_tell() -> None:
    names = {"a.dcm": "DICOM", "a.NEF": "camera raw", "a.heif": "HEIC", "a.txt": ".txt"}
    names |= {"a": "of no ending", "a.JSON": ".json"}
    assert {name: kind_of(b"text", Path(name)) for name in names} == names
    assert kind_of(b"", Path("a.png")) == ".png"
    assert kind_of(FTYP + b"mif1\0\0\0\0mif1avif", Path("a")) == "AVIF"
