"""Hiding and train steps compiled from shapes alone, for benchmarks that run nothing.

No data and no parameters are allocated, so that one machine compiles the programs of many devices
and of large batches.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from instahide_jax import image_step, secret_key, text_step
from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import Mnist5k, PoolHeldOut
from instahide_jax.encoders import EncoderConfig, Model, ResNet18, make_model
from instahide_jax.encoders.base import Variables
from instahide_jax.hiding import NoHiding
from instahide_jax.optimizers import Optimizer, Sgd, make_optimizer
from instahide_jax.parallel import FAST_COMPILE, make_mesh, of_clients, replicated, sharded
from instahide_jax.placement import state_sharding
from instahide_jax.training import (
    Examples,
    Keys,
    Take,
    init_state,
    make_keys,
    make_train_step,
    put_keys,
)

Tree = Any


def mesh_of(devices: int) -> Mesh:
    """A mesh of the first devices, for one client."""
    return make_mesh(devices=jax.devices()[:devices])


def abstract(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
    """An argument that is described and not there."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def compiled(function: Any, *arguments: Any) -> Any:
    """The program of a jitted function.

    What XLA's optimisation of a CPU's machine code leaves out changes neither operations nor
    collectives nor buffers: those are settled before.
    """
    (first, *_) = jax.tree.leaves(arguments)
    on_cpu = all(device.platform == "cpu" for device in first.sharding.device_set)
    return function.lower(*arguments).compile(compiler_options=FAST_COMPILE if on_cpu else None)


def new_keys(mesh: Mesh) -> Keys:
    """The keys of one client, described for the devices of a mesh."""
    here, seed = make_mesh(devices=jax.local_devices()[:1]), jax.random.key(0)
    keys = put_keys(make_keys({0: secret_key()}, seed), seed, here, 1)
    places = (of_clients(mesh), of_clients(mesh), replicated(mesh))

    def described(part: Tree, where: NamedSharding) -> Tree:
        return jax.tree.map(lambda x: abstract(x.shape, x.dtype, where), part)

    return Keys(*(described(*pair) for pair in zip(keys, places, strict=True)))


def streamed_images(mesh: Mesh, side: int, batch: int) -> image_step.Private:
    """One batch of a stream, each device with its share of it."""
    where = sharded(mesh)
    images = abstract((batch, side, side, 3), np.uint8, where)
    return image_step.Private(images, abstract((batch,), np.int32, where), None)


def images_in_memory(
    mesh: Mesh, side: int, count: int, batch: int, partners: int
) -> image_step.Private:
    """A set in memory, whole on every device, with partners from all of it."""
    where = of_clients(mesh)
    order = abstract((1, count // batch * batch), np.int32, where)
    this_pass = image_step.Pass(order, abstract((1, count, partners), np.int32, where))
    images = abstract((1, count, side, side, 3), np.uint8, where)
    return image_step.Private(images, abstract((1, count), np.int32, where), this_pass)


def images_config(
    scheme: NoHiding, batch: int, encoder: EncoderConfig | None = None, **changes: Any
) -> ImageExperiment:
    """An experiment whose data is not read."""
    return ImageExperiment(
        data=Mnist5k(),
        public_pool=PoolHeldOut(),
        encoder=ResNet18() if encoder is None else encoder,
        scheme=scheme,
        augment=Augment(padding=4, flip=True),
        batch_size=batch,
        **changes,
    )


def hidden_images(config: ImageExperiment, mesh: Mesh, private: image_step.Private) -> Any:
    """The program that hides a batch of images and does nothing else."""
    hide = jax.jit(image_step.make_hide(config, config.scheme, mesh))
    step = abstract((), np.int32, replicated(mesh))
    return compiled(hide, new_keys(mesh), step, private, None)


def hidden_features(scheme: NoHiding, width: int, mesh: Mesh, batch: int) -> Any:
    """The train step of a model that does next to nothing but hide: forward and backward.

    Features are the inputs times a trained scale, logits their sum and its negative.
    """
    where = sharded(mesh)
    features = abstract((batch, width), np.float32, where)

    def init(_: jax.Array) -> Variables:
        return Variables({"scale": jnp.ones(width)}, {})

    def scaled(variables: Variables, inputs: jax.Array, **_: Any) -> tuple[jax.Array, Tree]:
        return inputs * variables.params["scale"][None], variables.stats

    def logits(_: Tree, hidden: jax.Array, key: Any = None) -> jax.Array:
        del key
        total = hidden.sum(axis=1)
        return jnp.stack([total, -total], axis=1)

    def take(keys: Keys, step: jax.Array, private: Examples, public: None, length: None) -> Any:
        del keys, step, public, length
        return private

    private = Examples(features, abstract((batch,), np.int32, where))
    return train_step(take, scheme, Model(init, scaled, logits), Sgd(), mesh, private)


def image_step_of(
    config: ImageExperiment, side: int, count: int, mesh: Mesh, shard: bool = False
) -> Any:
    """The train step on images in memory."""
    partners = config.scheme.num_partners
    private = images_in_memory(mesh, side, count, config.batch_size, partners)
    assert config.scheme.num_classes is not None
    model = make_model(config.encoder, (side, side, 3), config.scheme.num_classes)
    take = image_step.make_take(config, config.scheme, mesh)
    return train_step(take, config.scheme, model, config.optimizer, mesh, private, shard=shard)


def text_step_of(
    scheme: NoHiding,
    encoder: EncoderConfig,
    optimizer: Optimizer,
    length: int,
    count: int,
    mesh: Mesh,
    batch: int,
    shard: bool = False,
) -> Any:
    """The train step on so many texts in memory, at their full length."""
    where = of_clients(mesh)
    types = {"ids": np.uint16, "types": np.uint8, "mask": np.uint8}
    tokens = {name: abstract((1, count, length), dtype, where) for name, dtype in types.items()}
    labels = abstract((1, count), np.int32, where)
    order = abstract((1, count // batch, batch), np.int32, where)
    private = text_step.PrivateTexts(tokens, labels, order, None)
    assert scheme.num_classes is not None
    model = make_model(encoder, (length,), scheme.num_classes)
    take = text_step.make_take(mesh)
    return train_step(take, scheme, model, optimizer, mesh, private, length, shard)


def train_step(
    take: Take,
    scheme: NoHiding,
    model: Model,
    optimizer_config: Optimizer,
    mesh: Mesh,
    private: Any,
    length: int | None = None,
    shard: bool = False,
) -> Any:
    """The program of `make_train_step`, its state whole on every device or in shards."""
    optimizer = make_optimizer(optimizer_config, 100, 1000)
    state = jax.eval_shape(partial(init_state, model, optimizer), jax.random.key(0))
    sharding = state_sharding(state, mesh, shard)
    step = make_train_step(
        take, scheme, model, optimizer, mesh, sharding=sharding if shard else None
    )
    placed = jax.tree.map(lambda x, where: abstract(x.shape, x.dtype, where), state, sharding)
    return compiled(step, placed, new_keys(mesh), private, None, length)
