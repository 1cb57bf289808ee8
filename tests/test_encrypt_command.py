"""`instahide encrypt`: from files to a file of encryptions, and what it refuses."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from programs import short_files
from tiny import labelled, write_tfds

from instahide_jax import InputError, cli
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
    np.save("pool.npy", images[::-1])
    np.save("flat-pool.npy", images[:, :4])
    np.save("small-pool.npy", images[:3])
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.npz").write_bytes(b"precious")
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
    "nowhere --size 8": "--size is 8, but nowhere is a TFDS name, which has no use for it; leave",
    "photos --split train": "split is train, but photos has no folders of splits; leave --split",
    "data.npz --skip-unreadable": "--skip-unreadable is True, but data.npz is a .npz file",
    "photos --data-dir empty": "--data-dir is empty, but photos is a folder",
    "data.npz --split test": "--split is test, but data.npz is a .npz file",
    "data.npz --data-dir empty": "--data-dir is empty, but data.npz is a .npz file",
    "data.npz --size 8": "--size is 8, but data.npz is a .npz file",
    "data.npz --k 1": "k is 1, so nothing is mixed; it must be at least 2",
    "data.npz --k 22": "22 private images are to be mixed but there are 21; lower k",
    "data.npz --passes 0": "passes is 0; it must be at least 1",
    "data.npz --batch-size 0": "batch_size is 0; it must be at least 1",
    "data.npz --mode cross": "cross needs a public pool; pass --public-pool FILE.npy",
    "data.npz --mode cross --public-pool none.npy": "cannot read the public pool none.npy",
    "data.npz --mode cross --public-pool flat-pool.npy": "holds images of (4, 8, 1)",
    "data.npz --mode cross --public-pool small-pool.npy": "public_pool has 3 images",
    "data.npz --secret-file open.secret": "open.secret has mode 0644",
    "data.npz --secret-file taken.npz/a.secret": "cannot write a secret below taken.npz",
    "data.npz --out taken.npz": "taken.npz exists already",
    "data.npz --out hidden.txt": "must end in .npz or .npy",
    "data.npz --out nowhere/hidden.npz": "folder nowhere does not exist",
}


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
    running = subprocess.Popen([*command, "100000"], stderr=subprocess.PIPE, env=os.environ)
    assert running.stderr is not None
    seen = b""
    while b"image/s" not in seen:  # the progress bar is moving
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
