"""Layers that several encoders share."""

from typing import Any

import jax
from flax import nnx

# Batch normalisation follows and rescales every convolution, so only the spread of the gradients
# matters: variance 2 / fan_out (He et al. 2015, section 2.2).
_CONV_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    inputs: int, outputs: int, size: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs
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
        kernel_init=_CONV_INIT,
        dtype=dtype,
        rngs=rngs,
    )


def norm(features: int, *, dtype: str, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation with the momentum and epsilon of the published PyTorch code."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def mean_pool(x: Any) -> jax.Array:
    """Global average pooling, [B, H, W, C] to [B, C]."""
    return x.mean(axis=(1, 2))
