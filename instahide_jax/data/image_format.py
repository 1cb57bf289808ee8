"""One encoded image: what can be read of it without loss, and its pixels as gray, RGB or RGBA."""

import re
from io import BytesIO

from PIL import ExifTags, Image, ImageOps, PpmImagePlugin, TiffImagePlugin, UnidentifiedImageError

# A fixed list: Pillow knows formats that start other programs (EPS), are no images (HDF5), or
# whose depth it does not tell (AVIF).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
GRAY_MODES = ("1", "L", "LA")
# Pillow's modes that convert to 8-bit gray or RGB without clipping.
EIGHT_BIT_MODES = (*GRAY_MODES, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB")
MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
BACKGROUND = "white"  # what shows through where an image is transparent
DEEP = "of more than 8 bits"  # a kind of `UnsuitableImageError`
# Offset of the bit depth in a PNG: signature, length and type of IHDR, width, height.
_PNG_DEPTH = 24
# What announces Exif data in a PNG: a chunk, a text of ImageMagick's, XMP.
_EXIF_IN_PNG = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
# Forms of Netpbm in which pictures may follow one another.
_RAW_NETPBM = (b"P4", b"P5", b"P6")
# Of a TIFF: what its SampleFormat may be (unsigned, not said), and a flag of NewSubfileType.
_UNSIGNED = (1, 4)
_REDUCED = 1


class UnknownFormatError(OSError):
    """The data are of none of `FORMATS`."""


class UnsuitableImageError(ValueError):
    """An image that Pillow would read, but not as it is meant.

    Attributes:
        kind: in a few words, to be counted.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def open_image(data: bytes) -> Image.Image:
    """Open an encoded image with Pillow, and check that its pixels have at most 8 bits.

    Raises:
        UnknownFormatError: for another format than `FORMATS`.
        UnsuitableImageError: for more than 8 bits per channel, which Pillow cuts off without a
            word in many formats; for channels that it would drop, signed pixels, or the preview of
            a camera's raw image.
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:  # its text is the address of a buffer
        raise UnknownFormatError(f"not a file of format {', '.join(FORMATS)}") from None
    try:
        _check(image, data)
    except BaseException:
        image.close()
        raise
    _scale_named_gray(image, data)
    return image


def _scale_named_gray(image: Image.Image, data: bytes) -> None:
    """Give the gray that a PNG of fewer than 8 bits names as transparent as its pixels are given.

    Pillow scales the pixels to 8 bits, but of 2 and 4 bits not the gray.
    """
    named = image.info.get("transparency")
    if image.format == "PNG" and image.mode in ("1", "L") and isinstance(named, int):
        largest = (1 << data[_PNG_DEPTH]) - 1
        if named <= largest:
            image.info["transparency"] = named * 255 // largest


def _check(image: Image.Image, data: bytes) -> None:
    bits = 8
    if image.format == "PNG":
        bits = data[_PNG_DEPTH]
    elif image.format == "PPM":
        bits = _ppm_bits(data)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = _tiff_bits(image, data)
    if bits > 8 or image.mode not in EIGHT_BIT_MODES:
        found = f"{bits} bits, {image.mode}" if bits > 8 else image.mode
        raise UnsuitableImageError(DEEP, f"it has more than 8 bits per channel: {found}")


def _ppm_bits(data: bytes) -> int:
    """Bits of the largest value of a Netpbm file; 8 for a form without one."""
    if data[:2] not in (b"P2", b"P3", b"P5", b"P6"):
        return 8
    words = re.sub(rb"#[^\r\n]*[\r\n]?", b"", data[: 1 << 16]).split(maxsplit=4)
    if len(words) < 4:
        raise ValueError("its header is too long")
    return int(words[3]).bit_length()


def _tiff_bits(image: TiffImagePlugin.TiffImageFile, data: bytes) -> int:
    def values(tag: int) -> tuple[int, ...]:
        return tag_values(image.tag_v2.get(tag))

    is_reduced = any(value & _REDUCED for value in values(ExifTags.Base.NewSubfileType))
    if is_reduced or values(ExifTags.Base.DNGVersion) or data[8:10] == b"CR":
        raise UnsuitableImageError("camera raw", "it is a camera's raw image with a preview")
    bits = max(values(TiffImagePlugin.BITSPERSAMPLE), default=1)
    if bits <= 8 and any(value not in _UNSIGNED for value in values(TiffImagePlugin.SAMPLEFORMAT)):
        raise UnsuitableImageError("of signed pixels", "its pixels are signed")
    channels, known = sum(values(TiffImagePlugin.SAMPLESPERPIXEL)), len(image.getbands())
    if bits <= 8 and channels > known:
        raise UnsuitableImageError(
            "of too many channels", f"it has {channels} channels, of which {known} can be read"
        )
    return bits


def tag_values(tag: object) -> tuple[int, ...]:
    """A TIFF tag that Pillow gives as a number or as several; none where it is missing."""
    if tag is None:
        return ()
    return tuple(tag) if isinstance(tag, tuple | bytes) else (int(str(tag)),)


def orientation(image: Image.Image, data: bytes) -> object:
    """The Exif orientation as the file has it, 1 for an upright image or one that does not tell.

    2 to 8 are defined; a file may have any other number, or a text.
    """
    # Pillow would decode all of a PNG to look for Exif data behind the pixels.
    if image.format == "PNG" and not any(mark in data for mark in _EXIF_IN_PNG):
        return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def holds_several(image: Image.Image, data: bytes) -> bool:
    """Whether a file holds more pictures than the one that Pillow opens: pages, an animation.

    Args:
        image: as Pillow opens it, not yet decoded.
        data: the file.
    """
    if isinstance(image, PpmImagePlugin.PpmImageFile) and data[:2] in _RAW_NETPBM:
        row = -(-image.width // 8) if image.mode == "1" else image.width * len(image.getbands())
        rest = data[image.tile[0].offset + row * image.height :]
        return rest.lstrip()[:2] in _RAW_NETPBM
    return getattr(image, "n_frames", 1) > 1


def has_alpha(image: Image.Image) -> bool:
    """Whether an image can have transparent pixels, by a channel or by a colour that is named."""
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def shows_background(image: Image.Image) -> bool:
    """Whether a pixel of an image is transparent; decodes it."""
    if not has_alpha(image):
        return False
    opaque = image.convert("RGBA").getchannel("A").histogram()[255]
    return opaque < image.width * image.height


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image as L, RGB or RGBA; as L and RGB over `BACKGROUND` where it is transparent."""
    if mode != "RGBA" and has_alpha(image):
        over = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(over, image.convert("RGBA"))
    return image.convert(mode)


def upright(image: Image.Image, mode: str) -> Image.Image:
    """An image as `to_mode` gives it, turned as its Exif orientation says."""
    return to_mode(ImageOps.exif_transpose(image), mode)
