"""Small encoders for small images: a plain convolutional net and LeNet-5."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from instahide_jax.encoders.base import EncoderConfig
from instahide_jax.encoders.initialisation import PYTORCH
from instahide_jax.encoders.layers import conv, dense, mean_pool, norm
from instahide_jax.errors import InputError


@dataclass(frozen=True)
class ConvNet(EncoderConfig):
    """Blocks of 3x3 convolution, batch normalisation and ReLU, then global average pooling.

    Attributes:
      widths: channels of the blocks; the last is the width of the features.
      strides: of the blocks' convolutions. Strides instead of max-pooling, because on a CPU the
        gradient of max-pooling takes as long as that of the convolutions.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    strides: tuple[int, ...] = (2, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths is {self.widths}; give at least one width of at least 1")
        if len(self.strides) != len(self.widths) or min(self.strides) < 1:
            raise InputError(f"strides is {self.strides}; give one of at least 1 for each width")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        return _ConvNet(self, shape[2], rngs)


class _ConvNet(nnx.Module):
    def __init__(self, config: ConvNet, channels: int, rngs: nnx.Rngs):
        inputs = (channels, *config.widths[:-1])
        self.convs = nnx.List(
            [
                conv(i, o, 3, stride=stride, init=PYTORCH, dtype=config.dtype, rngs=rngs)
                for i, o, stride in zip(inputs, config.widths, config.strides, strict=True)
            ]
        )
        self.norms = nnx.List([norm(o, dtype=config.dtype, rngs=rngs) for o in config.widths])

    def __call__(self, x: jax.Array, rngs: Any = None) -> jax.Array:
        for convolve, normalise in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(normalise(convolve(x)))
        return mean_pool(x)


@dataclass(frozen=True)
class LeNet5(EncoderConfig):
    """LeNet-5 with ReLU and max-pooling: 5x5 convolutions of 6 and 16, dense layers of 120 and 84.

    62,006 parameters with a head of 10 classes at 32x32x3.
    """

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        if min(shape[:2]) < 16:
            raise InputError(
                f"LeNet-5 needs images of at least 16x16, not {shape[:2]}: resize them, or take "
                "another encoder"
            )
        return _LeNet5(self, shape, rngs)


class _LeNet5(nnx.Module):
    def __init__(self, config: LeNet5, shape: tuple[int, ...], rngs: nnx.Rngs):
        settings: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
        self.conv1, self.conv2 = (
            nnx.Conv(
                inputs,
                outputs,
                (5, 5),
                padding="VALID",
                kernel_init=PYTORCH.kernel,
                bias_init=PYTORCH.bias(25 * inputs),
                **settings,
            )
            for inputs, outputs in ((shape[2], 6), (6, 16))
        )
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[:2])
        self.dense1 = dense(height * width * 16, 120, init=PYTORCH, **settings)
        self.dense2 = dense(120, 84, init=PYTORCH, **settings)

    def __call__(self, x: jax.Array, rngs: Any = None) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return nnx.relu(self.dense2(x))
