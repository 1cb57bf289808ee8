"""Tiny data, experiments and runs that several test modules share."""

import functools
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from prepared import write_rows

from instahide_jax import InstaHide, NoHiding, insecure_secret
from instahide_jax.config import ImageExperiment
from instahide_jax.data.embedded import Arrays, make_arrays
from instahide_jax.data.prepare import encode_png
from instahide_jax.data.sources import Mnist5k, PoolFile
from instahide_jax.encoders import ConvNet, EncoderConfig, make_model
from instahide_jax.image_step import Pass, Private, make_hide, make_take, plan_pass
from instahide_jax.optimizers import Schedule, Sgd, make_optimizer
from instahide_jax.parallel import make_mesh, replicated
from instahide_jax.placement import put_own
from instahide_jax.training import (
    TrainState,
    init_state,
    make_keys,
    make_train_step,
    put_keys,
)

CLASSES = 4
SHAPE = (8, 8, 3)
EXPERIMENT = ImageExperiment(
    data=Mnist5k(),  # not loaded by these runs
    encoder=ConvNet(widths=(4,), strides=(4,)),
    scheme=InstaHide.inside(k=4),
    public_pool=PoolFile("not read"),
    optimizer=Sgd(learning_rate=0.1, schedule=Schedule()),
    batch_size=8,
)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def labelled(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Arrays:
    """Random images with labels 0, 1, 2, 3, 0, ..."""
    labels = np.arange(count) % CLASSES
    return make_arrays(pixels(count, *shape, seed=seed), labels, CLASSES, "abcd")


def part_of(data: Arrays, client: int, clients: int) -> Arrays:
    """A client's part of a set."""
    rows = slice(client, None, clients)
    return make_arrays(data.images[rows], data.labels[rows], data.num_classes, data.class_names)


class Tiny:
    """A run of the train step: its parts, each compiled once."""

    def __init__(self, devices: int, data: Arrays, experiment: ImageExperiment):
        self.experiment, self.data = experiment, data
        shape = experiment.augment.output_shape(data.images.shape[1:])
        self.scheme = experiment.scheme.for_data(data.num_classes, (0.5,), (0.25,))
        self.model = make_model(experiment.encoder, shape, data.num_classes)
        self.mesh = make_mesh(experiment.clients, jax.devices()[:devices])
        self.whole = replicated(self.mesh)
        clients, seed = experiment.clients, jax.random.key(6)
        self.own_keys = make_keys({c: insecure_secret(5 + c) for c in range(clients)}, seed)
        self.keys = put_keys(self.own_keys, seed, self.mesh, clients)
        pools = [pixels(12, *shape, seed=9 + c) for c in range(clients)]
        self.pool = put_own(pools, self.mesh, clients)
        self.sets = [part_of(data, c, clients) for c in range(clients)]
        self.size = len(self.sets[0].labels)
        self.steps_per_epoch = self.size // (experiment.batch_size // clients)
        self.optimizer = make_optimizer(experiment.optimizer, self.steps_per_epoch, 50)
        self.traces = 0

    def init(self) -> TrainState:
        """The state before the first step."""
        shape = self.experiment.augment.output_shape(self.data.images.shape[1:])
        experiment = self.experiment
        init = _init(experiment.encoder, shape, self.data.num_classes, experiment.optimizer)
        return jax.device_put(init(jax.random.key(7)), self.whole)

    @functools.cache  # noqa: B019 - runs live as long as the tests
    def private(self, epoch: int = 0) -> Private:
        """The data on the devices, with the plan of a pass."""
        plan = _plan(self.size, self.scheme.num_partners + 1)
        used = self.steps_per_epoch * (self.experiment.batch_size // len(self.sets))
        made = []
        for client, own in enumerate(self.sets):
            order, partners = plan(self.own_keys[client], np.uint32(epoch))
            made.append(Private(own.images, own.labels, Pass(order[:used], partners)))
        return put_own(made, self.mesh, len(self.sets))

    @functools.cached_property
    def step(self) -> Any:
        """The train step; `traces` counts how often its model is traced."""

        def features(*args: Any, **kwargs: Any) -> Any:
            self.traces += 1
            return self.model.features(*args, **kwargs)

        model = self.model._replace(features=features)
        return self.make_step(model)

    def make_step(self, model: Any, sharding: Any = None) -> Any:
        take = make_take(self.experiment, self.scheme, self.mesh)
        clients = self.experiment.clients
        return make_train_step(
            take,
            self.scheme,
            model,
            self.optimizer,
            self.mesh,
            group=self.experiment.partner_group,
            clients=clients,
            sharding=sharding,
        )

    def train(self, steps: int) -> tuple[TrainState, list[float]]:
        """The state after some steps, and their losses."""
        state, losses = self.init(), []
        for i in range(steps):
            private = self.private(i // self.steps_per_epoch)
            state, metrics = self.step(state, self.keys, private, self.pool)
            losses.append(float(metrics["loss"]))
        return state, losses

    def hidden(self, steps: range, scheme: NoHiding | None = None) -> list[dict[str, np.ndarray]]:
        """The hidden batches of some steps, under another scheme where one is given."""
        made = []
        for step in steps:
            number = jax.device_put(np.int32(step), self.whole)
            private = self.private(step // self.steps_per_epoch)
            hide = self._hide(scheme or self.scheme)
            made.append(jax.device_get(hide(self.keys, number, private, self.pool)))
        return made

    @functools.cache  # noqa: B019
    def _hide(self, scheme: NoHiding) -> Any:
        return jax.jit(make_hide(self.experiment, scheme, self.mesh))

    def pass_hidden(
        self, epochs: range, scheme: NoHiding | None = None
    ) -> list[dict[str, np.ndarray]]:
        """All hidden batches of some passes, one dict per pass, in the order of training."""
        n = self.steps_per_epoch
        batches = self.hidden(range(epochs.start * n, epochs.stop * n), scheme)
        passes = [batches[i : i + n] for i in range(0, len(batches), n)]
        return [{k: np.concatenate([b[k] for b in p]) for k in p[0]} for p in passes]


# Compiling is what these tests take their time for; runs share what does not differ.


@functools.cache
def _init(encoder: EncoderConfig, shape: Any, num_classes: int, optimizer: Sgd) -> Any:
    model = make_model(encoder, shape, num_classes)
    return jax.jit(partial(init_state, model, make_optimizer(optimizer, 5, 50)))


@functools.cache
def _plan(num_images: int, num_private: int) -> Any:
    scheme = InstaHide(k=num_private, num_private=num_private) if num_private > 1 else NoHiding()
    return jax.jit(partial(plan_pass, num_images=num_images, scheme=scheme))


@functools.cache
def tiny(devices: int = 1, data: Arrays | None = None, **changes: Any) -> Tiny:
    """`EXPERIMENT` with changes, on the first devices, with 40 images unless data are given.

    The same arguments give the same run, so that tests share what it compiles.
    """
    data = labelled(40) if data is None else data
    return Tiny(devices, data, replace(EXPERIMENT, **changes))


def write_tfds(data_dir: Any, name: str, splits: dict[str, Arrays]) -> None:
    """Prepare a TFDS image set without TensorFlow."""
    first = next(iter(splits.values()))
    features = {
        "image": tfds.features.Image(shape=first.images.shape[1:]),
        "label": tfds.features.ClassLabel(names=list(first.class_names)),
    }

    rows = {
        split: [
            {"image": encode_png(image), "label": int(label)}
            for image, label in zip(arrays.images, arrays.labels, strict=True)
        ]
        for split, arrays in splits.items()
    }
    write_rows(data_dir, name, features, rows)
