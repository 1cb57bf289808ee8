"""The images of a training step: taken from memory or a stream, augmented and hidden."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import Augment, augment
from instahide_jax.hiding import Batch, NoHiding
from instahide_jax.parallel import Groups, Neighbours, device_map
from instahide_jax.secret import SecretKey
from instahide_jax.training import ClientKeys, Examples, Keys, Take


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
    """Private data on the devices, that of every client on its own.

    Attributes:
      images: uint8 [K, N, H, W, C], the whole sets in memory; or one batch [B, H, W, C] of a
        stream.
      labels: int32 [K, N] or [B].
      this_pass: order [K, steps * B / K] and partners [K, N, num_partners]; None for a stream.
    """

    images: jax.Array
    labels: jax.Array
    this_pass: Pass | None


def plan_pass(
    keys: ClientKeys, epoch: int | jax.Array, num_images: int, scheme: NoHiding | None
) -> Pass:
    """Order and partners of one client's pass, a pure function of keys and epoch.

    Args:
      keys: of the client.
      epoch: number of the pass.
      num_images: N.
      scheme: which needs partners from the whole set; None where they come from the batch.
    """
    order_key = jax.random.fold_in(jax.random.fold_in(keys.views, 0), epoch)
    order = jax.random.permutation(order_key, num_images).astype(jnp.int32)
    partners = None
    if scheme is not None:
        partners = scheme.pass_partners(_pass_secret(keys.secret, epoch), num_images)
    return Pass(order, partners)


def _pass_secret(secret: SecretKey, epoch: int | jax.Array) -> SecretKey:
    return secret.stream("pass").fold_in(epoch)


def _step_secret(secret: SecretKey, step: jax.Array) -> SecretKey:
    return secret.stream("step").fold_in(step)


class _Own(NamedTuple):
    """What a device needs of one of its clients: keys, public images, and data in memory if any."""

    secret: SecretKey
    view_key: jax.Array
    public_pool: jax.Array | None
    private: Private | None


def _in_memory(own: _Own) -> tuple[jax.Array, jax.Array, Pass]:
    assert own.private is not None
    assert own.private.this_pass is not None
    return own.private.images, own.private.labels, own.private.this_pass


class _Hide(NamedTuple):
    """Hiding one client's rows on one device.

    Attributes:
      scheme: with the data set's statistics.
      augment: random views.
      size: B / K, the client's rows of a step.
      groups: of these rows, within which partners are drawn if they come from the batch.
    """

    scheme: NoHiding
    augment: Augment
    size: int
    groups: Groups

    def from_dataset(self, step: jax.Array, own: _Own, rows: dict[str, jax.Array]) -> Batch:
        """Partners come from the whole set in memory.

        The key is that of the pass and a row's number is its image's, so every image is hidden
        under its own key once per pass.
        """
        epoch, numbers, view_key = self._rows_of_step(step, own, rows["position"])
        images, labels, this_pass = _in_memory(own)

        def views(numbers: jax.Array) -> Batch:
            seen = augment(self.augment, view_key, images[numbers], numbers)
            return {"image": seen, "label": labels[numbers]}

        pool = partners = None
        if self.scheme.num_partners:
            assert this_pass.partners is not None
            theirs = this_pass.partners[numbers]
            pool = views(theirs.reshape(-1))
            partners = jnp.arange(theirs.size, dtype=jnp.int32).reshape(theirs.shape)
        return self.scheme.hide_inputs(
            _pass_secret(own.secret, epoch),
            views(numbers),
            own.public_pool,
            rows=numbers,
            private_pool=pool,
            partners=partners,
        )

    def from_batch(self, step: jax.Array, own: _Own, rows: dict[str, jax.Array]) -> Batch:
        """Partners come from the client's rows of the step; the set is in memory."""
        _, numbers, view_key = self._rows_of_step(step, own, rows["position"])
        images, labels, _ = _in_memory(own)
        seen = augment(self.augment, view_key, images[numbers], numbers)
        batch = {"image": seen, "label": labels[numbers]}
        return self._in_groups(step, own, rows["position"], batch)

    def from_stream(self, step: jax.Array, own: _Own, rows: dict[str, jax.Array]) -> Batch:
        """Partners come from the client's rows of the step, which are given."""
        position = rows["position"]
        numbers = step.astype(jnp.uint32) * self.size + position.astype(jnp.uint32)
        batch = {
            "image": augment(self.augment, own.view_key, rows["image"], numbers),
            "label": rows["label"],
        }
        return self._in_groups(step, own, position, batch)

    def _rows_of_step(
        self, step: jax.Array, own: _Own, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Pass, numbers of the images at `position`, and the key of their views."""
        order = _in_memory(own)[2].order
        epoch, turn = jnp.divmod(step, order.shape[0] // self.size)
        return epoch, order[turn * self.size + position], jax.random.fold_in(own.view_key, epoch)

    def _in_groups(self, step: jax.Array, own: _Own, position: jax.Array, batch: Batch) -> Batch:
        """The key is that of the step and a row's number its place in the client's batch."""
        scheme, secret = self.scheme, _step_secret(own.secret, step)

        def hide(neighbours: Neighbours, batch: Batch) -> Batch:
            pool = partners = None
            if scheme.num_partners:
                partners = scheme.pass_partners(secret, neighbours.size, neighbours.first)
                partners = partners[neighbours.position - neighbours.first]
                pool = neighbours.gather(batch)
            return scheme.hide_inputs(
                secret,
                batch,
                own.public_pool,
                rows=neighbours.position,
                private_pool=pool,
                partners=partners,
            )

        return self.groups.map(hide, position, batch)


def make_hide(
    config: ImageExperiment, scheme: NoHiding, mesh: Mesh
) -> Callable[[Keys, jax.Array, Private, jax.Array | None], Batch]:
    """hide(keys, step, private, public_pool): the hidden batch of a step, cut by rows.

    Every device hides its own rows. Images go from device to device within a client only, and only
    where partners come from the batch in groups larger than a device's share.

    Args:
      config: the experiment.
      scheme: its scheme, with the data set's statistics.
      mesh: of `parallel.make_mesh`.

    Returns:
      A function of which `public_pool` is uint8 [K, M, H, W, C] or None.
    """
    clients, size = config.clients, config.batch_size // config.clients
    groups = Groups(config.partner_group or size, size // mesh.shape["data"])
    one = _Hide(scheme, config.augment, size, groups)
    from_dataset, from_batch, from_stream = (
        device_map(function, mesh, config.device_map)
        for function in (one.from_dataset, one.from_batch, one.from_stream)
    )

    def hide(keys: Keys, step: jax.Array, private: Private, public_pool: jax.Array | None) -> Batch:
        view_key = jax.vmap(jax.random.fold_in, (0, None))(keys.views, 1)
        position = jnp.tile(jnp.arange(size, dtype=jnp.int32), clients)
        own = _Own(keys.secret, view_key, public_pool, private)
        if private.this_pass is None:
            own = own._replace(private=None)
            rows = {"position": position, "image": private.images, "label": private.labels}
            return from_stream(step, own, rows)
        hide_rows = from_dataset if config.partners == "dataset" else from_batch
        return hide_rows(step, own, {"position": position})

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
