"""Small prepared sets of images, which the tests of TFDS splits read or damage."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import write_rows

from instahide_jax.data.prepare import encode_png
from instahide_jax.data.tfds_io import open_split


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def prepare(folder, name, splits, *, shape, **options):
    """Prepare {split: [(image as a file or as pixels, label)]} of three classes."""
    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
    }
    rows = {
        split: [
            {"image": image if isinstance(image, bytes) else encode_png(image), "label": label}
            for image, label in examples
        ]
        for split, examples in splits.items()
    }
    write_rows(folder, name, features, rows, **options)


TRAIN = [(image, i * i % 3) for i, image in enumerate(pixels(300, 6, 8, 3))]
TEST = [(image, i % 3) for i, image in enumerate(pixels(4, 6, 8, 3, seed=1))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared sets that tests only read; those that change files copy them first."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(root, "tiny", {"train": TRAIN, "test": TEST}, shape=(6, 8, 3))
    digits = [(image, i % 3) for i, image in enumerate(pixels(5, 28, 28, 1))]
    prepare(root, "mnist", {"train": digits}, shape=(28, 28, 1), version="3.0.1")
    return root


@pytest.fixture
def copied(prepared, tmp_path):
    """A private copy of the prepared sets: the path of "tiny"."""
    shutil.copytree(prepared, tmp_path / "copied")
    return tmp_path / "copied" / "tiny" / "1.0.0"


def opened(folder: Path, name="tiny", split="train"):
    """A split beside the set in a folder."""
    return open_split(name, split, str(folder.parent.parent))
