"""The train step: from a step number to hidden examples to new parameters, one pure function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh

from instahide_jax.chance import target_means
from instahide_jax.encoders.base import Model, Variables
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding
from instahide_jax.parallel import Groups, Neighbours, device_map, replicated
from instahide_jax.placement import put_own, put_whole
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
      secret: of everything that hides, already bound to the run's fingerprint; one per client,
        shape [K], each on the devices of its client alone.
      views: typed keys [K] of order and augmentation of each client; no secret.
      seed: typed key [] of dropout; no secret.
    """

    secret: SecretKey
    views: jax.Array
    seed: jax.Array


class ClientKeys(NamedTuple):
    """The keys of one client; shapes []."""

    secret: SecretKey
    views: jax.Array


def make_keys(secrets: Mapping[int, SecretKey], seed: jax.Array) -> dict[int, ClientKeys]:
    """The keys of the clients of this process, by their numbers.

    Args:
      secrets: of the clients, each bound to the run's fingerprint.
      seed: typed key [] of the run.
    """
    others = jax.random.fold_in(seed, 5)  # 0: order, 1: views, 2, 3: dropouts, 4: public texts
    return {
        client: ClientKeys(secret, jax.random.fold_in(others, client) if client else seed)
        for client, secret in secrets.items()
    }


def put_keys(own: Mapping[int, ClientKeys], seed: jax.Array, mesh: Mesh, clients: int) -> Keys:
    """The keys of all clients, each on the devices of its client.

    Args:
      own: of `make_keys`.
      seed: typed key [] of the run.
      mesh: of `parallel.make_mesh`.
      clients: K.
    """
    keys = put_own(list(own.values()), mesh, clients)
    return Keys(keys.secret, keys.views, put_whole(seed, mesh))


class Examples(NamedTuple):
    """The examples of a step.

    Attributes:
      inputs: of the encoder, a pytree of arrays [B, ...]; or [2 B, ...] where every private example
        is followed by a public one to mix with. Neighbours stay on one device, however many.
      labels: of the private ones, [B] or [B, classes], see `hiding.targets`.
    """

    inputs: Tree
    labels: jax.Array


# take(keys, step, private, public, length): the examples of a step, hidden where the scheme acts on
# the inputs. What `private`, `public` and `length` are is the affair of the kind of data.
Take = Callable[..., Examples]


def init_state(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params, stats = model.init(key)
    return TrainState(params, stats, optimizer.init(params), jnp.zeros((), jnp.int32))


def example_losses(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """One loss per example, float32 [B].

    Args:
      outputs: of the head, [B, classes] or [B, 1].
      targets: [B, classes]: cross-entropy in nats; or numbers [B]: the squared error.
    """
    if targets.ndim == 2:
        return optax.softmax_cross_entropy(outputs, targets)
    return optax.squared_error(outputs[:, 0], targets)


@jax.jit
def _all_finite(tree: Tree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def check_finite(losses: Mapping[int, jax.Array], state: TrainState, steps_per_epoch: int) -> None:
    """Refuse to go on, and to save, after a step that went wrong.

    Args:
      losses: of the last steps, by their numbers from 1.
      state: after the last of them.
      steps_per_epoch: to name the batch.

    Raises:
      InputError: for the first loss that is NaN or infinite, or a state with such an entry.
    """
    wrong = [step for step, loss in losses.items() if not np.isfinite(loss)]
    if not wrong and _all_finite(state):
        return
    step = min(wrong, default=int(state.step))
    what = f"the loss is {losses[step]}" if wrong else "a parameter is NaN or infinite"
    epoch, batch = divmod(step - 1, steps_per_epoch)
    raise InputError(
        f"{what} after step {step} (batch {batch + 1} of epoch {epoch + 1}); checkpoints before it "
        "are kept: lower the learning rate, in another --workdir"
    )


def make_train_step(
    take: Take,
    scheme: NoHiding,
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    group: int | None = None,
    clients: int = 1,
    sharding: Tree | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """step(state, keys, private, public, length=None) -> (state, metrics), jitted.

    The state is donated; there is one compiled program per `length`. Metrics are "loss";
    "gradient_norm", of the gradients of all parameters before they are clipped; "targets", the
    `chance.TargetMeans` of the batch; and for classes "accuracy", which counts a prediction as
    right that equals the target's heaviest class. The batch is cut along clients and devices. Sums
    of gradients, of batch statistics and of metrics are all that goes from client to client.

    Args:
      take: the examples of a step.
      scheme: what hides them.
      model: pure functions of encoder and head.
      optimizer: of `make_optimizer`.
      mesh: of `parallel.make_mesh`.
      group: rows among which partners of features are drawn; None: all rows of a client.
      clients: K.
      sharding: of the state, see `placement.state_sharding`; None: whole on every device.
    """
    whole = replicated(mesh)

    def hide_features(
        keys: Keys, step: jax.Array, features: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Features are hidden on the device that has them, gathered within a client at most."""
        own = len(labels) // clients
        groups = Groups(group or own, own // mesh.shape["data"])

        def on_device(step: jax.Array, secret: SecretKey, rows: dict[str, jax.Array]) -> Tree:
            def hide(neighbours: Neighbours, rows: dict[str, jax.Array]) -> Tree:
                parts = rows["features"].reshape(len(rows["labels"]), -1, features.shape[-1])
                public = parts[:, 1] if parts.shape[1] == 2 else None
                return scheme.hide_features(
                    secret, step, parts[:, 0], rows["labels"], public, neighbours
                )

            return groups.map(hide, rows["position"], rows)

        position = jnp.tile(jnp.arange(own, dtype=jnp.int32), clients)
        rows = {"features": features, "labels": labels, "position": position}
        return device_map(on_device, mesh)(step, keys.secret, rows)

    def train_step(
        state: TrainState, keys: Keys, private: Tree, public: Tree, length: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        examples = take(keys, state.step, private, public, length)
        dropout_key, head_key = (
            jax.random.fold_in(jax.random.fold_in(keys.seed, purpose), state.step)
            for purpose in (2, 3)
        )

        def loss_of(params: Tree) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Tree]]:
            # Shards are put together before use. Left to itself, the compiler may rather move the
            # activations to where the shards are, even those of other clients.
            params = lax.with_sharding_constraint(params, whole)
            features, stats = model.features(
                Variables(params, state.stats), examples.inputs, train=True, dropout_key=dropout_key
            )
            hidden, targets = hide_features(keys, state.step, features, examples.labels)
            outputs = model.logits(params, hidden, head_key)
            return example_losses(outputs, targets).mean(), (outputs, targets, stats)

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (outputs, targets, stats)), gradients = gradient(state.params)
        if sharding is not None:
            gradients = lax.with_sharding_constraint(gradients, sharding.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "targets": target_means(targets),
        }
        if targets.ndim == 2:
            metrics["accuracy"] = (outputs.argmax(axis=1) == targets.argmax(axis=1)).mean()
        return TrainState(params, stats, opt_state, state.step + 1), metrics

    return jax.jit(
        train_step,
        static_argnames="length",
        donate_argnums=0,
        out_shardings=(whole if sharding is None else sharding, whole),
    )
