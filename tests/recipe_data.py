"""Small data and weights in the forms that the configs ask for, below one folder.

Images are real ones, digits of MNIST, coloured and enlarged to the form of each set; texts are made
up of words that say a class. Weights are those of small fresh networks.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from prepared import write_rows
from tiny import write_tfds

from instahide_jax.data.embedded import Arrays, make_arrays, mnist5k
from instahide_jax.data.glue import GLUE, GlueTask
from instahide_jax.data.tokenize import word_tokenizer
from instahide_jax.encoders import Bert, make_model
from instahide_jax.encoders.bert_folder import save_folder

HUES = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1],
                 [1, 0.5, 0], [0.5, 0, 1], [0, 1, 0.5]])  # fmt: skip
WORDS = ["fish", "stone", "river", "table", "cloud", "wheel", "garden", "paper"]
SAYING = {0: ["awful", "dull"], 1: ["lovely", "bright"], 2: ["odd", "plain"]}
VOCABULARY = [*WORDS, *(word for words in SAYING.values() for word in words)]


def digits(count: int, side: int, channels: int, num_classes: int) -> Arrays:
    """Digits; with 100 classes in ten colours, which are part of the class."""
    train, _ = mnist5k()
    rows = np.random.default_rng(0).permutation(len(train.labels))[:count]
    grey, labels = train.images[rows, ..., 0], train.labels[rows].astype(np.int32)
    colours = np.arange(count) % 10
    enlarged = np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.BILINEAR)) for each in grey]
    )
    images = enlarged[..., None]
    if channels == 3:
        images = (images * HUES[colours][:, None, None]).astype(np.uint8)
    if num_classes == 100:
        labels = labels * 10 + colours
    names = [f"class {i}" for i in range(num_classes)]
    return make_arrays(images, labels, num_classes, names)


def write_images(folder: Path) -> None:
    """The sets of images, by the names of TFDS."""
    for name, count, side, channels, classes, test in (
        ("cifar10", 272, 32, 3, 10, "test"),
        ("cifar100", 272, 32, 3, 100, "test"),
        ("fashion_mnist", 272, 28, 1, 10, "test"),
        ("imagenet2012", 64, 256, 3, 1000, "validation"),
    ):
        made = digits(count, side, channels, classes)
        few = make_arrays(made.images[:32], made.labels[:32], classes, made.class_names)
        write_tfds(folder, name, {"train": made, test: few})


def write_pools(folder: Path) -> None:
    """The public pools, as photographs of noise."""
    folder.mkdir()
    for side, channels in ((28, 1), (32, 3), (224, 3)):
        shape = (64, side, side, channels)
        pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        np.save(folder / f"photos{side}.npy", pixels)


def sentence(rng: np.random.Generator, label: int) -> str:
    """Nine words, some of which say the class."""
    words = [*rng.choice(SAYING[label], 3), *rng.choice(WORDS, 6)]
    return " ".join(rng.permutation(words))


def write_texts(folder: Path, count: int = 160) -> None:
    """The tasks of GLUE and the movie reviews, by the names of TFDS."""
    for task in GLUE.values():
        features = {name: tfds.features.Text() for name in task.texts}
        splits = {split: _glue_rows(task, count) for split in task.sizes}
        label = _label_feature(task.class_names)
        described = {**features, task.label: label}
        write_rows(folder, "glue", described, splits, config=task.name, configs=[task.name])
    rng = np.random.default_rng(2)
    labelled = [{"text": sentence(rng, i % 2), "label": i % 2} for i in range(count)]
    public = [{**row, "label": -1} for row in labelled]
    features = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["negative", "positive"]),
    }
    splits = {"train": labelled, "test": labelled[:32], "tweets": public}
    write_rows(folder, "movie_reviews", features, splits)


def _label_feature(class_names: Sequence[str]) -> Any:
    return tfds.features.ClassLabel(names=list(class_names)) if class_names else np.float32


def _glue_rows(task: GlueTask, count: int) -> list[dict[str, Any]]:
    """Rows whose label the words say; numbers from 0 to 5 for regression."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(count):
        label = i % (len(task.class_names) or 2)
        texts = {name: sentence(rng, label) for name in task.texts}
        rows.append({**texts, task.label: label if task.class_names else 5.0 * label})
    return rows


def write_weights(folder: Path, encoder: Bert) -> None:
    """A folder of Hugging Face's layout with the weights of a fresh network."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = dataclasses.replace(encoder, folder=None)
    variables = make_model(fresh, (8,), 2).init(jax.random.key(3))
    tokenizer = word_tokenizer(VOCABULARY, encoder.vocab_size)
    save_folder(folder, fresh, variables.params["encoder"], tokenizer=tokenizer)
