"""A folder for tests of `instahide encrypt`, and the command itself."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import labelled

from instahide_jax import cli

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
    np.savez("levels.npz", image=images.astype(np.float32), label=labels)
    (tmp_path / "run").mkdir()
    for name in ("run.json", "config.json"):
        (tmp_path / "run" / name).write_text("")
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


def run(line):
    with jax.debug_key_reuse(False):  # the batches of a pass share a key and part by row number
        cli.run(["encrypt", *line.split()])


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return file["image"], file["label"], str(file["description"])
