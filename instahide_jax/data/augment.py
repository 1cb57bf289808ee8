"""Random crop and flip on the device, before hiding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from instahide_jax.errors import InputError


@dataclass(frozen=True)
class Augment:
    """Random crop after zero padding, and random horizontal flip, as in the published training.

    Attributes:
      padding: zeros added on every side before the crop; the published recipe for CIFAR uses 4.
      size: side of the crop in pixels; None keeps the images' own.
      flip: mirror left and right with probability 1/2.
    """

    padding: int = 0
    size: int | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InputError(f"augment.padding is {self.padding}; it must be at least 0")
        if self.size is not None and self.size < 1:
            raise InputError(f"augment.size is {self.size}; it must be at least 1")

    def output_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(H, W, C) after the crop.

        Raises:
          InputError: if the crop is larger than the padded image.
        """
        if self.size is None:
            return image_shape
        if self.size > min(image_shape[:2]) + 2 * self.padding:
            raise InputError(
                f"augment.size is {self.size}, larger than images of {image_shape[:2]} "
                f"with padding {self.padding}; lower it"
            )
        return (self.size, self.size, image_shape[2])


def _shape_of(images: jax.Array) -> tuple[int, int, int]:
    _, height, width, channels = images.shape
    return height, width, channels


def augment(config: Augment, key: jax.Array, images: jax.Array, numbers: jax.Array) -> jax.Array:
    """One random view of every image, a pure function of key and image number.

    Within a pass (one key) an image has one view, whichever mixtures use it, as published.

    Args:
      config: what to do.
      key: typed key of the pass; not a secret.
      images: [B, H, W, C], any dtype.
      numbers: integers [B], numbers of the images in the data set.

    Returns:
      [B, h, w, C] of the same dtype, with (h, w, C) = config.output_shape.
    """
    if config == Augment():
        return images
    height, width, _ = config.output_shape(_shape_of(images))
    pad = config.padding
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def view(image: jax.Array, number: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, number)
        bits = jax.random.bits(own, (3,), "uint32")
        top = (bits[0] % jnp.uint32(image.shape[0] - height + 1)).astype(jnp.int32)
        left = (bits[1] % jnp.uint32(image.shape[1] - width + 1)).astype(jnp.int32)
        crop = lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[2]))
        return jnp.where(bits[2] & 1, crop[:, ::-1], crop) if config.flip else crop

    return jax.vmap(view)(padded, numbers)


def centre(config: Augment, images: jax.Array) -> jax.Array:
    """The central crop, for evaluation: [B, H, W, C] to [B, h, w, C]."""
    height, width, _ = config.output_shape(_shape_of(images))
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    if top < 0 or left < 0:
        raise InputError(
            f"augment.size is {config.size}, larger than images of {images.shape[1:3]}; "
            "without padding they cannot be evaluated: lower it"
        )
    return images[:, top : top + height, left : left + width]
