"""Heads: from an encoder's features, hidden or not, to the numbers that a loss compares."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from instahide_jax.encoders.initialisation import LayerInit
from instahide_jax.errors import InputError

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Head:
    """A linear head; base of the other heads.

    Attributes:
      dropout: rate on the features during training, in [0, 1).
    """

    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise InputError(f"head.dropout is {self.dropout}; it must lie in [0, 1)")

    def init(self, key: jax.Array, width: int, num_outputs: int, init: LayerInit) -> Params:
        """Parameters for features [..., width]; float32.

        Args:
          key: typed key [].
          width: of the features.
          num_outputs: of the last layer.
          init: of all layers, the encoder's `head_init`.
        """
        kernel_key, bias_key = jax.random.split(key)
        return {
            "kernel": init.kernel(kernel_key, (width, num_outputs), jnp.float32),
            "bias": init.bias(width)(bias_key, (num_outputs,), jnp.float32),
        }

    def apply(self, params: Params, features: jax.Array, dropout_key: Any = None) -> jax.Array:
        """Outputs [..., num_outputs] of features [..., width]; a key switches dropout on."""
        features = self._dropped(features, dropout_key)
        return _dense(features, params["kernel"], params["bias"])

    def _dropped(self, features: jax.Array, key: Any) -> jax.Array:
        if key is None or not self.dropout:
            return features
        keep = 1.0 - self.dropout
        return jnp.where(jax.random.bernoulli(key, keep, features.shape), features / keep, 0.0)


@dataclass(frozen=True)
class TanhHead(Head):
    """The head of the published TextHide code: one dense layer with tanh, applied repeatedly.

    Its parameters are shared between the repetitions; a linear layer follows.

    Attributes:
      repeats: applications of the shared layer, >= 1; the published code has 3, or 2 for small
        tasks.
    """

    repeats: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1:
            raise InputError(f"head.repeats is {self.repeats}; it must be at least 1")

    def init(self, key: jax.Array, width: int, num_outputs: int, init: LayerInit) -> Params:
        shared_key, key = jax.random.split(key)
        shared = super().init(shared_key, width, width, init)
        linear = super().init(key, width, num_outputs, init)
        return {"shared_kernel": shared["kernel"], "shared_bias": shared["bias"], **linear}

    def apply(self, params: Params, features: jax.Array, dropout_key: Any = None) -> jax.Array:
        features = self._dropped(features, dropout_key)
        for _ in range(self.repeats):
            features = jnp.tanh(_dense(features, params["shared_kernel"], params["shared_bias"]))
        return _dense(features, params["kernel"], params["bias"])


def _dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
