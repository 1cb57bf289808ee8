"""`instahide encrypt`: from files to a file of encryptions, and what it refuses."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from programs import short_files
from tiny import labelled, pixels, write_tfds

from instahide_jax import InputError, cli, encrypt_command, encrypt_dataset
from instahide_jax.config import from_json
from instahide_jax.data.embedded import resized
from instahide_jax.data.prepare import prepare
from instahide_jax.data.tfds_arrays import load_arrays
from instahide_jax.data.tfds_io import open_split, read_example
from instahide_jax.secret import read_secret

__all__ = ["short_files"]  # a fixture
ARRAYS = labelled(21, (8, 8, 1))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a data set, a pool, and everything that could be wrong with them."""
    monkeypatch.chdir(tmp_path)
    images, labels = ARRAYS.images, ARRAYS.labels
    damaged = images / np.float32(255)
    damaged[5, 1, 2, 0] = np.nan
    np.savez("data.npz", image=images, label=labels)
    np.savez("nan.npz", image=damaged, label=labels)
    np.savez("negative.npz", image=images, label=labels - 1)
    np.savez("fractions.npz", image=images, label=labels / 2)
    np.savez("unlabelled.npz", image=images)
    np.savez("floats.npz", image=images / np.float32(255), label=labels)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "hidden.txt").write_text("text")
    np.save("pool.npy", images[::-1])
    np.save("flat-pool.npy", images[:, :4])
    np.save("small-pool.npy", images[:3])
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.npz").write_bytes(b"precious")
    (tmp_path / "taken.npy").write_bytes(b"precious")
    open_secret = tmp_path / "open.secret"
    open_secret.write_bytes(bytes(32))
    open_secret.chmod(0o644)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "photos" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{number:02}.png")
    return tmp_path


def _run(line):
    with jax.debug_key_reuse(False):  # the batches of a pass share a key and part by row number
        cli.run(["encrypt", *line.split()])


def _read(path):
    with np.load(path, allow_pickle=False) as file:
        return file["image"], file["label"], str(file["description"])


def test_inside_from_npz(place, capsys):
    _run("data.npz --out hidden.npz --secret-file a.secret --passes 2 --batch-size 8")
    assert "hidden.npz: 42 encryptions of 21 images of 8x8x1" in capsys.readouterr().out
    image, label, note = _read("hidden.npz")
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


def test_the_secret_decides(place):
    for out, secret in (("a", "a"), ("again", "a"), ("b", "b")):
        _run(f"data.npz --out {out}.npz --secret-file {secret}.secret")
    for first, again in zip(_read("a.npz"), _read("again.npz"), strict=True):
        np.testing.assert_array_equal(first, again)
    difference = np.abs(_read("a.npz")[0] - _read("b.npz")[0])
    assert (difference.max(axis=(1, 2, 3)) > 0.1).all()


def test_cross_from_a_folder(place):
    _run("photos --out hidden.npy --secret-file a.secret --mode cross --public-pool pool.npy --k 5")
    label = np.load("hidden.labels.npy")
    assert np.load("hidden.npy").shape == (21, 8, 8, 1)
    assert ((label.sum(axis=1) >= 0.3) & (label.sum(axis=1) < 1)).all()
    described = json.loads((place / "hidden.json").read_text())
    assert (described["scheme"]["k"], described["scheme"]["num_private"]) == (5, 2)
    assert described["class_names"] == ["class0", "class1", "class2", "class3"]


