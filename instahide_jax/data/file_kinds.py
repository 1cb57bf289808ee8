"""What kind a file is that is no image of ours, for messages: by its content, else by its name."""

from pathlib import Path

from instahide_jax.data.image_format import FORMATS

HEAD = 1024  # bytes of a file that are looked at
# Endings of files that can be read as images. They promise an image; none of them is needed.
ENDINGS = frozenset(
    (
        *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
# Kind -> where in a file which bytes stand.
_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("GIF", 0, b"GIF8"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),
    ("TIFF", 0, b"MM\0+"),
    ("WEBP", 8, b"WEBP"),
    ("DICOM", 128, b"DICM"),
    ("JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("JPEG XR", 0, b"II\xbc"),
    ("camera raw", 0, b"FUJIFILMCCD-RAW"),
    ("camera raw", 0, b"IIRO"),
    ("camera raw", 0, b"IIRS"),
    ("camera raw", 0, b"MMOR"),
    ("camera raw", 0, b"IIU\0"),
    ("camera raw", 0, b"\0MRM"),
    ("camera raw", 0, b"FOVb"),
    ("Photoshop", 0, b"8BPS"),
    ("GIMP", 0, b"gimp xcf"),
    ("OpenEXR", 0, b"\x76\x2f\x31\x01"),
    ("Radiance HDR", 0, b"#?RADIANCE"),
    ("FITS", 0, b"SIMPLE  ="),
    ("NIfTI", 344, b"n+1\0"),
    ("NIfTI", 344, b"ni1\0"),
    ("NRRD", 0, b"NRRD"),
    ("QOI", 0, b"qoif"),
    ("icon", 0, b"\0\0\1\0"),
    ("DDS", 0, b"DDS "),
    ("FLIF", 0, b"FLIF"),
    ("DjVu", 0, b"AT&TFORM"),
    ("PDF", 0, b"%PDF"),
    ("PostScript", 0, b"%!PS"),
    ("NumPy", 0, b"\x93NUMPY"),
    ("HDF5", 0, b"\x89HDF"),
    ("zip", 0, b"PK\3\4"),
    ("gzip", 0, b"\x1f\x8b"),
    ("bzip2", 4, b"1AY&SY"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("Zstandard", 0, b"\x28\xb5\x2f\xfd"),
    ("tar", 257, b"ustar"),
    ("RAR", 0, b"Rar!"),
    ("7z", 0, b"7z\xbc\xaf"),
    ("AVI", 8, b"AVI "),
    ("Matroska", 0, b"\x1a\x45\xdf\xa3"),
    ("MPEG", 0, b"\0\0\1\xba"),
    ("MPEG", 0, b"\0\0\1\xb3"),
    ("Git LFS pointer", 0, b"version https://git-lfs"),
)
# Of files in boxes: brand -> kind; other brands are those of films.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
    ),
    b"crx ": "camera raw",
}
# Of files whose content does not tell: ending -> kind.
_ENDINGS = {
    **dict.fromkeys((".dcm", ".dicom", ".ima"), "DICOM"),
    **dict.fromkeys((".heic", ".heif"), "HEIC"),
    ".avif": "AVIF",
    ".svg": "SVG",
    **dict.fromkeys(
        (
            *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc"),
            *(".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2"),
            *(".rwl", ".sr2", ".srf", ".srw", ".x3f"),
        ),
        "camera raw",
    ),
}
# Kinds of images that are not read here, but missed where they are left out.
_OTHER_IMAGES = frozenset(
    (
        *("AVIF", "DDS", "DICOM", "FITS", "GIMP", "HEIC", "JPEG 2000", "JPEG XL", "JPEG XR"),
        *("NIfTI", "NRRD", "OpenEXR", "Photoshop", "QOI", "Radiance HDR", "camera raw"),
    )
)
# Of packed folders and files, which may hold images.
_PACKED = frozenset(("zip", "gzip", "bzip2", "xz", "Zstandard", "tar", "RAR", "7z"))
_PACKED_ENDINGS = frozenset(
    (
        *(".zip", ".tar", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z"),
        *(".tgz", ".tbz", ".tbz2", ".txz"),
    )
)
_TABLES = frozenset((".csv", ".tsv", ".json", ".jsonl", ".txt"))


def is_image(head: bytes, path: Path) -> bool:
    """Whether a file is an image, of a kind that can be read or of another, or says so."""
    kind = kind_of(head, path)
    return kind in FORMATS or kind in _OTHER_IMAGES or path.suffix.lower() in ENDINGS


def is_packed(head: bytes, path: Path) -> bool:
    """Whether a file is an archive that may hold images.

    A packed table ("labels.csv.gz") is none, nor is a document whose content is that of a zip file.
    """
    ending = path.suffix.lower()
    if ending in _PACKED_ENDINGS:
        return Path(path.stem).suffix.lower() not in _TABLES
    return not ending and content_kind(head) in _PACKED


def unpacked(path: Path) -> Path:
    """The folder into which an archive is usually unpacked: `a` for `a.zip` and `a.tar.gz`."""
    while path.suffix.lower() in _PACKED_ENDINGS:
        path = path.with_suffix("")
    return path


def kind_of(head: bytes, path: Path) -> str:
    """Such as "HEIC", ".txt" or "of no ending"; `head` is a file's first `HEAD` bytes."""
    ending = path.suffix.lower()
    return content_kind(head) or _ENDINGS.get(ending) or ending or "of no ending"


def content_kind(head: bytes) -> str | None:
    """The kind that the first bytes tell, None if they tell none."""
    if head[4:8] == b"ftyp":
        brands = (head[8:12], *(head[i : i + 4] for i in range(16, 48, 4)))
        kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in kinds else kinds[0] if kinds else "film"
    for kind, offset, signature in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<?xml", b"<!--", b"<svg", b"<!doctype svg")) and b"<svg" in start:
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    return None
