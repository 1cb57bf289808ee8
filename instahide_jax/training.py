"""The train step: from a step number to hidden images to new parameters, one pure function."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh

from instahide_jax.config import Cosine, Experiment, Sgd, StepDecay
from instahide_jax.data.augment import augment, centre
from instahide_jax.encoders.base import Model, Variables
from instahide_jax.hiding import Batch, NoHiding, soft_labels
from instahide_jax.parallel import device_map, replicated
from instahide_jax.secret import SecretKey

Tree = Any


@struct.dataclass
class TrainState:
    """What training changes; everything else follows from the configuration and the step.

    Attributes:
      params: parameters of encoder and head.
      stats: running statistics.
      opt_state: of the optimizer.
      step: int32 [], steps done.
    """

    params: Tree
    stats: Tree
    opt_state: Tree
    step: jax.Array


class Keys(NamedTuple):
    """Keys of a run, constant over it.

    Attributes:
      secret: of everything that hides, already bound to the run's fingerprint.
      seed: typed key of what is no secret (order, augmentation, dropout).
    """

    secret: SecretKey
    seed: jax.Array


class Pass(NamedTuple):
    """One pass over a training set in memory.

    Attributes:
      order: int32 [N], image numbers in the order of training.
      partners: int32 [N, num_partners], private partners of every image.
    """

    order: jax.Array
    partners: jax.Array


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


def make_optimizer(
    config: Sgd, steps_per_epoch: int, total_steps: int
) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay; accumulated, one update per several steps."""
    updates = config.accumulate  # schedules count updates, not steps
    warmup = round(config.schedule.warmup_epochs * steps_per_epoch / updates)
    total = max(1, total_steps // updates)
    peak, schedule = config.learning_rate, config.schedule
    match schedule:
        case StepDecay():
            at = [round(b * steps_per_epoch / updates) - warmup for b in schedule.boundaries]
            after = optax.piecewise_constant_schedule(peak, dict.fromkeys(at, schedule.factor))
        case Cosine():
            after = optax.cosine_decay_schedule(peak, max(1, total - warmup))
        case _:
            after = optax.constant_schedule(peak)
    rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, config.momentum, config.nesterov),
    )
    if config.accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()


def init_state(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params, stats = model.init(key)
    return TrainState(params, stats, optimizer.init(params), jnp.zeros((), jnp.int32))


def plan_pass(keys: Keys, epoch: int | jax.Array, num_images: int, scheme: NoHiding) -> Pass:
    """Order and partners of one pass, a pure function of keys and epoch."""
    order_key = jax.random.fold_in(jax.random.fold_in(keys.seed, 0), epoch)
    order = jax.random.permutation(order_key, num_images).astype(jnp.int32)
    return Pass(order, scheme.pass_partners(keys.secret.fold_in(epoch), num_images))


def _hide_from_dataset(
    scheme: NoHiding, config: Experiment, shared: dict[str, Any], split: dict[str, jax.Array]
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
    scheme: NoHiding, config: Experiment, shared: dict[str, Any], split: dict[str, jax.Array]
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
    config: Experiment, scheme: NoHiding, mesh: Mesh
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
            shared |= {"secret": keys.secret.fold_in(step), "view_key": view_key}
            numbers = step.astype(jnp.uint32) * size + position.astype(jnp.uint32)
            split = {"image": private.images, "label": private.labels, "rows": numbers}
            return from_batch(shared, split | {"position": position})
        steps_per_epoch = private.images.shape[0] // size
        epoch = step // steps_per_epoch
        shared["view_key"] = jax.random.fold_in(view_key, epoch)
        start = step % steps_per_epoch * size
        rows = lax.dynamic_slice(private.this_pass.order, (start,), (size,))
        if config.partners == "dataset":
            shared |= {"secret": keys.secret.fold_in(epoch), "private": private}
            return from_dataset(shared, {"rows": rows})
        shared["secret"] = keys.secret.fold_in(step)
        split = {"image": private.images[rows], "label": private.labels[rows], "rows": rows}
        return from_batch(shared, split | {"position": position})

    return hide


def make_train_step(
    config: Experiment,
    scheme: NoHiding,
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, keys, private, public_pool) -> (state, {"loss", "accuracy"}), jitted.

    The state is donated. Accuracy counts a prediction as right that equals the label's heaviest
    class. On a mesh of several devices the batch is sharded and everything else replicated; the
    compiler then sums gradients and batch statistics over all devices.
    """
    hide = make_hide(config, scheme, mesh)

    def train_step(
        state: TrainState, keys: Keys, private: Private, public_pool: jax.Array | None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = hide(keys, state.step, private, public_pool)
        dropout_key = jax.random.fold_in(jax.random.fold_in(keys.seed, 2), state.step)
        feature_key = keys.secret.stream("features").fold_in(state.step)

        def loss_of(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
            features, stats = model.features(
                Variables(params, state.stats), batch["image"], train=True, dropout_key=dropout_key
            )
            logits = model.logits(params, scheme.hide_features(feature_key, features))
            return optax.softmax_cross_entropy(logits, batch["label"]).mean(), (logits, stats)

        (loss, (logits, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        right = logits.argmax(axis=1) == batch["label"].argmax(axis=1)
        metrics = {"loss": loss, "accuracy": right.mean()}
        return TrainState(params, stats, opt_state, state.step + 1), metrics

    whole = replicated(mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))


def make_evaluate(
    config: Experiment, scheme: NoHiding, model: Model
) -> Callable[..., dict[str, jax.Array]]:
    """evaluate(params, stats, images, labels, valid) -> sums over the valid rows, jitted.

    Images are plain: the central crop, standardised, neither mixed nor masked. The sums are
    "loss", "right" and "count", float32.
    """
    plain = NoHiding(scheme.num_classes, scheme.mean, scheme.std)

    def evaluate(
        params: Tree, stats: Tree, images: jax.Array, labels: jax.Array, valid: jax.Array
    ) -> dict[str, jax.Array]:
        batch = plain.hide_inputs(None, {"image": centre(config.augment, images), "label": labels})
        features, _ = model.features(Variables(params, stats), batch["image"], train=False)
        logits = model.logits(params, features)
        loss = optax.softmax_cross_entropy(logits, soft_labels(labels, scheme.num_classes))
        right = logits.argmax(axis=1) == labels
        return {
            "loss": jnp.where(valid, loss, 0).sum(),
            "right": (right & valid).sum().astype(jnp.float32),
            "count": valid.sum().astype(jnp.float32),
        }

    return jax.jit(evaluate)
