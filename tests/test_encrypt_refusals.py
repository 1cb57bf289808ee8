"""`instahide encrypt`: what it refuses, and what it leaves behind when it fails."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from encrypting import ARRAYS, place, read, run
from programs import short_files

from instahide_jax import InputError, encrypt_command

__all__ = ["place", "short_files"]  # fixtures
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
    "photos --data-dir empty": "but photos is a folder, which has no use for it; leave --data-"
    "dir out, or give photos:VERSION as SOURCE for the prepared data set",
    "./photos --data-dir empty": "but ./photos is a folder, which has no use for it; leave --data-",
    "data.npz --split test": "--split is test, but data.npz is a .npz file",
    "data.npz --data-dir empty": "--data-dir is empty, but data.npz is a .npz file",
    "data.npz --k 1": "k is 1, so nothing is mixed; it must be at least 2",
    "data.npz --k 22": "22 private images are to be mixed but there are 21; give more, or lower k",
    "data.npz --passes 0": "passes is 0; it must be an integer of at least 1",
    "data.npz --passes 100000000000": "of at least 1 and below 4294967296",
    "data.npz --passes 4000000000": "passes is 4000000000: order and partners of all encryptions t",
    "data.npz --size 10000000": "--size is 10000000: images of 10000000 x 10000000 pixels take",
    "photos --size 10000000": "of memory; lower --size to at most",
    "data.npz --batch-size 0": "batch_size is 0; it must be an integer of at least 1",
    "data.npz --public-pool pool.npy": "with k=4 mixes private images only; leave it out, or choos",
    "data.npz --mode cross --k 2 --public-pool pool.npy": "only; leave it out, or raise --k",
    "data.npz --mode cross": "cross needs a public pool; pass --public-pool FILE.npy",
    "data.npz --mode cross --public-pool none.npy": "the public pool none.npy does not exist",
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
    "levels.npz --mean 0.5 --std 0.25": "--mean is 0.5 and --std 0.25, but the floats of channel 0",
    "data.npz --order-file order.txt": "order file order.txt must end in .npy",
    "data.npz --order-file taken.npy": "order file taken.npy exists already; remove it or name",
    "data.npz --order-file no/order.npy": "folder no does not exist; create it or name another",
    "data.npz --order-file hidden.npy --out hidden.npy": "--order-file hidden.npy is a file of the",
    "data.npz --order-file a.npy --secret-file a.npy": "--order-file a.npy is the secret file",
    "data.npz --order-file a.npy --keep-order": "--order-file is a.npy, but --keep-order leaves",
    "data.npz --secret-file open.secret": "open.secret has mode 0644",
    "data.npz --order-file run/a.npy": "--order-file is run/a.npy, inside the run folder ",
    "data.npz --secret-file run/b/a": "--secret-file is run/b/a, inside the run folder ",
    "data.npz --secret-file taken.npz/a.secret": "taken.npz is no folder; name a file elsewhere",
    "nowhere.npz --secret-file /": "--secret-file is /, a folder; name a file",
    "nowhere.npz --secret-file .": "--secret-file is ., a folder; name a file",
    "nowhere.npz --secret-file empty": "--secret-file is empty, a folder; name a file",
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
        run("data.npz --out hidden.npz --secret-file a.secret")
        assert read("hidden.npz")[0].dtype == np.float32
        return
    with pytest.raises(InputError) as caught:
        run("data.npz --out hidden.npz --secret-file a.secret")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "expected"), WRONG.items())
def test_refused_in_one_line_with_nothing_written(place, line, expected):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for option, value in (("--out", "hidden.npz"), ("--secret-file", "a.secret")):
        line += "" if option in line else f" {option} {value}"
    with pytest.raises(InputError) as caught:
        run(line)
    (message,) = str(caught.value).splitlines()
    assert expected in message
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_floats_of_other_ranges_are_taken(place):
    """Of [0, 1], of levels, and standardised before."""
    pixels = np.load("floats.npz")["image"]
    np.savez("done.npz", image=(pixels - pixels.mean()) / pixels.std(), label=ARRAYS.labels)
    for source, more in (
        ("floats", "--mean 0.5 --std 0.25"),
        ("levels", ""),
        ("levels", "--mean 127.5 --std 64"),
        ("done", "--mean 0 --std 1"),
    ):
        run(f"{source}.npz --secret-file a.secret --out {source}{len(more)}.npz {more}")


def test_output_and_order_are_whole_before_anything_is_said(place, monkeypatch):
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left"):
        run("data.npz --out said.npz --secret-file said.secret --order-file said.npy")
    assert len(np.load("said.npy")) == len(read("said.npz")[0])


def test_a_platform_that_is_not_there(place, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu': no (set JAX_PLATFORMS='' to ...)")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(InputError, match=r"^JAX_PLATFORMS is 'cpu', .*'tpu': no\); unset it, or"):
        run("data.npz --secret-file a.secret --out a.npz")
    assert not list(place.glob("a.*"))


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
    assert read("out.npz")[0].shape == (21, 8, 8, 1)
    assert not list(place.glob(".out*"))  # nor what the kill had left


def test_nothing_to_write(place):
    with pytest.raises(InputError, match="nothing is to be written; give --out FILE, or --order-f"):
        run("data.npz --secret-file a.secret")
    with pytest.raises(InputError, match=r"a\.secret does not exist, so nothing is hidden under"):
        run("data.npz --secret-file a.secret --order-file order.npy")
    assert [*place.glob("*.secret"), *place.glob("order*")] == [place / "open.secret"]


@pytest.mark.parametrize("secret", ["out.npy", "out.json", "./out.labels.npy"])
def test_the_output_does_not_overwrite_the_secret(place, secret):
    with pytest.raises(InputError, match="is a file of the output; name another one"):
        run(f"data.npz --out out.npy --secret-file {secret}")
    assert not list(place.glob("out.*"))


def test_nothing_of_the_owner_lies_where_the_output_is_put_together(place):
    folder = place / ".out.npz.partial"
    folder.mkdir()  # as a kill leaves it
    for private in (
        "--secret-file .out.npz.partial/mine",
        "--secret-file a.secret --order-file .out.npz.partial/order.npy",
    ):
        with pytest.raises(InputError, match="is a file of the output; name another one"):
            run(f"data.npz --out out.npz {private}")
    source = (place / "data.npz").rename(folder / "data.npz")
    before = source.read_bytes()
    with pytest.raises(InputError, match=r"data\.npz lies where out\.npz is put together; move it"):
        run(f"{source} --out out.npz --secret-file a.secret")
    assert source.read_bytes() == before
    assert list(folder.iterdir()) == [source]
    assert [*place.glob("out*"), *place.glob("a.secret")] == []


def test_a_write_that_fails_leaves_no_new_secret(place, short_files):
    with pytest.raises(InputError, match=r"cannot write .*: File too large"):
        run("data.npz --out out.npz --secret-file new.secret --passes 100")
    assert not (place / "new.secret").exists()
    assert not list(place.glob(".out*"))
    with pytest.raises(InputError, match="File name too long"):
        run(f"data.npz --out {'a' * 245}.npz --secret-file new.secret")
    assert not (place / "new.secret").exists()
    (place / ".out.npz.partial").write_text("")
    with pytest.raises(InputError, match="is in the way"):
        run("data.npz --out out.npz --secret-file new.secret")
    assert not (place / "new.secret").exists()


@pytest.mark.parametrize("at", ["in the middle", "at the end"])
def test_an_interrupt_leaves_no_secret_but_that_of_a_whole_file(place, monkeypatch, at):
    write = encrypt_command.write_encrypted

    def interrupted(*given):
        assert (place / "new.secret").exists()
        if at == "at the end":
            write(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(encrypt_command, "write_encrypted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("data.npz --out out.npz --secret-file new.secret")
    for name in ("new.secret", "out.npz"):
        assert (place / name).exists() == (at == "at the end")
