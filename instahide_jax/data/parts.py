"""One client's part of a data set that several share: every K-th example, from its number on."""

from dataclasses import replace

import numpy as np

from instahide_jax.data.embedded import Arrays, make_arrays
from instahide_jax.data.sources import Dataset
from instahide_jax.data.text_sources import TextDataset, TokenSet, take_texts
from instahide_jax.data.tfds_io import Split
from instahide_jax.errors import InputError


def image_part(
    dataset: Dataset, pool: np.ndarray | None, client: int, clients: int
) -> tuple[Dataset, np.ndarray | None]:
    """Training and validation images and public pool of one client; the test set stays whole.

    The parts of all clients are disjoint, and as large as one another but for one example.

    Args:
      dataset: of all.
      pool: public images [M, H, W, C] of all.
      client: number of the client, below K.
      clients: K; 1 gives everything.

    Raises:
      InputError: if there is nothing left for a client.
    """
    if clients == 1:
        return dataset, pool
    train, validation = (
        _images(split, name, client, clients)
        for name, split in (("training", dataset.train), ("validation", dataset.validation))
    )
    part = dataset._replace(train=train, validation=validation, identity=train.identity)
    return part, None if pool is None else pool[client::clients]


def text_part(dataset: TextDataset, client: int, clients: int) -> TextDataset:
    """Training, validation and public texts of one client; arguments and errors as `image_part`."""
    if clients == 1:
        return dataset
    public = dataset.public
    return dataset._replace(
        train=_tokens(dataset.train, "training", client, clients),
        validation=_tokens(dataset.validation, "validation", client, clients),
        public=None if public is None else _tokens(public, "public", client, clients),
    )


def _check_enough(what: str, size: int, clients: int) -> None:
    if size < clients:
        raise InputError(
            f"there are {size} {what} examples for {clients} clients; lower clients, or give more"
        )


def _images(split: Arrays | Split, what: str, client: int, clients: int) -> Arrays | Split:
    if isinstance(split, Arrays):
        _check_enough(what, len(split.labels), clients)
        images, labels = split.images[client::clients], split.labels[client::clients]
        return make_arrays(images, labels, split.num_classes, split.class_names)
    _check_enough(what, split.num_examples, clients)
    return replace(
        split,
        num_examples=len(range(client, split.num_examples, clients)),
        identity=f"part {client} of {clients} of {split.identity}",
        first=split.first + client * split.stride,
        stride=split.stride * clients,
    )


def _tokens(texts: TokenSet, what: str, client: int, clients: int) -> TokenSet:
    _check_enough(what, len(texts.labels), clients)
    rows = np.arange(client, len(texts.labels), clients)
    tokens = {name: array[rows] for name, array in texts.tokens.items()}
    identity = f"{texts.identity} part {client} of {clients}"
    return TokenSet(tokens, texts.labels[rows], take_texts(texts.texts, rows), identity)