def test_a_version_of_a_tfds_set(place):
    write_tfds(place / "tfds", "tiny", {"train": ARRAYS})
    for source, out in (("tiny:1.0.0", "hidden"), ("tiny", "again")):
        _run(f"{source} --data-dir tfds --out {out}.npz --secret-file a.secret")
    np.testing.assert_array_equal(_read("hidden.npz")[0], _read("again.npz")[0])


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
                _run(f"{source} {more} {options} --out {number}.npz")
        _run(f"{source} {more} {options} --size 6 --out {number}.npz")
        assert _read(f"{number}.npz")[0].shape[1:] == (6, 6, 1)
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
    _run(f"photos --out {out} --secret-file a.secret")
    note = _read(out)[2] if out == "a.npz" else (place / "a.json").read_text()
    described = json.loads(note)
    assert set(described) == {"scheme", "passes", "class_names", "instahide_jax"}
    assert set(described["scheme"]) == SETTINGS
    pixels = ARRAYS.images / 255
    assert described["scheme"]["mean"] == [round(pixels.mean(), 2)]
    assert described["scheme"]["std"] == [round(pixels.std(), 2)]
    assert not re.search(r"\d\.\d{3}", note)


def test_the_rounded_statistics_are_those_that_hide(place):
    """So that whoever standardises plain images by the description does what was done here."""
    _run("data.npz --out a.npz --secret-file a.secret")
    scheme = from_json(json.loads(_read("a.npz")[2])["scheme"])
    data = {"image": ARRAYS.images, "label": ARRAYS.labels}
    with jax.debug_key_reuse(False):
        (batch,) = encrypt_dataset(read_secret("a.secret"), data, scheme=scheme, progress=False)
    np.testing.assert_array_equal(_read("a.npz")[0], batch["image"])


def test_statistics_of_the_user(place):
    _run("data.npz --out a.npz --secret-file a.secret --mean 0.123456 --std 0.5")
    scheme = json.loads(_read("a.npz")[2])["scheme"]
    assert (scheme["mean"], scheme["std"]) == ([0.123456], [0.5])
    _run("data.npz --out b.npz --secret-file a.secret --mean 0.123457 --std 0.5")
    assert np.abs(_read("a.npz")[0] - _read("b.npz")[0]).max() > 0.1  # other keys


def test_nothing_in_a_file_depends_on_time_or_place(place):
    """The same secret and images give the same bytes, whenever, wherever and by whom."""
    _run("data.npz --out a.npz --secret-file a.secret --passes 3")
    other = place / "elsewhere"
    other.mkdir()
    os.utime("data.npz", (1, 1))
    time.sleep(2.1)  # a zip file counts in steps of two seconds
    before = os.umask(0o077)
    try:
        _run(f"{place}/data.npz --out {other}/b.npz --secret-file a.secret --passes 3")
    finally:
        os.umask(before)
    assert (place / "a.npz").read_bytes() == (other / "b.npz").read_bytes()


def test_another_secret_changes_images_and_labels_alone(place):
    """All other bytes, such as names, dates and sizes in the archive, are the same."""
    for name in ("a", "b"):
        _run(f"data.npz --out {name}.npz --secret-file {name}.secret --passes 3")
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
        _run("data.npz --out a.npz --secret-file a.secret --passes 3 --order-file order.npy")
    finally:
        os.umask(before)
    _run("data.npz --out kept.npz --secret-file a.secret --passes 3 --keep-order")
    assert (place / "order.npy").stat().st_mode & 0o777 == 0o600
    order = np.load("order.npy")
    assert (np.sort(order) == np.arange(63)).all()
    assert (order != np.arange(63)).any()
    for shuffled, kept in zip(_read("a.npz")[:2], _read("kept.npz")[:2], strict=True):
        np.testing.assert_array_equal(shuffled, kept[order])


def test_the_secret_gives_the_order_back_later(place, capsys):
    _run("data.npz --out a.npz --secret-file a.secret --passes 2 --order-file order.npy")
    before = set(place.iterdir())
    _run("data.npz --secret-file a.secret --passes 2 --order-file again.npy")
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
            _run(f"{line} --out a.npy")
    assert "give the same command without --out" in str(told.value)
    assert np.load("a.npy").shape == (21, 8, 8, 1)
    _run(line)
    assert np.load("order.npy").shape == (21,)


