"""`instahide encrypt`: from files to a file of encryptions, and what that tells."""

import errno
import json
import os
import re
import time
import zipfile

import jax
import numpy as np
import pytest
from encrypting import ARRAYS, place, read, run
from PIL import Image
from tiny import pixels, write_tfds

from instahide_jax import InputError, encrypt_command, encrypt_dataset
from instahide_jax.config import from_json
from instahide_jax.data.embedded import resized
from instahide_jax.data.prepare import prepare
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import open_split, read_example
from instahide_jax.secret import read_secret

__all__ = ["place"]  # a fixture


def test_inside_from_npz(place, capsys):
    run("data.npz --out hidden.npz --secret-file a.secret --passes 2 --batch-size 8")
    assert "hidden.npz: 42 encryptions of 21 images of 8x8x1" in capsys.readouterr().out
    image, label, note = read("hidden.npz")
    assert (image.shape, image.dtype) == ((42, 8, 8, 1), np.float32)
    np.testing.assert_allclose(label.sum(axis=1), 1, atol=1e-6)
    assert (label.max(axis=1) <= 1).all()
    assert abs((image > 0).mean() - 0.5) < 6 * 0.5 / image.size**0.5
    described = json.loads(note)
    assert described["passes"] == 2
    assert described["scheme"]["k"] == 4
    assert (place / "a.secret").stat().st_mode & 0o777 == 0o600
    words = np.asarray(jax.random.key_data(read_secret(place / "a.secret")._key))
    written = (place / "hidden.npz").read_bytes()
    assert words.astype("<u4").tobytes() not in written
    assert words.tobytes().hex().encode() not in written


@pytest.mark.parametrize("size", ["", "--size 4"])
def test_classes_without_images_are_told(size, place, capsys):
    np.savez("odd.npz", image=ARRAYS.images, label=2 * ARRAYS.labels + 1)
    run(f"odd.npz --out hidden.npz --secret-file a.secret {size}")
    assert capsys.readouterr().out.endswith("; 8 classes, but no image has the label 0, 2, 4, 6\n")
    run(f"data.npz --out all.npz --secret-file a.secret {size}")
    assert "no image" not in capsys.readouterr().out


def test_the_secret_decides(place):
    for out, secret in (("a", "a"), ("again", "a"), ("b", "b")):
        run(f"data.npz --out {out}.npz --secret-file {secret}.secret")
    for first, again in zip(read("a.npz"), read("again.npz"), strict=True):
        np.testing.assert_array_equal(first, again)
    difference = np.abs(read("a.npz")[0] - read("b.npz")[0])
    assert (difference.max(axis=(1, 2, 3)) > 0.1).all()


def test_cross_from_a_folder(place):
    run("photos --out hidden.npy --secret-file a.secret --mode cross --public-pool pool.npy --k 5")
    label = np.load("hidden.labels.npy")
    assert np.load("hidden.npy").shape == (21, 8, 8, 1)
    assert ((label.sum(axis=1) >= 0.3) & (label.sum(axis=1) < 1)).all()
    described = json.loads((place / "hidden.json").read_text())
    assert (described["scheme"]["k"], described["scheme"]["num_private"]) == (5, 2)
    assert described["class_names"] == ["class0", "class1", "class2", "class3"]


def test_a_version_of_a_tfds_set(place):
    write_tfds(place / "tfds", "tiny", {"train": ARRAYS})
    for source, out in (("tiny:1.0.0", "hidden"), ("tiny", "again")):
        run(f"{source} --data-dir tfds --out {out}.npz --secret-file a.secret")
    np.testing.assert_array_equal(read("hidden.npz")[0], read("again.npz")[0])


def test_images_of_any_source_are_scaled(place):
    """Also where they differ in size, which is refused without --size."""
    for number, (height, width) in enumerate([(8, 8), (9, 12), (20, 7), (8, 8), (8, 9)]):
        folder = place / "mixed" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(height, width, seed=number)).save(folder / f"{number}.png")
    prepare("mixed_sizes", place / "mixed", place / "tfds")
    options = "--secret-file a.secret --k 2"
    sources = {"mixed": "", "mixed_sizes": "--data-dir tfds", "data.npz": ""}
    for number, (source, more) in enumerate(sources.items()):
        if source != "data.npz":
            with pytest.raises(InputError, match=r"give a size .*to scale all "):
                run(f"{source} {more} {options} --out {number}.npz")
        run(f"{source} {more} {options} --size 6 --out {number}.npz")
        assert read(f"{number}.npz")[0].shape[1:] == (6, 6, 1)
    # The images are those that a stream of the data set has, in the order of the data set.
    arrays = load_arrays("mixed_sizes", "train", "tfds", 6)
    split = open_split("mixed_sizes", "train", "tfds")
    for index, image in enumerate(arrays.images):
        np.testing.assert_array_equal(image, read_example(split, index, 6)[0])
    scaled = resized(ARRAYS, 4)
    assert (scaled.images.shape, scaled.class_names) == ((21, 4, 4, 1), ARRAYS.class_names)
    np.testing.assert_array_equal(scaled.labels, ARRAYS.labels)
    np.testing.assert_array_equal(resized(ARRAYS, 8).images, ARRAYS.images)


# What a file tells, and what only its owner can

SETTINGS = {
    "class", "num_classes", "mean", "std", "dtype", "k", "num_private", "max_coefficient",
    "min_private_mass", "min_own_coefficient", "renormalise_labels", "mask",
}  # fmt: skip


