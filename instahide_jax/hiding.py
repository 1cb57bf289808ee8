"""What the train step asks of a hiding scheme; `NoHiding` answers with the identity.

A scheme may act on the inputs (InstaHide), on the encoder's features (TextHide), or on neither. The
train step calls both methods and never asks which scheme it has.
"""

import numbers
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax.coefficients import CoefficientLaw
from instahide_jax.errors import InputError
from instahide_jax.mixing import draw_row_partners
from instahide_jax.parallel import Neighbours
from instahide_jax.secret import unwrap

_LARGEST = 1e30  # mean, and 1 / std: pixels times this stay finite in float32

Batch = dict[str, jax.Array]
Examples = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class NoHiding:
    """The identity: images are standardised and labels made soft, nothing is hidden.

    Mean, std and dtype concern images only.

    Attributes:
      num_classes: number of classes; needed where labels are integers.
      mean: per-channel mean of the images in [0, 1] (uint8 divided by 255), or one entry for all.
      std: per-channel standard deviation, likewise, > 0. The result is (x - mean) / std. With mean
        and std None, uint8 images become [-1, 1] and float images stay as they are.
      dtype: dtype of the resulting images, "float32" or "bfloat16".
    """

    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}; it must be 'float32' or 'bfloat16'")
        if (self.mean is None) != (self.std is None):
            raise InputError(f"mean is {self.mean} and std is {self.std}; give both or neither")
        check_statistics(self.mean, self.std)
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise InputError(f"mean is {self.mean} and std is {self.std}; give as many of each")
        if self.num_classes is not None and not (
            isinstance(self.num_classes, numbers.Integral) and self.num_classes >= 1
        ):
            raise InputError(
                f"num_classes is {self.num_classes!r}; it must be an integer of at least 1"
            )

    @property
    def num_partners(self) -> int:
        """Private images that every row needs beside its own."""
        return 0

    @property
    def num_public(self) -> int:
        """Public images that every row needs."""
        return 0

    def for_data(
        self,
        num_classes: int | None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> Self:
        """The same scheme with the data set's classes (None: labels are numbers) and statistics.

        Statistics that the scheme names itself stay.

        Raises:
          InputError: if it names another number of classes.
        """
        if self.num_classes not in (None, num_classes):
            given = f"{num_classes} classes" if num_classes else "numbers as labels"
            raise InputError(
                f"the scheme's num_classes is {self.num_classes} but the data set has {given}; "
                "leave it out"
            )
        own_statistics = self.mean is not None
        return replace(
            self,
            num_classes=num_classes,
            mean=self.mean if own_statistics else mean,
            std=self.std if own_statistics else std,
        )

    def pass_partners(
        self, key: Any, num_candidates: int, first_row: int | jax.Array = 0
    ) -> jax.Array:
        """Private partners of all candidates in a pass under `key`, int32 [N, num_partners].

        Args:
          key: of the pass.
          num_candidates: N.
          first_row: number of the first; groups of one pass, which share its key, differ in it.
        """
        del key, first_row
        return jnp.zeros((num_candidates, 0), jnp.int32)

    def hide_inputs(
        self,
        key: Any,
        batch: Batch,
        public_pool: jax.Array | None = None,
        *,
        rows: jax.Array | None = None,
        private_pool: Batch | None = None,
        partners: jax.Array | None = None,
    ) -> Batch:
        """Images [B, H, W, C] and soft labels [B, classes] as the encoder sees them."""
        del key, public_pool, rows, private_pool, partners
        image = batch["image"].astype(jnp.float32)
        shift, scale = affine(self.mean, self.std, batch["image"])
        return {
            "image": ((image + shift) * scale).astype(self.dtype),
            "label": soft_labels(batch["label"], self.num_classes),
        }

    def hide_features(
        self,
        secret: Any,
        step: jax.Array,
        features: jax.Array,
        labels: jax.Array,
        public_features: jax.Array | None = None,
        neighbours: Neighbours | None = None,
    ) -> Examples:
        """Features and targets as the head sees them.

        Args:
          secret: the `SecretKey` of the client.
          step: integer [], number of the training step.
          features: [B, width], outputs of the encoder.
          labels: see `targets`.
          public_features: [M, width] of public examples.
          neighbours: where the features are rows of a group with more, on other devices.

        Returns:
          Features [B, width], and targets [B, classes] or [B].
        """
        del secret, step, public_features, neighbours
        return features, targets(labels, self.num_classes)


@dataclass(frozen=True)
class MixingScheme(NoHiding):
    """What InstaHide and TextHide share: examples are mixed with others under random coefficients.

    Attributes:
      k: examples in a mixture, >= 1.
      num_private: how many of them are private, the row's own included, by default all; the other
        k - num_private are public and never touch the label.
      max_coefficient: no coefficient exceeds it (c1 of the published code), in [1/k, 1].
      min_private_mass: the private coefficients sum to at least this (c2), in [0, 1).
      min_own_coefficient: the row's own example has at least this, in [0, max_coefficient]; 0 as
        published. For encrypted inference, where only the own example is asked about.
      renormalise_labels: divide labels by the private mass. As published they are not: with public
        parts a label sums to the private mass, an example weight that tells an observer the
        coefficients.
    """

    k: int = 4
    num_private: int | None = None
    max_coefficient: float = 1.0
    min_private_mass: float = 0.0
    min_own_coefficient: float = 0.0
    renormalise_labels: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"k is {self.k!r}; it must be an integer of at least 1")
        if not 1 <= self.private_slots <= self.k:
            raise InputError(f"num_private is {self.private_slots}; it must lie in [1, k={self.k}]")
        if not 1.0 / self.k <= self.max_coefficient <= 1:
            raise InputError(
                f"max_coefficient is {self.max_coefficient}; {self.k} coefficients that sum to 1 "
                f"need a bound in [1/k={1 / self.k:.4g}, 1]"
            )
        if not 0 <= self.min_private_mass < 1:
            raise InputError(f"min_private_mass is {self.min_private_mass}; it must lie in [0, 1)")
        if self.min_private_mass > self.private_slots * self.max_coefficient:
            raise InputError(
                f"min_private_mass is {self.min_private_mass}, more than {self.private_slots} "
                f"coefficients of at most {self.max_coefficient} can sum to; lower it or raise "
                "max_coefficient"
            )
        if not 0 <= self.min_own_coefficient <= self.max_coefficient:
            raise InputError(
                f"min_own_coefficient is {self.min_own_coefficient}; "
                f"it must lie in [0, max_coefficient={self.max_coefficient}]"
            )

    @property
    def private_slots(self) -> int:
        """`num_private`, or k where it was left out."""
        return self.k if self.num_private is None else self.num_private

    @property
    def num_partners(self) -> int:
        return self.private_slots - 1

    @property
    def num_public(self) -> int:
        return self.k - self.private_slots

    def pass_partners(
        self, key: Any, num_candidates: int, first_row: int | jax.Array = 0
    ) -> jax.Array:
        """The partners that `encrypt` and `hide` draw under `key` among so many rows.

        int32 [N, num_private - 1]; for passes of many calls, so that each need not draw them anew,
        and for groups that lie on several devices.
        """
        # `encrypt` and `hide` split the key as well; this half they leave to who gives partners.
        _, partner_parent = split_pass_key(jax.random.clone(unwrap(key)))
        rows = first_row + jnp.arange(num_candidates)
        return draw_row_partners(partner_parent, rows, self.private_slots, None)

    @property
    def law(self) -> CoefficientLaw:
        """The law of the coefficients."""
        return CoefficientLaw(
            self.k,
            self.private_slots,
            self.max_coefficient,
            self.min_private_mass,
            self.min_own_coefficient,
        )


