"""Vision Transformers for images (Dosovitskiy et al., ICLR 2021)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from instahide_jax.encoders.base import EncoderConfig
from instahide_jax.encoders.initialisation import GLOROT, GLOROT_MLP, LECUN, ZERO, LayerInit
from instahide_jax.encoders.layers import Attention, apply_block, dense, layer_norm
from instahide_jax.errors import InputError

_NORM_EPSILON = 1e-6
_POSITION_STD = 0.02


@dataclass(frozen=True)
class ViT(EncoderConfig):
    """A Vision Transformer; the defaults are those of ViT-B/16.

    Square patches, a linear embedding, learned positions, blocks that normalise before attention
    and before the MLP (exact GELU), and a last layer normalisation. 86,567,656 parameters with a
    head of 1,000 classes at 224x224x3. Height and width must be multiples of `patch_size`; the
    positions fix the size of the images.

    Attributes:
      patch_size: side of a patch in pixels; 16 is published for 224x224, 4 suits 32x32.
      width: of the tokens and of the features, a multiple of `num_heads`.
      depth: blocks.
      num_heads: attention heads per block.
      mlp_width: width between the two dense layers of a block.
      dropout: rate after the positions are added, after attention, and after each dense layer of an
        MLP, in [0, 1).
      pooling: features are "cls", a learned token before the patches, as published; or "mean" of
        the patches, without such a token.
    """

    can_remat: ClassVar[bool] = True

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    dropout: float = 0.0
    pooling: Literal["cls", "mean"] = "cls"

    @property
    def head_init(self) -> LayerInit:
        return ZERO

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_size", "width", "depth", "num_heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.num_heads:
            raise InputError(
                f"width is {self.width}; it must be a multiple of num_heads, which is "
                f"{self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; it must lie in [0, 1)")
        if self.pooling not in ("cls", "mean"):
            raise InputError(f"pooling is {self.pooling!r}; choose 'cls' or 'mean'")

    @classmethod
    def base(cls, **settings: Any) -> Self:
        """ViT-B of the paper's table 1."""
        return cls(**settings)

    @classmethod
    def small(cls, **settings: Any) -> Self:
        """ViT-S: 22,050,664 parameters where ViT-B has 86,567,656 (Touvron et al. 2021)."""
        return cls(**{"width": 384, "num_heads": 6, "mlp_width": 1536} | settings)

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """ViT-Ti: 5,717,416 parameters where ViT-B has 86,567,656 (Touvron et al. 2021)."""
        return cls(**{"width": 192, "num_heads": 3, "mlp_width": 768} | settings)

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
        if any(side < 1 or side % self.patch_size for side in shape[:2]):
            raise InputError(
                f"patch_size is {self.patch_size}; the images are {shape[0]}x{shape[1]}: choose "
                "one that divides both sides, or resize the images"
            )
        return _ViT(self, shape, rngs)


class _Block(nnx.Module):
    def __init__(self, config: ViT, rngs: nnx.Rngs):
        dtype, width = config.dtype, config.width
        self.attention_norm = layer_norm(width, _NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, config.num_heads, init=GLOROT, dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(width, _NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.dense1, self.dense2 = (
            dense(i, o, init=GLOROT_MLP, dtype=dtype, rngs=rngs)
            for i, o in ((width, config.mlp_width), (config.mlp_width, width))
        )
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, key: Any) -> jax.Array:
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        x = x + self.dropout(self.attention(self.attention_norm(x)), rngs=keys[0])
        y = jax.nn.gelu(self.dense1(self.mlp_norm(x)), approximate=False)
        y = self.dense2(self.dropout(y, rngs=keys[1]))
        return x + self.dropout(y, rngs=keys[2])


class _ViT(nnx.Module):
    def __init__(self, config: ViT, shape: tuple[int, ...], rngs: nnx.Rngs):
        self.config, self.shape = config, tuple(shape)
        patch = (config.patch_size, config.patch_size)
        self.patches = nnx.Conv(
            shape[2],
            config.width,
            patch,
            strides=patch,
            padding="VALID",
            kernel_init=LECUN.kernel,
            bias_init=LECUN.bias(shape[2] * config.patch_size**2),
            dtype=config.dtype,
            rngs=rngs,
        )
        length = (shape[0] // config.patch_size) * (shape[1] // config.patch_size)
        if config.pooling == "cls":
            self.cls = nnx.Param(jnp.zeros((1, 1, config.width)))
            length += 1
        init = nnx.initializers.normal(_POSITION_STD)
        self.positions = nnx.Param(init(rngs.params(), (1, length, config.width)))
        self.dropout = nnx.Dropout(config.dropout)
        self.blocks = nnx.List([_Block(config, rngs) for _ in range(config.depth)])
        self.norm = layer_norm(config.width, _NORM_EPSILON, dtype=config.dtype, rngs=rngs)

    def __call__(self, images: jax.Array, rngs: Any = None) -> jax.Array:
        if images.shape[1:] != self.shape:
            # A single position would be broadcast to images of any size.
            raise InputError(
                f"the images are {images.shape[1:]}; this ViT has positions for {self.shape}: "
                "resize them, or make a model for their shape"
            )
        count = len(self.blocks) + 1
        keys = [None] * count if rngs is None else list(jax.random.split(rngs.dropout(), count))
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])  # row by row
        if self.config.pooling == "cls":
            cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[-1]))
            x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
        x = self.dropout(x + self.positions[...].astype(x.dtype), rngs=keys[0])
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x = apply_block(block, x, key, remat=self.config.remat)
        if self.config.pooling == "cls":
            return self.norm(x[:, 0])
        return self.norm(x).astype(jnp.float32).mean(axis=1)
