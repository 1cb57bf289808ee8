"""The images of the clients of this process, and what all clients agree on about theirs."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import grain
import numpy as np

from instahide_jax.config import ImageExperiment
from instahide_jax.data.embedded import Arrays
from instahide_jax.data.parts import image_part
from instahide_jax.data.sources import Dataset, Statistics
from instahide_jax.data.tfds_io import Split
from instahide_jax.distributed import merged
from instahide_jax.errors import InputError


class ClientImages(NamedTuple):
    """The data of one client.

    Attributes:
      dataset: its own; the test set may be everybody's.
      pool: its public images, uint8 [M, H, W, C], or None.
      identities: strings that change with either.
    """

    dataset: Dataset
    pool: np.ndarray | None
    identities: list[str]


class Agreement(NamedTuple):
    """What holds for all clients.

    Attributes:
      statistics: of the training images of all.
      counts: training images of each client.
      largest: training images of the client with most of them.
      pool_size: public images of the client with fewest; 0 without a pool.
    """

    statistics: Statistics
    counts: list[int]
    largest: int
    pool_size: int


def num_images(split: Arrays | Split) -> int:
    """Images of a split in memory or of one to stream."""
    return len(split.labels) if isinstance(split, Arrays) else split.num_examples


def open_images(experiment: ImageExperiment, held: Iterable[int]) -> dict[int, ClientImages]:
    """The data of some clients, by their numbers.

    Raises:
      InputError: if data or public pool are not there, or do not fit the experiment.
    """
    dataset = experiment.data.load()
    pool, identity = None, ""
    if experiment.scheme.num_public and experiment.public_pool is not None:
        shape = experiment.augment.output_shape(dataset.image_shape)
        pool, dataset, identity = experiment.public_pool.load(dataset, shape)
    streamed = not isinstance(dataset.train, Arrays)
    if streamed and experiment.partners == "dataset" and experiment.scheme.num_partners:
        raise InputError(
            "partners 'dataset' needs data in memory; set partners to 'batch' for a stream"
        )
    # Row keys of a stream are those of positions in an order that a version of grain defines.
    order = f" grain {grain.__version__}" if streamed else ""
    shared_by = experiment.clients if experiment.client_data == "parts" else 1
    made = {}
    for client in held:
        own, own_pool = image_part(dataset, pool, client, shared_by)
        if own_pool is not None and len(own_pool) < experiment.scheme.num_public:
            raise InputError(
                f"the public pool has {len(own_pool)} images; every mixture needs "
                f"{experiment.scheme.num_public} distinct ones: give more, or lower scheme.k"
            )
        made[client] = ClientImages(own, own_pool, [own.identity + order, identity])
    return made


def agree(data: dict[int, ClientImages]) -> Agreement:
    """Tell the other processes about counts and statistics of the clients here, and hear theirs.

    Raises:
      InputError: if the clients' images or classes are not alike.
    """
    facts = merged(
        {
            client: {
                "images": num_images(own.dataset.train),
                "shape": list(own.dataset.image_shape),
                "classes": list(own.dataset.train.class_names),
                "mean": list(own.dataset.statistics.mean),
                "std": list(own.dataset.statistics.std),
                "pool": 0 if own.pool is None else len(own.pool),
                "in memory": isinstance(own.dataset.train, Arrays),
            }
            for client, own in data.items()
        }
    )
    first = facts[0]
    for client, fact in facts.items():
        for name in ("shape", "classes", "in memory"):
            if fact[name] != first[name]:
                raise InputError(
                    f"client {client} has {name} {fact[name]}, client 0 {first[name]}; all clients "
                    "need images of one shape with the same classes"
                )
    counts = [fact["images"] for fact in facts.values()]
    return Agreement(
        _pooled(list(facts.values())),
        counts,
        max(counts),
        min(fact["pool"] for fact in facts.values()),
    )


def _pooled(facts: list[dict[str, Any]]) -> Statistics:
    """Mean and deviation of the images of all clients; those of one where all are alike."""
    means, stds = ([tuple(fact[name]) for fact in facts] for name in ("mean", "std"))
    if len({*zip(means, stds, strict=True)}) == 1:
        return Statistics(means[0], stds[0])
    weights = np.array([fact["images"] for fact in facts], np.float64)
    weights /= weights.sum()
    mean = weights @ np.array(means)
    variance = weights @ (np.array(stds) ** 2 + (np.array(means) - mean) ** 2)
    return Statistics(tuple(mean.tolist()), tuple(math.sqrt(v) for v in variance))
