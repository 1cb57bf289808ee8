"""Residual networks for images: ResNet-18 in two forms, and WideResNets."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
from flax import nnx

from instahide_jax.encoders.base import EncoderConfig
from instahide_jax.encoders.initialisation import (
    HE_FAN_IN,
    HE_FAN_OUT,
    PYTORCH,
    PYTORCH_ZERO_BIAS,
    TORCH7_SCALE,
    LayerInit,
)
from instahide_jax.encoders.layers import apply_block, conv, mean_pool, norm
from instahide_jax.errors import InputError

_NUM_STAGES = 4


@dataclass(frozen=True)
class ResNet(EncoderConfig):
    """A ResNet of basic blocks (He et al. 2016).

    Attributes:
      blocks: blocks per stage; (2, 2, 2, 2) is ResNet-18. From the second stage on the first block
        halves the image.
      width: channels of the first stage; every stage doubles them.
      form: "published" is the network that the InstaHide code calls ResNet18, a hybrid: a stem with
        batch normalisation and ReLU, then pre-activation blocks whose shortcuts are activated as
        well, and no normalisation before pooling (11,171,274 parameters with 10 classes and 3
        channels). "standard" is the post-activation ResNet for CIFAR (11,173,962).
      stem: "cifar" is a 3x3 convolution; "strided" one of stride 2, for a quarter of the work;
        "imagenet" a 7x7 one of stride 2 and a 3x3 max-pooling of stride 2, for 224x224.
    """

    can_remat: ClassVar[bool] = True

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    form: Literal["published", "standard"] = "published"
    stem: Literal["cifar", "strided", "imagenet"] = "cifar"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or min(self.blocks) < 1:
            raise InputError(f"blocks is {self.blocks}; every stage needs at least 1 block")
        if self.width < 1:
            raise InputError(f"width is {self.width}; it must be at least 1")
        if self.form not in ("published", "standard"):
            raise InputError(f"form is {self.form!r}; choose 'published' or 'standard'")
        if self.stem not in ("cifar", "strided", "imagenet"):
            raise InputError(f"stem is {self.stem!r}; choose 'cifar', 'strided' or 'imagenet'")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        return _ResNet(self, shape[2], rngs)


def ResNet18(**settings: Any) -> ResNet:  # named as the architecture
    """ResNet-18; by default in the published form."""
    return ResNet(**settings)


class _PostActivationBlock(nnx.Module):
    def __init__(
        self, inputs: int, outputs: int, stride: int, init: LayerInit, dtype: str, rngs: nnx.Rngs
    ):
        self.conv1 = conv(inputs, outputs, 3, stride=stride, init=init, dtype=dtype, rngs=rngs)
        self.norm1 = norm(outputs, dtype=dtype, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, init=init, dtype=dtype, rngs=rngs)
        self.norm2 = norm(outputs, dtype=dtype, rngs=rngs)
        self.has_shortcut = inputs != outputs or stride != 1
        if self.has_shortcut:
            self.shortcut = conv(
                inputs, outputs, 1, stride=stride, init=init, dtype=dtype, rngs=rngs
            )
            self.shortcut_norm = norm(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (self.shortcut_norm(self.shortcut(x)) if self.has_shortcut else x))


class _PreActivationBlock(nnx.Module):
    """Normalise, activate, convolve, twice.

    The shortcut begins behind the first activation, even where it is the identity: so it stands in
    the InstaHide code (models/resnet.py, PreActBlock), unlike in He et al. 2016.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, init: LayerInit, dtype: str, rngs: nnx.Rngs
    ):
        self.norm1 = norm(inputs, dtype=dtype, rngs=rngs)
        self.conv1 = conv(inputs, outputs, 3, stride=stride, init=init, dtype=dtype, rngs=rngs)
        self.norm2 = norm(outputs, dtype=dtype, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, init=init, dtype=dtype, rngs=rngs)
        self.has_shortcut = inputs != outputs or stride != 1
        if self.has_shortcut:
            self.shortcut = conv(
                inputs, outputs, 1, stride=stride, init=init, dtype=dtype, rngs=rngs
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        activated = nnx.relu(self.norm1(x))
        y = nnx.relu(self.norm2(self.conv1(activated)))
        return self.conv2(y) + (self.shortcut(activated) if self.has_shortcut else activated)


class _ResNet(nnx.Module):
    def __init__(self, config: ResNet, channels: int, rngs: nnx.Rngs):
        dtype = config.dtype
        init = HE_FAN_OUT if (config.form, config.stem) == ("standard", "imagenet") else PYTORCH
        block = _PreActivationBlock if config.form == "published" else _PostActivationBlock
        self.remat = config.remat
        self.pool_stem = config.stem == "imagenet"
        size, stride = {"cifar": (3, 1), "strided": (3, 2), "imagenet": (7, 2)}[config.stem]
        self.stem = conv(
            channels, config.width, size, stride=stride, init=init, dtype=dtype, rngs=rngs
        )
        self.stem_norm = norm(config.width, dtype=dtype, rngs=rngs)
        blocks: list[nnx.Module] = []
        inputs = config.width
        for stage, count in enumerate(config.blocks):
            outputs = config.width * 2**stage
            for i in range(count):
                stride = 2 if stage and not i else 1
                blocks.append(block(inputs, outputs, stride, init, dtype, rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, rngs: Any = None) -> jax.Array:
        x = nnx.relu(self.stem_norm(self.stem(x)))
        if self.pool_stem:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = apply_block(block, x, remat=self.remat)
        return mean_pool(x)


@dataclass(frozen=True)
class WideResNet(EncoderConfig):
    """WideResNet-depth-widen (Zagoruyko and Komodakis 2016) for 32x32 images; 28-6 by default.

    Attributes:
      depth: 6 n + 4 for n blocks in each of the three stages.
      widen: factor on the stage widths 16, 32, 64.
      dropout: rate between the two convolutions of a block, in [0, 1).
    """

    can_remat: ClassVar[bool] = True

    depth: int = 28
    widen: int = 6
    dropout: float = 0.0

    @property
    def head_init(self) -> LayerInit:
        return PYTORCH_ZERO_BIAS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 10 or (self.depth - 4) % 6:
            raise InputError(f"depth is {self.depth}; it must be 6 n + 4 with n >= 1, such as 28")
        if self.widen < 1:
            raise InputError(f"widen is {self.widen}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; it must lie in [0, 1)")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        return _WideResNet(self, shape[2], rngs)


_wide_conv = partial(conv, init=HE_FAN_IN)
_wide_norm = partial(norm, scale_init=TORCH7_SCALE)


class _WideBlock(nnx.Module):
    def __init__(
        self, inputs: int, outputs: int, stride: int, dropout: float, dtype: str, rngs: nnx.Rngs
    ):
        self.norm1 = _wide_norm(inputs, dtype=dtype, rngs=rngs)
        self.conv1 = _wide_conv(inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.norm2 = _wide_norm(outputs, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = _wide_conv(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.has_shortcut = inputs != outputs or stride != 1
        if self.has_shortcut:
            self.shortcut = _wide_conv(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, key: Any) -> jax.Array:
        activated = nnx.relu(self.norm1(x))
        y = nnx.relu(self.norm2(self.conv1(activated)))
        y = self.conv2(self.dropout(y, rngs=key))
        return y + (self.shortcut(activated) if self.has_shortcut else x)


class _WideResNet(nnx.Module):
    def __init__(self, config: WideResNet, channels: int, rngs: nnx.Rngs):
        dtype = config.dtype
        self.remat = config.remat
        self.stem = _wide_conv(channels, 16, 3, dtype=dtype, rngs=rngs)
        blocks = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * config.widen * 2**stage
            for i in range((config.depth - 4) // 6):
                stride = 2 if stage and not i else 1
                blocks.append(_WideBlock(inputs, outputs, stride, config.dropout, dtype, rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.norm = _wide_norm(inputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: Any = None) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            key = None if rngs is None else rngs.dropout()
            x = apply_block(block, x, key, remat=self.remat)
        return mean_pool(nnx.relu(self.norm(x)))