WRONG = {
    "nan.npz": "image 5 holds NaN or infinite pixels: correct or remove it",
    "negative.npz": "negative.npz: label 0 is -1: must be at least 0",
    "fractions.npz": "labels have dtype float64: convert to integers",
    "unlabelled.npz": "unlabelled.npz holds image: expected either 'label' or 'labels'",
    "empty": "empty",
    "nowhere.npz": "nowhere.npz does not exist",
    "nowhere.d": "nowhere.d does not exist; give a TFDS name, a .npz file or a folder",
    "./nowhere": "nowhere does not exist; give a TFDS name",
    "a/b/c": "a/b/c does not exist; give a TFDS name",
    "cifar10 --data-dir empty": "instahide prepare cifar10",
    "cifar10:3.0.2 --data-dir empty": "instahide prepare cifar10",
    "nowhere --size 8": "unknown data set 'nowhere', neither prepared in",
    "hidden.txt": "hidden.txt is neither a folder nor a .npz file; give a TFDS name, a .npz file",
    "pool.npy": "pool.npy is neither a folder nor a .npz file; give a TFDS name, a .npz file",
    "folder.npz": "folder.npz is no file: give the path of a .npz file",
    "data.npz --size 0": "size is 0: must be at least 1",
    "floats.npz --size 8": "size is 8, but the images are float32, and only uint8 is scaled: conv",
    "photos --split train": "split is train, but photos has no folders of splits; leave --split",
    "data.npz --skip-unreadable": "--skip-unreadable is given, but data.npz is a .npz file",
    "photos --data-dir empty": "--data-dir is empty, but photos is a folder",
    "data.npz --split test": "--split is test, but data.npz is a .npz file",
    "data.npz --data-dir empty": "--data-dir is empty, but data.npz is a .npz file",
    "data.npz --k 1": "k is 1, so nothing is mixed; it must be at least 2",
    "data.npz --k 22": "22 private images are to be mixed but there are 21; give more, or lower k",
    "data.npz --passes 0": "passes is 0; it must be an integer of at least 1",
    "data.npz --batch-size 0": "batch_size is 0; it must be an integer of at least 1",
    "data.npz --public-pool pool.npy": "with k=4 mixes private images only; leave it out, or choos",
    "data.npz --mode cross --k 2 --public-pool pool.npy": "only; leave it out, or raise --k",
    "data.npz --mode cross": "cross needs a public pool; pass --public-pool FILE.npy",
    "data.npz --mode cross --public-pool none.npy": "cannot read the public pool none.npy",
    "data.npz --mode cross --public-pool flat-pool.npy": "holds images of (4, 8, 1)",
    "data.npz --mode cross --public-pool small-pool.npy": "public_pool has 3 images",
    "data.npz --mean 0.5": "mean is (0.5,) and std is None; give both or neither",
    "data.npz --std 0.5": "mean is None and std is (0.5,); give both or neither",
    "data.npz --mean 0.5 0.5 --std 0.2 0.2": "mean has 2 entries and the images 1 channels; give",
    "data.npz --mean 0.5 0.5 --std 0.2": "give as many of each",
    "data.npz --mean 130 --std 0.3": "--mean is 130.0; give it of pixels in [0, 1], a 255th",
    "data.npz --mean 0.5 --std 70": "--std is 70.0; give it of pixels in [0, 1]",
    "data.npz --mean 0.5 --std 0": "std is (0.0,); every entry must be at least 1e-30",
    "data.npz --mean nan --std 1": "mean is (nan,); give a tuple of numbers up to 1e+30",
    "data.npz --mean x --std 1": "--mean",
    "data.npz --order-file order.txt": "order file order.txt must end in .npy",
    "data.npz --order-file taken.npy": "order file taken.npy exists already; remove it or name",
    "data.npz --order-file no/order.npy": "folder no does not exist; create it or name another",
    "data.npz --order-file hidden.npy --out hidden.npy": "--order-file hidden.npy is a file of the",
    "data.npz --order-file a.npy --secret-file a.npy": "--order-file a.npy is the secret file",
    "data.npz --order-file a.npy --keep-order": "--order-file is a.npy, but --keep-order leaves",
    "data.npz --secret-file open.secret": "open.secret has mode 0644",
    "data.npz --secret-file taken.npz/a.secret": "cannot write a secret below taken.npz",
    "data.npz --out taken.npz": "taken.npz exists already",
    "data.npz --out hidden.txt": "must end in .npz or .npy",
    "data.npz --out nowhere/hidden.npz": "folder nowhere does not exist",
}


