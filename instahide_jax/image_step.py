"""The images of a training step: taken from memory or a stream, augmented and hidden."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import augment
from instahide_jax.hiding import Batch, NoHiding
from instahide_jax.parallel import device_map
from instahide_jax.secret import SecretKey
from instahide_jax.training import Examples, Keys, Take


class Pass(NamedTuple):
    """One pass over a training set in memory.

    Attributes:
      order: int32 [N], image numbers in the order of training.
      partners: int32 [N, num_partners], private partners of every image; None where they come from
        the batch.
    """

    order: jax.Array
    partners: jax.Array | None


class Private(NamedTuple):
    """Private data on the devices.

    Attributes:
      images: uint8 [N, H, W, C], the whole set in memory; or one batch [B, H, W, C] of a stream.
      labels: int32 [N] or [B].
      this_pass: order and partners; None for a stream.
    """

    images: jax.Array
    labels: jax.Array
    this_pass: Pass | None


def plan_pass(keys: Keys, epoch: int | jax.Array, num_images: int, scheme: NoHiding | None) -> Pass:
    """Order and partners of one pass, a pure function of keys and epoch.

    Args:
      keys: of the run.
      epoch: number of the pass.
      num_images: N.
      scheme: which needs partners from the whole set; None where they come from the batch.
    """
    order_key = jax.random.fold_in(jax.random.fold_in(keys.seed, 0), epoch)
    order = jax.random.permutation(order_key, num_images).astype(jnp.int32)
    partners = None
    if scheme is not None:
        partners = scheme.pass_partners(_pass_secret(keys, epoch), num_images)
    return Pass(order, partners)


def _pass_secret(keys: Keys, epoch: int | jax.Array) -> SecretKey:
    return keys.secret.stream("pass").fold_in(epoch)


def _step_secret(keys: Keys, step: jax.Array) -> SecretKey:
    return keys.secret.stream("step").fold_in(step)


def _hide_from_dataset(
    scheme: NoHiding, config: ImageExperiment, shared: dict[str, Any], split: dict[str, jax.Array]
) -> Batch:
    """Hide images whose partners come from the whole set in memory; runs on one device's rows.

    The key is that of the pass and a row's number is its image's, so every image is hidden under
    its own key once per pass.
    """
    private: Private = shared["private"]
    rows, view_key = split["rows"], shared["view_key"]

    def views(numbers: jax.Array) -> Batch:
        images = augment(config.augment, view_key, private.images[numbers], numbers)
        return {"image": images, "label": private.labels[numbers]}

    pool = partners = None
    if scheme.num_partners:
        assert private.this_pass is not None
        assert private.this_pass.partners is not None
        numbers = private.this_pass.partners[rows]
        pool = views(numbers.reshape(-1))
        partners = jnp.arange(numbers.size, dtype=jnp.int32).reshape(numbers.shape)
    return scheme.hide_inputs(
        shared["secret"],
        views(rows),
        shared["public_pool"],
        rows=rows,
        private_pool=pool,
        partners=partners,
    )


def _hide_from_batch(
    scheme: NoHiding, config: ImageExperiment, shared: dict[str, Any], split: dict[str, jax.Array]
) -> Batch:
    """Hide a batch whose partners come from the global batch; runs on one device's part.

    The key is that of the step and a row's number its position in the global batch.
    """
    own = {
        "image": augment(config.augment, shared["view_key"], split["image"], split["rows"]),
        "label": split["label"],
    }
    everyone = jax.tree.map(lambda x: lax.all_gather(x, "data", tiled=True), own)
    return scheme.hide_inputs(
        shared["secret"],
        own,
        shared["public_pool"],
        rows=split["position"],
        private_pool=everyone if scheme.num_partners else None,
    )


def make_hide(
    config: ImageExperiment, scheme: NoHiding, mesh: Mesh
) -> Callable[[Keys, jax.Array, Private, jax.Array | None], Batch]:
    """hide(keys, step, private, public_pool): the hidden batch of a step, sharded over "data".

    Args:
      config: the experiment.
      scheme: its scheme, with the data set's statistics.
      mesh: of `parallel.make_mesh`.
    """
    from_dataset = device_map(partial(_hide_from_dataset, scheme, config), mesh, config.device_map)
    from_batch = device_map(partial(_hide_from_batch, scheme, config), mesh, config.device_map)
    size = config.batch_size

    def hide(keys: Keys, step: jax.Array, private: Private, public_pool: jax.Array | None) -> Batch:
        view_key = jax.random.fold_in(keys.seed, 1)
        position = jnp.arange(size, dtype=jnp.int32)
        shared: dict[str, Any] = {"public_pool": public_pool}
        if private.this_pass is None:
            shared |= {"secret": _step_secret(keys, step), "view_key": view_key}
            numbers = step.astype(jnp.uint32) * size + position.astype(jnp.uint32)
            split = {"image": private.images, "label": private.labels, "rows": numbers}
            return from_batch(shared, split | {"position": position})
        steps_per_epoch = private.images.shape[0] // size
        epoch = step // steps_per_epoch
        shared["view_key"] = jax.random.fold_in(view_key, epoch)
        start = step % steps_per_epoch * size
        rows = lax.dynamic_slice(private.this_pass.order, (start,), (size,))
        if config.partners == "dataset":
            shared |= {"secret": _pass_secret(keys, epoch), "private": private}
            return from_dataset(shared, {"rows": rows})
        shared["secret"] = _step_secret(keys, step)
        split = {"image": private.images[rows], "label": private.labels[rows], "rows": rows}
        return from_batch(shared, split | {"position": position})

    return hide


def make_take(config: ImageExperiment, scheme: NoHiding, mesh: Mesh) -> Take:
    """`make_hide` as the train step wants it."""
    hide = make_hide(config, scheme, mesh)

    def take(
        keys: Keys, step: jax.Array, private: Private, public: jax.Array | None, length: None
    ) -> Examples:
        del length  # that of images is fixed
        hidden = hide(keys, step, private, public)
        return Examples(hidden["image"], hidden["label"])

    return take