def split_pass_key(key: Any) -> tuple[jax.Array, jax.Array]:
    """From the key of a pass the parent of its rows' keys, and the key of its partners.

    Raises:
      InputError: for a key that is no secret.
    """
    row_parent, partner_parent = jax.random.split(unwrap(key))
    return row_parent, partner_parent


def affine(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Shift and scale, float32 [1, 1, 1, channels], that standardise images: (x + shift) * scale.

    Because mixing coefficients sum to 1, applying this once after mixing equals applying it to
    every image before, and lets pools stay uint8 in memory.

    Raises:
      InputError: for a mean of another length than the images have channels.
    """
    unit = 255.0 if images.dtype == jnp.uint8 else 1.0
    if mean is None or std is None:
        mean, std = ((0.5,), (0.5,)) if images.dtype == jnp.uint8 else ((0.0,), (1.0,))
    if len(mean) not in (1, images.shape[-1]):
        raise InputError(
            f"mean has {len(mean)} entries and the images {images.shape[-1]} channels; "
            "give one entry per channel, or one for all"
        )
    mean_, std_ = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (mean, std))
    return -unit * mean_, 1.0 / (unit * std_)


def check_statistics(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Refuse a mean or standard deviation with which float32 would not stay finite."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not (
            isinstance(values, tuple)
            and all(isinstance(v, numbers.Real) and abs(v) <= _LARGEST for v in values)
        ):
            raise InputError(f"{name} is {values}; give a tuple of numbers up to {_LARGEST:g}")
    if std is not None and not min(std, default=0) >= 1 / _LARGEST:
        raise InputError(f"std is {std}; every entry must be at least {1 / _LARGEST:g}")


def check_rows(rows: Any, size: int) -> None:
    """Refuse row numbers that are no integers [size], or that would wrap around to others' numbers.

    Values are looked at in NumPy arrays alone: others may be traced.

    Raises:
      InputError: for another shape or dtype, or a number outside [0, 2**32).
    """
    if rows.shape != (size,) or rows.dtype.kind not in "iu":
        raise InputError(
            f"rows has shape {rows.shape} and dtype {rows.dtype}; give integers of shape {(size,)}"
        )
    if isinstance(rows, np.ndarray) and size and not 0 <= rows.min() <= rows.max() < 2**32:
        raise InputError(f"rows go from {rows.min()} to {rows.max()}; give numbers in [0, 2**32)")


def check_partners(partners: Any, size: int, count: int) -> None:
    """Refuse partners that are no integers [size, count].

    Raises:
      InputError: for another shape or dtype.
    """
    if partners.shape != (size, count) or partners.dtype.kind not in "iu":
        raise InputError(
            f"partners has shape {partners.shape} and dtype {partners.dtype}; give integers of "
            f"shape {(size, count)}"
        )


def soft_labels(labels: jax.Array, num_classes: int | None) -> jax.Array:
    """Labels [B] of integers as one-hot float32 [B, classes]; soft labels [B, classes] as float32.

    Raises:
      InputError: for integer labels without `num_classes`, or any other rank.
    """
    if labels.ndim == 2 and jnp.issubdtype(labels.dtype, jnp.floating):
        return labels.astype(jnp.float32)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; "
            "give integers [B] or soft labels [B, classes] of floats"
        )
    if num_classes is None:
        raise InputError(
            "integer labels need the scheme's num_classes; set it, or give soft labels"
        )
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def targets(labels: jax.Array, num_classes: int | None) -> jax.Array:
    """What a loss compares with: `soft_labels`, or numbers [B] of floats as they are, float32."""
    is_number = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.floating)
    return labels.astype(jnp.float32) if is_number else soft_labels(labels, num_classes)
