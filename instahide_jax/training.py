"""The train step: from a step number to hidden examples to new parameters, one pure function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from instahide_jax.encoders.base import Model, Variables
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding
from instahide_jax.parallel import replicated
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


class Examples(NamedTuple):
    """The private examples of a step, and public ones to mix them with.

    Attributes:
      inputs: of the encoder, a pytree of arrays [B, ...].
      labels: [B] or [B, classes], see `hiding.targets`.
      public: inputs of public examples, a pytree like `inputs` of arrays [M, ...], or None.
    """

    inputs: Tree
    labels: jax.Array
    public: Tree | None = None


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
        f"{what} after step {step} (batch {batch + 1} of pass {epoch + 1}); checkpoints before it "
        "are kept: lower the learning rate, in another --workdir"
    )


def make_train_step(
    take: Take,
    scheme: NoHiding,
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, keys, private, public, length=None) -> (state, metrics), jitted.

    The state is donated; there is one compiled program per `length`. Metrics are "loss" and, for
    classes, "accuracy", which counts a prediction as right that equals the target's heaviest class.
    On a mesh of several devices the batch is sharded and everything else replicated; the compiler
    then sums gradients and batch statistics over all devices.
    """

    def train_step(
        state: TrainState, keys: Keys, private: Tree, public: Tree, length: int | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        examples = take(keys, state.step, private, public, length)
        size = len(examples.labels)
        inputs = examples.inputs
        if examples.public is not None:  # one forward pass for all
            inputs = jax.tree.map(
                lambda own, other: jnp.concatenate([own, other]), inputs, examples.public
            )
        dropout_key, head_key = (
            jax.random.fold_in(jax.random.fold_in(keys.seed, purpose), state.step)
            for purpose in (2, 3)
        )

        def loss_of(params: Tree) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Tree]]:
            features, stats = model.features(
                Variables(params, state.stats), inputs, train=True, dropout_key=dropout_key
            )
            others = None if examples.public is None else features[size:]
            hidden, targets = scheme.hide_features(
                keys.secret, state.step, features[:size], examples.labels, others
            )
            outputs = model.logits(params, hidden, head_key)
            return example_losses(outputs, targets).mean(), (outputs, targets, stats)

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (outputs, targets, stats)), gradients = gradient(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss}
        if targets.ndim == 2:
            metrics["accuracy"] = (outputs.argmax(axis=1) == targets.argmax(axis=1)).mean()
        return TrainState(params, stats, opt_state, state.step + 1), metrics

    whole = replicated(mesh)
    return jax.jit(
        train_step, static_argnames="length", donate_argnums=0, out_shardings=(whole, whole)
    )