@pytest.mark.parametrize("out", ["a.npz", "a.npy"])
def test_what_a_file_says_in_clear(place, out):
    """Settings, class names, and two digits of mean and deviation; nothing else of the images."""
    run(f"photos --out {out} --secret-file a.secret")
    note = read(out)[2] if out == "a.npz" else (place / "a.json").read_text()
    described = json.loads(note)
    assert set(described) == {"scheme", "passes", "class_names", "instahide_jax"}
    assert set(described["scheme"]) == SETTINGS
    pixels = ARRAYS.images / 255
    assert described["scheme"]["mean"] == [round(pixels.mean(), 2)]
    assert described["scheme"]["std"] == [round(pixels.std(), 2)]
    assert not re.search(r"\d\.\d{3}", note)


def test_the_rounded_statistics_are_those_that_hide(place):
    """So that whoever standardises plain images by the description does what was done here."""
    run("data.npz --out a.npz --secret-file a.secret")
    scheme = from_json(json.loads(read("a.npz")[2])["scheme"])
    data = {"image": ARRAYS.images, "label": ARRAYS.labels}
    with jax.debug_key_reuse(False):
        (batch,) = encrypt_dataset(read_secret("a.secret"), data, scheme=scheme, progress=False)
    np.testing.assert_array_equal(read("a.npz")[0], batch["image"])


def test_statistics_of_the_user(place):
    run("data.npz --out a.npz --secret-file a.secret --mean 0.123456 --std 0.5")
    scheme = json.loads(read("a.npz")[2])["scheme"]
    assert (scheme["mean"], scheme["std"]) == ([0.123456], [0.5])
    run("data.npz --out b.npz --secret-file a.secret --mean 0.123457 --std 0.5")
    assert np.abs(read("a.npz")[0] - read("b.npz")[0]).max() > 0.1  # other keys


def test_nothing_in_a_file_depends_on_time_or_place(place):
    """The same secret and images give the same bytes, whenever, wherever and by whom."""
    run("data.npz --out a.npz --secret-file a.secret --passes 3")
    other = place / "elsewhere"
    other.mkdir()
    os.utime("data.npz", (1, 1))
    time.sleep(2.1)  # a zip file counts in steps of two seconds
    before = os.umask(0o077)
    try:
        run(f"{place}/data.npz --out {other}/b.npz --secret-file a.secret --passes 3")
    finally:
        os.umask(before)
    assert (place / "a.npz").read_bytes() == (other / "b.npz").read_bytes()


def test_another_secret_changes_images_and_labels_alone(place):
    """All other bytes, such as names, dates and sizes in the archive, are the same."""
    for name in ("a", "b"):
        run(f"data.npz --out {name}.npz --secret-file {name}.secret --passes 3")
    written = [np.fromfile(f"{name}.npz", np.uint8) for name in ("a", "b")]
    assert written[0].shape == written[1].shape
    allowed = np.zeros(len(written[0]), bool)
    with zipfile.ZipFile("a.npz") as archive:
        for member in archive.infolist():
            size = {"image.npy": 63 * 64 * 4, "label.npy": 63 * 4 * 4}.get(member.filename, 0)
            header = member.header_offset + len(member.FileHeader(True)) + member.file_size - size
            allowed[header : header + size] = True  # the numbers
            allowed[member.header_offset + 14 : member.header_offset + 18] = True  # their checksum
        directory = archive.start_dir
        for member in archive.infolist():
            allowed[directory + 16 : directory + 20] = True
            directory += 46 + len(member.filename) + len(member.extra)
    differ = written[0] != written[1]
    assert differ.mean() > 0.5
    assert not (differ & ~allowed).any()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_order_file_undoes_the_order(place, umask):
    before = os.umask(umask)
    try:
        run("data.npz --out a.npz --secret-file a.secret --passes 3 --order-file order.npy")
    finally:
        os.umask(before)
    run("data.npz --out kept.npz --secret-file a.secret --passes 3 --keep-order")
    assert (place / "order.npy").stat().st_mode & 0o777 == 0o600
    order = np.load("order.npy")
    assert (np.sort(order) == np.arange(63)).all()
    assert (order != np.arange(63)).any()
    for shuffled, kept in zip(read("a.npz")[:2], read("kept.npz")[:2], strict=True):
        np.testing.assert_array_equal(shuffled, kept[order])


def test_the_secret_gives_the_order_back_later(place, capsys):
    run("data.npz --out a.npz --secret-file a.secret --passes 2 --order-file order.npy")
    before = set(place.iterdir())
    run("data.npz --secret-file a.secret --passes 2 --order-file again.npy")
    assert set(place.iterdir()) - before == {place / "again.npy"}
    np.testing.assert_array_equal(np.load("again.npy"), np.load("order.npy"))
    assert "again.npy: the image of each encryption; for the owner only" in capsys.readouterr().out


def test_an_order_that_cannot_be_written(place, monkeypatch):
    """The encryptions are whole, and the remedy works."""

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    line = "data.npz --secret-file a.secret --order-file order.npy"
    with monkeypatch.context() as patched:
        patched.setattr(encrypt_command, "private_file", full)
        with pytest.raises(InputError, match="No space left") as told:
            run(f"{line} --out a.npy")
    assert "give the same command without --out" in str(told.value)
    assert np.load("a.npy").shape == (21, 8, 8, 1)
    run(line)
    assert np.load("order.npy").shape == (21,)
