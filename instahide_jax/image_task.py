"""Training on images: their data, what feeds the train step, and the picture of the first batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instahide_jax.config import ImageExperiment
from instahide_jax.data.embedded import Arrays
from instahide_jax.data.sources import Dataset
from instahide_jax.data.streaming import prefetch_to_device, stream_batches
from instahide_jax.encoders.base import Model
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding
from instahide_jax.image_evaluation import evaluate_split, make_evaluate, num_images
from instahide_jax.image_step import Pass, Private, make_hide, make_take, plan_pass
from instahide_jax.instahide import InstaHide
from instahide_jax.parallel import FAST_COMPILE, replicated, sharded
from instahide_jax.pictures import save_samples
from instahide_jax.task import Feed, Task, Validation
from instahide_jax.training import Keys, TrainState

_SHOWN = 8  # images in the picture


def open_task(experiment: ImageExperiment) -> Task:
    """Load the data of an experiment on images.

    Raises:
      InputError: if data or public pool are not there, or do not fit the experiment.
    """
    dataset, pool, identities = open_data(experiment)
    scheme = experiment.scheme.for_data(dataset.train.num_classes, *dataset.statistics)
    return Task(
        scheme=scheme,
        shape=experiment.augment.output_shape(dataset.image_shape),
        num_outputs=dataset.train.num_classes,
        num_examples=num_images(dataset.train),
        unit="images",
        identities=identities,
        public=pool,
        make_take=partial(make_take, experiment, scheme),
        feeds=partial(feeds, experiment, scheme, dataset),
        make_validate=partial(_make_validate, experiment, scheme, dataset),
        save_samples=partial(_save_first_batch, experiment, scheme, pool),
    )


def open_data(experiment: ImageExperiment) -> tuple[Dataset, np.ndarray | None, list[str]]:
    """The data, the public pool, and what identifies the two."""
    dataset = experiment.data.load()
    pool, identity = None, ""
    if experiment.scheme.num_public and experiment.public_pool is not None:
        shape = experiment.augment.output_shape(dataset.image_shape)
        pool, dataset, identity = experiment.public_pool.load(dataset, shape)
        if len(pool) < experiment.scheme.num_public:
            raise InputError(
                f"the public pool has {len(pool)} images; every mixture needs "
                f"{experiment.scheme.num_public} distinct ones"
            )
    streamed = not isinstance(dataset.train, Arrays)
    if streamed and experiment.partners == "dataset" and experiment.scheme.num_partners:
        raise InputError("partners 'dataset' needs data in memory; a stream needs 'batch'")
    # Row keys of a stream are those of positions in an order that a version of grain defines.
    order = f" grain {version('grain')}" if streamed else ""
    return dataset, pool, [dataset.identity + order, identity]


def feeds(
    experiment: ImageExperiment,
    scheme: NoHiding,
    dataset: Dataset,
    keys: Keys,
    mesh: Mesh,
    start: int,
    total: int,
) -> Iterator[Feed]:
    """What the train step is given at every step from `start` on.

    Data in memory is put on the devices once, and a step only advances a counter; order and
    partners are drawn on the device at the start of every pass. Streamed batches are put there
    ahead of use.
    """
    train, size = dataset.train, experiment.batch_size
    if not isinstance(train, Arrays):
        stream = stream_batches(
            train,
            batch_size=size,
            seed=experiment.seed,
            start_step=start,
            resize=dataset.image_shape[0],
        )
        ahead = prefetch_to_device(stream, sharded(mesh))
        for step in range(start, total):
            batch = next(ahead)
            yield Feed(step, Private(batch["image"], batch["label"], None), None, size)
        return
    images, labels = jax.device_put((train.images, train.labels), replicated(mesh))
    mixes = scheme if experiment.partners == "dataset" else None
    plan = jax.jit(
        partial(plan_pass, num_images=len(labels), scheme=mixes), out_shardings=replicated(mesh)
    )
    steps_per_epoch = len(labels) // size
    this_pass: Pass | None = None
    for step in range(start, total):
        if this_pass is None or step % steps_per_epoch == 0:
            epoch = np.uint32(step // steps_per_epoch)
            this_pass = plan(keys, jax.device_put(epoch, replicated(mesh)))
        yield Feed(step, Private(images, labels, this_pass), None, size)


def _make_validate(
    experiment: ImageExperiment, scheme: NoHiding, dataset: Dataset, model: Model
) -> Callable[[TrainState, Any], Validation]:
    evaluate = make_evaluate(experiment, scheme, model)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.uint8)
    label, valid = jax.ShapeDtypeStruct((1,), np.int32), jax.ShapeDtypeStruct((1,), bool)
    jax.eval_shape(evaluate, variables.params, variables.stats, image, label, valid)

    def validate(state: TrainState, secret: Any) -> Validation:
        del secret  # images are scored plain
        scores = evaluate_split(evaluate, state, dataset.validation, experiment)
        return Validation(scores.accuracy, {"loss": scores.loss, "accuracy": scores.accuracy})

    return validate


def _save_first_batch(
    experiment: ImageExperiment,
    scheme: NoHiding,
    pool: np.ndarray | None,
    folder: Path,
    mesh: Mesh,
    keys: Keys,
    feed: Feed,
) -> None:
    """samples.png: the first images as they are, mixed, and as the encoder sees them."""
    schemes = {"original": NoHiding(scheme.num_classes, scheme.mean, scheme.std)}
    if isinstance(scheme, InstaHide):
        schemes |= {"mixture": replace(scheme, mask="none"), "encryption": scheme}

    def first(keys: Keys, private: Private, pool: Any) -> Any:
        step = jnp.zeros((), jnp.int32)
        made = {
            title: make_hide(experiment, s, mesh)(keys, step, private, pool)
            for title, s in schemes.items()
        }
        return {t: (b["image"][:_SHOWN], b["label"][:_SHOWN]) for t, b in made.items()}

    run = jax.jit(first, compiler_options=FAST_COMPILE)
    made = jax.device_get(run(keys, feed.private, pool))
    labels = []
    for row in made[list(schemes)[-1]][1]:
        heaviest = np.argsort(-row)[:4]
        labels.append("\n".join(f"class {c}: {row[c]:.2f}" for c in heaviest if row[c] > 0))
    columns = {title: np.asarray(made[title][0], np.float32) for title in schemes}
    note = "shows private images: for their owner only"
    save_samples(folder / "samples.png", columns, labels, note)
