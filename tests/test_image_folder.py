"""instahide_jax.data.image_folder: splits, classes, and which images are stored as they are."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import pixels as noise

from instahide_jax.data.embedded import decode_image
from instahide_jax.data.image_folder import ImageFolder, arrays_from_folder, read_image_folder
from instahide_jax.errors import InputError


def picture(seed: int, size: tuple[int, int] = (6, 8), channels: int = 3) -> Image.Image:
    """A random image with `size` = (height, width)."""
    shape = size if channels == 1 else (*size, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def write_classes(root: Path, counts: dict[str, int], **options: int) -> None:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * label + index, **options).save(root / name / f"{index:02d}.png")  # type: ignore[arg-type]


def names(folder: ImageFolder, split: str) -> list[str]:
    return ["/".join(file.path.parts[-2:]) for file in folder.splits[split]]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_every_tenth_image_of_a_class_is_held_out(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 21, "ant": 3})
    folder = read_image_folder(tmp_path)
    assert folder.class_names == ("ant", "cat")
    assert names(folder, "test") == ["ant/02.png", "cat/09.png", "cat/19.png"]
    assert len(names(folder, "train")) == 21
    assert not set(names(folder, "train")) & set(names(folder, "test"))
    assert {(f.path.parent.name, f.label) for s in folder.splits.values() for f in s} == {
        ("ant", 0),
        ("cat", 1),
    }
    assert folder.shape == (6, 8, 3)
    assert folder.notes == ("no test folder: every 10th image of a class is held out as test",)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train", "test"], ["train", "test"]),
        (["train", "val"], ["train", "validation"]),
        (["train", "test", "validation"], ["train", "validation", "test"]),
        (["train"], ["train", "test"]),
    ],
)
def test_split_folders(folders: list[str], splits: list[str], tmp_path: Path) -> None:
    for name in folders:
        write_classes(tmp_path / name, {"a": 2, "b": 3})
    folder = read_image_folder(tmp_path)
    assert list(folder.splits) == splits
    sizes = [len(files) for files in folder.splits.values()]
    assert sizes == ([3, 2] if folders == ["train"] else [5] * len(folders))
    assert any("held out" in note for note in folder.notes) == (folders == ["train"])


def test_images_below_a_class_folder_and_strangers_in_it(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "deep").mkdir()
    picture(1).save(tmp_path / "a" / "deep" / "x.PNG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / ".hidden.png").write_text("not an image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("beside the classes")
    folder = read_image_folder(tmp_path)
    assert folder.class_names == ("a", "b")
    assert sum(len(files) for files in folder.splits.values()) == 5
    assert folder.notes[:3] == (
        "left out 1 hidden or system folder (1 .git)",
        "left out 1 hidden or system file (1 .hidden.png)",
        f"left out 1 file (1 .txt): {tmp_path / 'a' / 'notes.txt'}",
    )


def test_png_and_jpeg_bytes_are_kept(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    jpeg = tmp_path / "a" / "photo.jpeg"
    picture(5, (9, 4)).save(jpeg)
    folder = read_image_folder(tmp_path)
    assert folder.shape == (None, None, 3)
    for files in folder.splits.values():
        for file in files:
            assert folder.read(file) == file.path.read_bytes()


def test_gray_images_stay_gray_and_mixed_ones_become_colour(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3}, channels=1)
    folder = read_image_folder(tmp_path)
    assert folder.shape == (6, 8, 1)
    assert all(file.stored for files in folder.splits.values() for file in files)

    picture(7).save(tmp_path / "a" / "colour.png")
    folder = read_image_folder(tmp_path)
    assert folder.shape == (6, 8, 3)
    gray = next(file for file in folder.splits["train"] if file.path.name == "00.png")
    decoded = pixels(folder.read(gray))
    assert decoded.shape == (6, 8, 3)
    np.testing.assert_array_equal(
        decoded, np.repeat(pixels(gray.path.read_bytes())[..., None], 3, 2)
    )
    assert "6 images converted to 8-bit RGB PNG" in folder.notes


def read_single(path: Path) -> tuple[ImageFolder, np.ndarray]:
    """Read the folder two above `path` and decode what is stored for `path`."""
    folder = read_image_folder(path.parent.parent)
    file = next(f for files in folder.splits.values() for f in files if f.path == path)
    assert not file.stored
    return folder, pixels(folder.read(file))


def test_other_modes_and_formats_are_converted(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 2})
    original = picture(3)
    expected = np.asarray(original)

    path = tmp_path / "a" / "z.bmp"
    original.save(path)
    np.testing.assert_array_equal(read_single(path)[1], expected)
    path.unlink()

    path = tmp_path / "a" / "z.png"
    with_alpha = original.copy()
    with_alpha.putalpha(Image.new("L", original.size, 255))
    with_alpha.save(path)
    np.testing.assert_array_equal(read_single(path)[1], expected)

    original.save(path, transparency=(1, 2, 3))  # OpenCV would decode four channels
    np.testing.assert_array_equal(read_single(path)[1], expected)
    assert not any("transparent" in note for note in read_single(path)[0].notes)

    palette = original.quantize(16)
    palette.save(path)  # Pillow would decode indices
    np.testing.assert_array_equal(read_single(path)[1], np.asarray(palette.convert("RGB")))

    Image.new("1", (8, 6), 1).save(path)  # one bit per pixel
    np.testing.assert_array_equal(read_single(path)[1], np.full((6, 8, 3), 255, np.uint8))


def test_rotated_photos_are_turned_upright(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 2})
    original = picture(3, (6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    path = tmp_path / "a" / "z.png"
    original.save(path, exif=exif)
    folder, decoded = read_single(path)
    np.testing.assert_array_equal(decoded, np.rot90(np.asarray(original), -1))
    assert folder.shape == (None, None, 3)  # 8 x 6 among 6 x 8


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_the_shape_is_that_of_upright_images(
    file_format: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (tmp_path / name / f"{i}" for name in "ab" for i in range(2)):
        path.parent.mkdir(exist_ok=True)
        picture(0, (6, 8)).save(path, file_format, exif=exif)
    folder = read_image_folder(tmp_path)
    assert folder.shape == ((8, 6, 3) if 5 <= orientation <= 8 else (6, 8, 3))
    stored = pixels(folder.read(folder.splits["train"][0]))
    np.testing.assert_array_equal(arrays_from_folder(tmp_path).arrays.images[0], stored)


@pytest.mark.parametrize("number", [1, 2, 7])  # bytes, a text, undefined: no camera should
def test_an_orientation_of_another_type_leaves_an_image_as_it_is(
    number: int, tmp_path: Path
) -> None:
    tag = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x112, number, 2, b"6\0\0\0", 0)
    for path in (tmp_path / name / f"{i}.jpg" for name in "ab" for i in range(2)):
        path.parent.mkdir(exist_ok=True)
        picture(0, (6, 8)).save(path, exif=tag)
    assert read_image_folder(tmp_path).shape == (6, 8, 3)
    assert arrays_from_folder(tmp_path).arrays.images.shape == (4, 6, 8, 3)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_deep_gray_images_are_refused(mode: str, tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 2})
    path = tmp_path / "a" / ("z.png" if mode == "I;16" else "z.tif")
    dtype = np.uint16 if mode == "I;16" else np.float32
    Image.fromarray(np.full((6, 8), 999, dtype)).save(path)
    with pytest.raises(InputError, match=rf"^{path} cannot be read \(it has more than 8 bits"):
        read_image_folder(tmp_path)


def test_deep_colour_pngs_are_refused(tmp_path: Path) -> None:
    import cv2

    write_classes(tmp_path, {"a": 1, "b": 2})
    path = tmp_path / "a" / "z.png"
    cv2.imwrite(str(path), np.full((6, 8, 3), 999, np.uint16))
    with Image.open(path) as image:
        assert image.mode == "RGB"  # Pillow hides the depth
    with pytest.raises(InputError, match="more than 8 bits"):
        read_image_folder(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    path = tmp_path / "b" / "00.png"
    whole = path.read_bytes()
    for data in (b"", b"no image", whole[: len(whole) // 2], whole[:-40] + bytes(40)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"^{path} cannot be read"):
            arrays_from_folder(tmp_path)
        with pytest.raises(
            InputError,
            match=rf"^{path} cannot be read \(.*\): replace, convert or remove the file,",
        ):
            read_image_folder(tmp_path)
    path.unlink()
    photo = tmp_path / "b" / "00.jpg"  # of which Pillow reads the header alone, unless told to
    picture(0, (200, 200)).save(photo)
    photo.write_bytes(photo.read_bytes()[:9999])
    with pytest.raises(InputError, match=rf"^{photo} cannot be read \(.*\): replace, conv"):
        read_image_folder(tmp_path)


def test_bad_layouts_are_refused(tmp_path: Path) -> None:
    def refused(name: str, message: str, *trees: tuple[str, dict[str, int]]) -> None:
        for below, counts in trees:
            write_classes(tmp_path / name / below, counts)
        with pytest.raises(InputError, match=message):
            read_image_folder(tmp_path / name)

    refused("nowhere", "nowhere is no folder")
    (tmp_path / "empty").mkdir()
    refused("empty", "empty has no folders; it needs a folder of images for each of two")
    refused("single", "has only the folder a; it needs", ("", {"a": 3}))
    refused("no_images", r"no_images/b holds no images \(BMP", ("", {"a": 3, "b": 0}))
    refused("one_image", "one_image/b holds a single image", ("", {"a": 3, "b": 1}))
    refused("no_train", "has test but no train folder", ("test", {"a": 1, "b": 1}))
    both = {"a": 1, "b": 1}
    refused(
        "mixed",
        r"mixes folders of splits \(train\) with others \(cats\)",
        ("train", both),
        ("cats", both),
    )
    refused(
        "two_val",
        "both val and validation, which mean",
        *((s, both) for s in ("train", "val", "validation")),
    )
    refused("new", "new/test has classes that train lacks: c", ("train", both), ("test", {"c": 1}))
    picture(0).save(tmp_path / "new" / "loose.png")
    refused("new", r"new/loose\.png lies outside the class folders: move it into one")
    (tmp_path / "hollow" / "test").mkdir(parents=True)
    refused("hollow", "hollow/test has no class folders", ("train", both))


# --- arrays_from_folder ----------------------------------------------------------------------


def _encode(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def _write(folder: Path, name: str, array: np.ndarray) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(_encode(array))


def test_folder_is_read_by_class_then_name(tmp_path: Path) -> None:
    images = noise(4, 5, 7, 3)
    for place, (folder, name) in enumerate([("b", "2"), ("b", "10"), ("a", "x"), ("c", "y")]):
        _write(tmp_path / folder, f"{name}.PNG", images[place])
    (tmp_path / "a" / "notes.txt").write_text("kept out")
    (tmp_path / "a" / ".hidden.png").write_text("kept out")
    (tmp_path / ".cache").mkdir()
    arrays = arrays_from_folder(tmp_path).arrays
    np.testing.assert_array_equal(arrays.images, images[[2, 1, 0, 3]])
    np.testing.assert_array_equal(arrays.labels, [0, 1, 1, 2])
    assert (arrays.num_classes, arrays.class_names) == (3, ("a", "b", "c"))


def test_folder_is_grey_only_if_every_file_is(tmp_path: Path) -> None:
    grey, colour = noise(5, 7), noise(5, 7, 3)
    _write(tmp_path / "a", "1.png", grey)
    np.testing.assert_array_equal(arrays_from_folder(tmp_path).arrays.images, grey[None, ..., None])
    _write(tmp_path / "b", "1.png", colour)
    images = arrays_from_folder(tmp_path).arrays.images
    np.testing.assert_array_equal(images, np.stack([np.stack([grey] * 3, -1), colour]))


def test_folder_of_mixed_sizes_needs_a_size(tmp_path: Path) -> None:
    _write(tmp_path / "a", "1.png", noise(5, 7, 3))
    _write(tmp_path / "a", "2.png", noise(9, 7, 3))
    with pytest.raises(InputError, match=r"2\.png has 9 x 7 pixels.*1\.png has 5 x 7.*size"):
        arrays_from_folder(tmp_path)
    arrays = arrays_from_folder(tmp_path, size=4).arrays
    assert arrays.images.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(arrays.images[1], decode_image(noise(9, 7, 3), 3, 4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"no image", "not a file of format"),
        (_encode(noise(30, 30, 3))[:1500], "cannot be read"),
        (_encode(noise(5, 5).astype(np.uint16) * 200), "more than 8 bits per channel"),
    ],
)
def test_folder_names_the_image_that_cannot_be_read(
    tmp_path: Path, content: bytes, words: str
) -> None:
    _write(tmp_path / "a", "1.png", noise(5, 5))
    (tmp_path / "a" / "2.png").write_bytes(content)
    with pytest.raises(InputError) as caught:
        arrays_from_folder(tmp_path)
    assert str(tmp_path / "a" / "2.png") in str(caught.value)
    assert words in str(caught.value)


def test_folder_that_holds_no_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        arrays_from_folder(tmp_path / "none")
    with pytest.raises(
        InputError, match=r"has no folders; it needs a folder of images for each class$"
    ):
        arrays_from_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a holds no images"):
        arrays_from_folder(tmp_path)
    _write(tmp_path / "a", "1.png", noise(5, 5))
    with pytest.raises(InputError, match="size is 0"):
        arrays_from_folder(tmp_path, size=0)
    _write(tmp_path, "loose.png", noise(5, 5))
    with pytest.raises(InputError, match=r"loose\.png lies outside"):
        arrays_from_folder(tmp_path)
    (tmp_path / "loose.png").unlink()


def test_both_readers_see_the_same_images_and_pixels(tmp_path: Path) -> None:
    """What is read into memory is what is decoded of a prepared set, whatever the files are."""
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "deep" / "er").mkdir(parents=True)
    picture(11).save(tmp_path / "a" / "deep" / "er" / "x.png")
    picture(12).save(tmp_path / "b" / "x.jpg")
    picture(13, channels=1).save(tmp_path / "b" / "gray.png")
    picture(14).quantize(8).save(tmp_path / "b" / "palette.gif")
    picture(15).convert("CMYK").save(tmp_path / "b" / "print.jpg")
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        size = (6, 8) if orientation < 5 else (8, 6)
        picture(16, size).save(tmp_path / "a" / f"turned{orientation}.jpg", exif=exif)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / ".hidden.png").write_text("not an image")
    folder = read_image_folder(tmp_path)
    assert folder.shape == (6, 8, 3)
    files = sorted(
        (file for files in folder.splits.values() for file in files), key=lambda file: file.path
    )
    assert len(files) == 19
    for size in (None, 4):
        arrays = arrays_from_folder(tmp_path, size).arrays
        prepared = [decode_image(folder.read(file), 3, size) for file in files]
        np.testing.assert_array_equal(arrays.images, prepared)
        np.testing.assert_array_equal(arrays.labels, [file.label for file in files])
        assert arrays.class_names == folder.class_names