FOREIGN = {
    "big-endian": (">f8", ">u2", None),
    "long double": (np.longdouble, np.uint64, None),
    "half": (np.float16, np.int8, None),
    "times": ("u1", "m8[s]", "the labels of data.npz have dtype timedelta64[s]: convert to"),
    "texts": ("u1", "U3", "the labels of data.npz have dtype <U3: convert to"),
    "complex": (complex, int, "the images of data.npz have dtype complex128: convert to"),
    "objects": (object, int, "Object arrays cannot be loaded"),
    "bool": ("u1", bool, "labels have dtype bool: convert to integers"),
    "int64": (int, int, "images have dtype int64: convert to uint8 or float32"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_dtypes(place, name):
    image, label, message = FOREIGN[name]
    np.savez("data.npz", image=ARRAYS.images.astype(image), label=ARRAYS.labels.astype(label))
    if message is None:
        _run("data.npz --out hidden.npz --secret-file a.secret")
        assert _read("hidden.npz")[0].dtype == np.float32
        return
    with pytest.raises(InputError) as caught:
        _run("data.npz --out hidden.npz --secret-file a.secret")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "expected"), WRONG.items())
def test_refused_in_one_line_with_nothing_written(place, line, expected):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for option, value in (("--out", "hidden.npz"), ("--secret-file", "a.secret")):
        line += "" if option in line else f" {option} {value}"
    with pytest.raises(InputError) as caught:
        _run(line)
    (message,) = str(caught.value).splitlines()
    assert expected in message
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_killed_and_started_again(place):
    """After kill -9 there is no output; the same command then makes the whole of it."""
    command = [sys.executable, "-m", "instahide_jax.cli", "encrypt", "data.npz", "--out", "out.npz"]
    command += ["--secret-file", "a.secret", "--batch-size", "1", "--passes"]
    running = subprocess.Popen([*command, "3000"], stderr=subprocess.PIPE, env=os.environ)
    assert running.stderr is not None
    seen = b""
    while b"images/s" not in seen:  # the progress bar is moving
        byte = running.stderr.read(1)
        assert byte, seen  # it ended
        seen += byte
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    running.stderr.close()
    assert not (place / "out.npz").exists()
    subprocess.run([*command, "1"], check=True, capture_output=True)
    assert _read("out.npz")[0].shape == (21, 8, 8, 1)
    assert not list(place.glob(".out*"))  # nor what the kill had left


def test_nothing_to_write(place):
    with pytest.raises(InputError, match="nothing is to be written; give --out FILE, or --order-f"):
        _run("data.npz --secret-file a.secret")
    with pytest.raises(InputError, match=r"a\.secret does not exist, so nothing is hidden under"):
        _run("data.npz --secret-file a.secret --order-file order.npy")
    assert [*place.glob("*.secret"), *place.glob("order*")] == [place / "open.secret"]


@pytest.mark.parametrize("secret", ["out.npy", "out.json", "./out.labels.npy"])
def test_the_output_does_not_overwrite_the_secret(place, secret):
    with pytest.raises(InputError, match="is a file of the output; name another one"):
        _run(f"data.npz --out out.npy --secret-file {secret}")
    assert not list(place.glob("out.*"))


def test_a_write_that_fails_leaves_no_new_secret(place, short_files):
    with pytest.raises(InputError, match=r"cannot write .*: File too large"):
        _run("data.npz --out out.npz --secret-file new.secret --passes 100")
    assert not (place / "new.secret").exists()
    assert not list(place.glob(".out*"))
