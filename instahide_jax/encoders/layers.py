"""Layers that several encoders share."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from instahide_jax.encoders.initialisation import Initializer, LayerInit


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    init: LayerInit,
    dtype: str,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution without bias, padded as in PyTorch: by (size - 1) / 2 on every side."""
    pad = (size - 1) // 2
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=init.kernel,
        dtype=dtype,
        rngs=rngs,
    )


def dense(inputs: int, outputs: int, *, init: LayerInit, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with a bias."""
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=init.kernel,
        bias_init=init.bias(inputs),
        dtype=dtype,
        rngs=rngs,
    )


def norm(
    features: int,
    *,
    scale_init: Initializer = nnx.initializers.ones,
    dtype: str,
    rngs: nnx.Rngs,
) -> nnx.BatchNorm:
    """Batch normalisation with the momentum and epsilon of the published PyTorch code."""
    return nnx.BatchNorm(
        features, momentum=0.9, epsilon=1e-5, scale_init=scale_init, dtype=dtype, rngs=rngs
    )


def mean_pool(x: Any) -> jax.Array:
    """Global average pooling, [B, H, W, C] to [B, C]."""
    return x.mean(axis=(1, 2))


def layer_norm(features: int, epsilon: float, *, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation over the last axis."""
    # The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
    return nnx.LayerNorm(features, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
    """Self-attention of several heads over a sequence [B, L, width], with biases everywhere.

    Called with the sequence, a mask and a key: the mask, bool and broadcast to [B, heads, L, L], is
    False where a query must not see a key; the key is that of the dropout on the probabilities.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float = 0.0,
        init: LayerInit,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.query, self.key, self.value, self.output = (
            dense(width, width, init=init, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, key: Any = None) -> jax.Array:
        query, keys, value = (
            layer(x).reshape(*x.shape[:2], self.heads, -1)
            for layer in (self.query, self.key, self.value)
        )
        if self.dropout.deterministic or not self.dropout.rate:
            mixed = jax.nn.dot_product_attention(query, keys, value, mask=mask)
        else:
            mixed = self._with_dropout(query, keys, value, mask, key)
        return self.output(mixed.reshape(x.shape))

    def _with_dropout(
        self, query: jax.Array, keys: jax.Array, value: jax.Array, mask: Any, key: Any
    ) -> jax.Array:
        """What `jax.nn.dot_product_attention` computes, which has no dropout of its own."""
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys, preferred_element_type=jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        if mask is not None:
            # Finite, so that a row without tokens does not end in 0 / 0.
            scores = jnp.where(mask, scores, 0.5 * jnp.finfo(jnp.float32).min)
        probabilities = self.dropout(jax.nn.softmax(scores), rngs=key)
        return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(value.dtype), value)


def apply_block(block: nnx.Module, *args: Any, remat: bool) -> jax.Array:
    """block(*args); with `remat` the backward pass computes what is inside once more.

    Running statistics that the block updates are updated once either way. Dropout takes keys among
    the arguments, so that the repetition drops the same; an `nnx.Rngs` would have to be forked.
    """

    def call(block: Any, *args: Any) -> jax.Array:
        return block(*args)

    return (nnx.remat(call) if remat else call)(block, *args)
