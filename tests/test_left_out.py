"""What `prepare`, `encrypt` and `prepare public-pool` leave out of a folder, and what they refuse.

All three read files in the same way, so that most tests go through all of them.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from folder_readers import Reader, by_encrypt, by_prepare, read, refused, source
from odd_images import (
    COLOUR,
    DEEP,
    FOREIGN,
    SEVERAL,
    SQUARE,
    TRANSPARENT,
    UNSUITABLE,
    encode,
    write_classes,
)
from PIL import Image

from instahide_jax.data import public_pool
from instahide_jax.data.image_checks import Facts, Problem, attempt, inspect, settle
from instahide_jax.data.image_folder import arrays_from_folder, read_image_folder
from instahide_jax.data.prepare import prepare
from instahide_jax.data.public_pool import PoolParameters, build_public_pool
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.errors import InputError, how_many

SMALL = Image.new("RGB", (3, 2), "red")
__all__ = ["read", "source"]  # fixtures


# --- content decides -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JPG", "", ".dat", ".png", ".txt"])
def test_what_a_file_is_follows_from_its_content(ending: str, read: Reader, source: Path) -> None:
    for index in range(5):
        data = encode(COLOUR, "JPEG", quality=90 + index)
        (source / "a" / f"photo{index}{ending}").write_bytes(data)
    assert read(source) == (15, by_notes(read))


@pytest.mark.parametrize(
    ("file_format", "ending"), [("WEBP", ".webp"), ("BMP", ".bmp"), ("TIFF", ".tif"), ("PPM", "")]
)
def test_every_format_is_read(file_format: str, ending: str, read: Reader, source: Path) -> None:
    (source / "a" / f"x{ending}").write_bytes(encode(COLOUR, file_format))
    count, notes = read(source)
    assert count == 11
    assert not any("left out" in note for note in notes)


def by_notes(read: Reader) -> tuple[str, ...]:
    """What is said in any case."""
    held_out = ("no test folder: every 10th image of a class is held out as test",)
    return held_out if read is by_prepare else ()


# --- files that are no images --------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_few_other_files_are_left_out_and_counted(kind: str, read: Reader, source: Path) -> None:
    first = source / "a" / "zz"
    first.write_bytes(FOREIGN[kind])
    (source / "b" / "notes.txt").write_text("text")
    count, notes = read(source)
    assert count == 10
    assert f"left out 2 files (1 {kind}, 1 .txt): {first}, {source}/b/notes.txt" in notes


@pytest.mark.parametrize("kind", ["HEIC", "AVIF", "DICOM", "PDF", "camera raw"])
def test_many_other_files_are_an_error_that_an_option_lifts(
    kind: str, read: Reader, source: Path
) -> None:
    """Half of the images would be lost."""
    for index in range(5):
        (source / "a" / f"x{index}").write_bytes(FOREIGN[kind])
    expected = f"5 of 15 files are no images that can be read here (5 {kind}), {source}/a/x0, "
    message = refused(read, source, expected)
    assert "pass --skip-unreadable to leave such files out" in message
    count, notes = read(source, skip_unreadable=True)
    assert count == 10
    assert (
        f"left out 5 files (5 {kind}): " + ", ".join(f"{source}/a/x{i}" for i in range(5)) in notes
    )


@pytest.mark.parametrize(
    ("lost", "total", "is_few"),
    [(1, 3, True), (2, 9, False), (2, 10, True), (5, 25, True), (6, 30, False), (6, 599, False),
     (6, 600, True), (1000, 100_000, True), (1001, 100_000, False)],
)  # fmt: skip
def test_how_many_are_a_few(lost: int, total: int, is_few: bool) -> None:
    problems = [Problem(Path(f"{i}.txt"), ".txt", "text", is_promised=False) for i in range(lost)]
    if is_few:
        (note,) = settle(problems, total, False)
        assert note.startswith(f"left out {how_many(lost, 'file')} ({lost} .txt): 0.txt")
        assert ("9.txt and 990 more" in note) == (lost == 1000)
    else:
        with pytest.raises(InputError, match=f"^{lost} of {total} files are no images"):
            settle(problems, total, False)
        assert settle(problems, total, True)


def test_a_class_of_other_files_alone(source: Path) -> None:
    (source / "c").mkdir()
    (source / "c" / "x").write_bytes(FOREIGN["HEIC"])
    for by in (by_prepare, by_encrypt):
        refused(by, source, "c holds no images (BMP, GIF, JPEG", "remove it or fill it")


# --- files that promise to be images -------------------------------------------------------------


def test_all_damaged_files_are_named(read: Reader, source: Path) -> None:
    whole = (source / "a" / "00.png").read_bytes()
    for name, data in {"a/01.png": b"", "a/03.png": whole[:-40], "b/02.png": b"no image"}.items():
        (source / name).write_bytes(data)
    places = [str(source / name) for name in ("a/01.png", "a/03.png", "b/02.png")]
    message = refused(read, source, "3 of 10 files cannot be read: ", *places)
    assert message.endswith(
        "): replace, convert or remove the files, or pass --skip-unreadable to leave such files out"
    )
    count, notes = read(source, skip_unreadable=True)
    assert count == 7
    assert any(
        n.startswith(f"left out 3 files (2 .png, 1 damaged): {source}/a/01.png, ") for n in notes
    )


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_no_damage_of_a_file_escapes(file_format: str, tmp_path: Path) -> None:
    """Decoders raise nearly every kind of exception, a GIF's IndexError and a TIFF's KeyError."""
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"save_all": True, "append_images": [SMALL]} if file_format in ("GIF", "TIFF") else {}
    whole = encode(SMALL, file_format, exif=exif, **options)
    path = tmp_path / "damaged"
    for place in range(min(len(whole), 400)):
        byte = whole[place]
        flipped = [bytes([value]) for value in (0, 2, 255, byte ^ 1, byte ^ 128)]
        for data in (whole[:place], *(whole[:place] + new + whole[place + 1 :] for new in flipped)):
            path.write_bytes(data)
            found = attempt(path, inspect)
            assert isinstance(found, Problem | Facts)
            if isinstance(found, Problem):
                assert found.cause


def test_ten_damaged_files_are_named_and_the_rest_counted(read: Reader, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_classes(source, 20)
    for index in range(13):
        file = source / "b" / f"{index:02d}.png"
        file.write_bytes(file.read_bytes()[:-40])
    message = refused(read, source, "13 of 40 files cannot be read: ", "and 3 more: replace")
    assert message.count("/b/") == 10


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_refused(name: str, read: Reader, source: Path) -> None:
    (source / "a" / "deep").write_bytes(DEEP[name])
    message = refused(read, source, f"{source}/a/deep cannot be read (it has more than 8 bits per")
    assert "reduce more than 8 bits to 8 with the window that suits the images" in message
    count, notes = read(source, skip_unreadable=True)
    assert count == 10
    assert f"left out 1 file (1 of more than 8 bits): {source}/a/deep" in notes


def test_damaged_and_deep_images_have_both_remedies(read: Reader, source: Path) -> None:
    (source / "a" / "00.png").write_bytes(b"")
    (source / "a" / "01.png").write_bytes(DEEP["16-bit colour png"])
    refused(read, source, "2 of 10 files", "replace, convert or remove the files, reduce more than")


@pytest.mark.parametrize("name", ["signed tiff", "tiff of four channels"])
def test_other_pixels_than_meant_are_refused(name: str, read: Reader, source: Path) -> None:
    (source / "a" / "x.tif").write_bytes(UNSUITABLE[name])
    refused(read, source, "x.tif cannot be read (")


@pytest.mark.parametrize("name", ["dng", "reduced tiff"])
def test_raw_images_are_no_tiffs(name: str, read: Reader, source: Path) -> None:
    (source / "a" / "x.dng").write_bytes(UNSUITABLE[name])
    count, notes = read(source)
    assert count == 10
    assert f"left out 1 file (1 camera raw): {source}/a/x.dng" in notes


@pytest.mark.parametrize("kind", ["HEIC", "HTML", "Git LFS pointer"])
def test_the_content_of_a_file_with_another_ending_is_named(
    kind: str, read: Reader, source: Path
) -> None:
    (source / "a" / "00.png").write_bytes(FOREIGN[kind])
    refused(read, source, f"{source}/a/00.png cannot be read (its content is {kind}): replace")


def test_a_jpeg_of_12_bits_is_no_unknown_format(read: Reader, source: Path) -> None:
    data = bytearray(encode(COLOUR, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    (source / "a" / "x").write_bytes(data)
    refused(
        read, source, "x cannot be read (Pillow cannot open this JPEG: it is damaged or of a ra"
    )


def test_a_file_without_permission(read: Reader, source: Path, monkeypatch: pytest.MonkeyPatch):
    real = Path.read_bytes

    def guarded(path: Path) -> bytes:  # root may read everything
        if path.name == "00.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    for skip in (False, True):  # it may be a good image
        with pytest.raises(InputError, match=r"^cannot read .*a/00\.png: Permission denied; check"):
            read(source, skip_unreadable=skip)


# --- links and folders of systems ----------------------------------------------------------------


def test_links_are_followed(read: Reader, source: Path) -> None:
    far = source.parent / "far"
    write_classes(far, 3, "xy")
    (source / "a" / "folder").symlink_to(far / "x")
    (source / "a" / "link.png").symlink_to(far / "y" / "00.png")
    (source / "a" / "up").symlink_to(source)
    count, notes = read(source)
    assert count == 14
    assert any("link to what is read already" in note for note in notes)


def test_links_that_lead_nowhere(read: Reader, source: Path) -> None:
    (source / "a" / "data").symlink_to(source / "nowhere")
    _, notes = read(source)
    assert f"left out 1 file (1 link that leads nowhere): {source}/a/data" in notes
    (source / "a" / "x.png").symlink_to(source / "nowhere.png")
    refused(read, source, "a/x.png cannot be read (it is a link that leads nowhere)")
    assert read(source, skip_unreadable=True)[0] == 10


def test_what_systems_leave_is_left_out_and_named(read: Reader, source: Path) -> None:
    for folder in ("@eaDir", "a/@eaDir", ".Trashes", "#recycle", "a/.ipynb_checkpoints"):
        (source / folder).mkdir()
        (source / folder / "thumb.png").write_bytes(encode(COLOUR, "PNG"))
    for name in (".DS_Store", "a/Thumbs.db", "a/._00.png", "b/desktop.ini"):
        (source / name).write_bytes(b"\0\5\26\7")
    count, notes = read(source)
    assert count == 10
    folders = "2 @eaDir, 1 #recycle, 1 .Trashes, 1 .ipynb_checkpoints"
    assert f"left out 5 hidden or system folders ({folders})" in notes
    assert any(note.startswith("left out 4 hidden or system files (") for note in notes)


# --- several pictures, transparency, orientation -------------------------------------------------


@pytest.mark.parametrize("name", SEVERAL)
def test_several_pictures_in_a_file_are_told(name: str, read: Reader, source: Path) -> None:
    for folder in "ab":
        (source / folder / f"x{folder}").write_bytes(SEVERAL[name])
    _, notes = read(source)
    assert (
        "2 files with more than one picture, of which the first is taken: "
        f"{source}/a/xa, {source}/b/xb" in notes
    )


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_is_told(name: str, read: Reader, source: Path) -> None:
    for folder in "ab":
        (source / folder / f"x{folder}").write_bytes(TRANSPARENT[name])
    (source / "a" / "opaque.png").write_bytes(encode(COLOUR.convert("RGBA"), "PNG"))
    _, notes = read(source)
    places = f"{source}/a/xa, {source}/b/xb"
    assert f"2 images with transparent parts, which are white now: {places}" in notes


def test_black_drawings_on_a_transparent_ground_are_seen(tmp_path: Path) -> None:
    """The fault of the issue: every pixel became 0."""
    for folder in "ab":
        for number, data in enumerate(TRANSPARENT.values()):
            (tmp_path / "source" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / folder / f"{number}").write_bytes(data)
    expected = np.repeat(SQUARE[..., None], 3, 2)
    for image in arrays_from_folder(tmp_path / "source").arrays.images:
        np.testing.assert_array_equal(image, expected)
    prepare("drawings", tmp_path / "source", tmp_path / "tfds")
    for image in load_arrays("drawings", "train", str(tmp_path / "tfds")).images:
        np.testing.assert_array_equal(image, expected)


def test_drawings_of_a_pool_stand_on_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_pool, "_keypoint_counter", lambda: lambda gray: 1)
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "in" / "x.png")
    build_public_pool(tmp_path / "in", tmp_path / "p.npy", PoolParameters(4, 8, 16, 0))
    assert (np.load(tmp_path / "p.npy") == 255).all()


# --- afterwards ----------------------------------------------------------------------------------


def test_a_file_that_changes_meanwhile_is_named(source: Path) -> None:
    folder = read_image_folder(source)
    file = folder.splits["train"][0]
    file.path.unlink()
    with pytest.raises(InputError, match=rf"^{file.path} cannot be decoded \(.*No such file"):
        folder.read(file)


def test_the_record_of_a_pool_names_the_photos_that_were_used(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_pool, "_keypoint_counter", lambda: lambda gray: 1)
    (source / "a" / "00.png").write_bytes(b"")
    out = source.parent / "p.npy"
    parameters = PoolParameters(size=4, count=9, test_size=4, min_keypoints=0)
    build_public_pool(source, out, parameters, skip_unreadable=True)
    photos = [photo["file"] for photo in json.loads(out.with_suffix(".json").read_text())["photos"]]
    assert photos == [f"{c}/0{i}.png" for c in "ab" for i in range(5)][1:]
    assert not build_public_pool(source, out, parameters, skip_unreadable=True).built
