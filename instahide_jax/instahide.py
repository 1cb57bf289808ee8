"""InstaHide (Huang, Song, Li, Arora, ICML 2020): `encrypt` and its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax import prng
from instahide_jax.arrays import for_jax
from instahide_jax.errors import InputError
from instahide_jax.hiding import (
    Batch,
    MixingScheme,
    affine,
    check_partners,
    check_rows,
    soft_labels,
    split_pass_key,
)
from instahide_jax.mixing import (
    MixPlan,
    draw_plan,
    draw_row_partners,
    mix,
    mix_labels,
    random_signs,
)

Mask = Literal["sign", "abs", "none"]
# What arrays are to be, for complaints.
_IMAGES = "uint8 or a float type"
_LABELS = "integers [B], or floats [B, classes]"


@dataclass(frozen=True)
class InstaHide(MixingScheme):
    """Parameters of InstaHide, beside those of every `MixingScheme`; k is at least 2.

    `inside` and `cross` give the published settings.

    Attributes:
      mask: "sign" flips the sign of every value at random; "abs" releases magnitudes, which
        protects neither more nor less and needs no random signs; "none" is plain Mixup.
    """

    max_coefficient: float = 0.65
    mask: Mask = "sign"

    def __post_init__(self) -> None:
        if self.k < 2:
            raise InputError(f"k is {self.k}, so nothing is mixed; it must be at least 2")
        super().__post_init__()
        if self.mask not in ("sign", "abs", "none"):
            raise InputError(f"mask is {self.mask!r}; choose 'sign', 'abs' or 'none'")

    @classmethod
    def inside(cls, k: int = 4, **settings: Any) -> Self:
        """All k images are private (inside-dataset InstaHide, section 3.1)."""
        return cls(k=k, **settings)

    @classmethod
    def cross(cls, k: int = 6, **settings: Any) -> Self:
        """Two images are private, k - 2 public (cross-dataset InstaHide, section 3.2)."""
        return cls(**{"k": k, "num_private": min(2, k), "min_private_mass": 0.3} | settings)

    @classmethod
    def mixup(cls, k: int = 4, **settings: Any) -> Self:
        """k private images and no mask: Mixup with the coefficients of InstaHide; hides nothing."""
        return cls(k=k, mask="none", **settings)

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
        """`encrypt` with this scheme."""
        return encrypt(
            key,
            batch,
            public_pool,
            scheme=self,
            rows=rows,
            private_pool=private_pool,
            partners=partners,
        )


def encrypt(
    key: Any,
    batch: Batch,
    public_pool: jax.Array | None = None,
    *,
    scheme: InstaHide | None = None,
    rows: jax.Array | None = None,
    private_pool: Batch | None = None,
    partners: jax.Array | None = None,
) -> Batch:
    """Hide a batch of images: x~ = s * sum_i c_i x_i, label sum over private i of c_i y_i.

    A pure function without collectives or host transfers: use it under jit (`scheme` static), vmap,
    shard_map, pmap and grad. A key must serve one pass only. Under the same key a row has the same
    coefficients and mask, bit for bit, on any number of devices; and the same partners where they
    are drawn from the same candidates: give `private_pool` or `partners`.

    Guarantees: coefficients keep the bounds of `scheme` in every row and follow its law; no mixture
    holds the same image twice; in one pass (rows 0..N-1 over N candidates) every candidate is used
    exactly `num_private` times; public images never touch a label; signs are unbiased and
    independent between pixels, rows and keys.

    Args:
      key: a `SecretKey` or typed ChaCha20 key, shape []. Generators of at most 128 bits are
        refused.
      batch: "image" [B, H, W, C], uint8 or float, and "label", integers [B] in [0, num_classes) or
        soft [B, classes]; arrays of NumPy or JAX, or what NumPy makes an array of. Values are
        checked in NumPy arrays alone: a label out of range in an array of JAX, which may be traced,
        becomes a label of zeros.
      public_pool: [M, H, W, C] of the dtype of the images, M >= k - num_private; needed in cross
        mode.
      scheme: the parameters; `InstaHide.cross()` by default.
      rows: integers [B], each row's number in the pass, by default 0..B-1. Every secret of a row
        comes from `fold_in`(key, number), so a row number must not return under the same key: on a
        mesh pass global numbers, or every device repeats the same masks.
      private_pool: the candidates for private partners, a dict like `batch` with N entries, of
        which candidate rows[i] < N is never drawn as a partner of row i (it is the row's own image,
        where the pool contains the batch). By default the batch itself:
        on a mesh a row's partners then depend on which rows share its device.
      partners: int32 [B, num_private - 1], positions in the candidates, where they were drawn
        before for a whole pass (`InstaHide.pass_partners`) because drawing them anew per batch
        would be wasteful.

    Returns:
      "image" [B, H, W, C] of `scheme.dtype`, standardised by the scheme's mean and std after
      mixing, and "label" float32 [B, classes].

    Raises:
      InputError: for a key that is no secret, shapes or dtypes that do not match, a missing or too
        small public pool, k larger than the candidates, entries of `batch` other than image and
        label.
    """
    scheme = InstaHide.cross() if scheme is None else scheme
    row_parent, partner_parent = split_pass_key(key)
    batch = _as_arrays("batch", batch)
    candidates = batch if private_pool is None else _as_arrays("private_pool", private_pool)
    if public_pool is not None:
        public_pool = for_jax(public_pool, "images of public_pool", _IMAGES)
    rows = None if rows is None else for_jax(rows, "rows", "integers [B]")
    partners = None if partners is None else for_jax(partners, "partners", "integers")
    _check(batch, candidates, public_pool, scheme, rows, partners)
    batch, candidates, public_pool = jax.tree.map(jnp.asarray, (batch, candidates, public_pool))
    is_part = rows is not None and private_pool is None
    rows = jnp.arange(len(batch["image"])) if rows is None else rows
    if partners is None:
        num_candidates = None if is_part else candidates["image"].shape[0]
        partners = draw_row_partners(partner_parent, rows, scheme.private_slots, num_candidates)
    keys = prng.row_keys(row_parent, rows.astype(jnp.uint32))
    return encrypt_rows(keys, batch, candidates, public_pool, partners, scheme=scheme)


def encrypt_rows(
    keys: jax.Array,
    batch: Batch,
    candidates: Batch,
    public_pool: jax.Array | None,
    partners: jax.Array,
    *,
    scheme: InstaHide,
) -> Batch:
    """`encrypt` of rows whose keys and partners are known, so that they may be of several passes.

    Nothing is checked here.

    Args:
      keys: typed keys [B], each `fold_in` of the row key of its pass (`split_pass_key`).
      batch, candidates, public_pool: arrays of JAX, as for `encrypt`.
      partners: int32 [B, num_private - 1], positions in the candidates.
      scheme: the parameters.
    """
    _, height, width, channels = batch["image"].shape
    pool_size = 0 if public_pool is None else public_pool.shape[0]
    words = (-(-height // 32), width, channels)
    plan, sign_words = draw_plan(
        keys, partners, scheme.law, pool_size, words, unused=scheme.mask != "sign"
    )
    return {
        "image": _mixed_images(plan, sign_words, batch, candidates, public_pool, scheme),
        "label": _mixed_labels(plan, batch, candidates, scheme),
    }


def _mixed_images(
    plan: MixPlan,
    sign_words: jax.Array,
    batch: Batch,
    candidates: Batch,
    public_pool: jax.Array | None,
    scheme: InstaHide,
) -> jax.Array:
    own, pool = batch["image"], candidates["image"]
    parts = [own, *(pool[plan.partners[:, i]] for i in range(scheme.num_partners))]
    if public_pool is not None:
        parts += [public_pool[plan.public[:, i]] for i in range(scheme.num_public)]
    shift, scale = affine(scheme.mean, scheme.std, own)
    # Addition first: a product followed by an addition may round once or twice (see `mix`).
    image = (mix(plan.coefficients, parts) + shift) * scale
    if scheme.mask == "sign":
        image = image * random_signs(sign_words, own.shape[1])
    elif scheme.mask == "abs":
        image = jnp.abs(image)
    return image.astype(scheme.dtype)


def _mixed_labels(plan: MixPlan, batch: Batch, candidates: Batch, scheme: InstaHide) -> jax.Array:
    own = soft_labels(batch["label"], scheme.num_classes)
    partners = [
        soft_labels(candidates["label"][plan.partners[:, i]], scheme.num_classes)
        for i in range(scheme.num_partners)
    ]
    return mix_labels(plan.coefficients, [own, *partners], scheme.renormalise_labels)


def _as_arrays(name: str, part: Any) -> Batch:
    """Images and labels in dtypes that JAX takes, where they are nothing else."""
    if not isinstance(part, Mapping):
        raise InputError(f"{name} is a {type(part).__name__}; give a dict of 'image' and 'label'")
    if set(part) != {"image", "label"}:
        raise InputError(
            f"{name} has entries {sorted(map(str, part))}; only 'image' and 'label' can be hidden, "
            "and anything else would be released in clear: remove it"
        )
    return {
        "image": for_jax(part["image"], f"images of {name}", _IMAGES),
        "label": for_jax(part["label"], f"labels of {name}", _LABELS),
    }


def _check(
    batch: Batch,
    candidates: Batch,
    public_pool: jax.Array | None,
    scheme: InstaHide,
    rows: jax.Array | None,
    partners: jax.Array | None,
) -> None:
    """Everything that shapes and dtypes can tell, hence also while tracing."""
    for name, part in (("batch", batch), ("private_pool", candidates)):
        if part["image"].ndim != 4:
            raise InputError(
                f"images have shape {part['image'].shape} in {name}; give [batch, height, width, "
                "channels]"
            )
        if part["label"].shape[:1] != part["image"].shape[:1]:
            raise InputError(
                f"{name} has {part['image'].shape[0]} images but labels of shape "
                f"{part['label'].shape}; give one label per image"
            )
        labels, limit = part["label"], scheme.num_classes
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.size and limit:
            low, high = labels.min(), labels.max()  # of arrays of JAX, which may be traced, unknown
            if not 0 <= low <= high < limit:
                raise InputError(
                    f"labels of {name} go from {low} to {high}; the scheme has {limit} classes: "
                    f"give integers in [0, {limit})"
                )
        if labels.ndim == 2 and limit not in (None, labels.shape[1]):
            raise InputError(
                f"labels of {name} have {labels.shape[1]} classes, the scheme num_classes={limit}; "
                "they must be alike"
            )
    classes = [
        part["label"].shape[1] if part["label"].ndim == 2 else scheme.num_classes
        for part in (batch, candidates)
    ]
    if None not in classes and classes[0] != classes[1]:
        raise InputError(
            f"labels of the batch have {classes[0]} classes, those of private_pool {classes[1]}; "
            "they must be alike"
        )
    image = batch["image"]
    if not len(image):
        raise InputError("the batch holds no image; give at least one")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise InputError(f"images have dtype {image.dtype}; give uint8 or a float type")
    if rows is not None:
        check_rows(rows, len(image))
    if partners is not None:
        check_partners(partners, len(image), scheme.num_partners)
    pools = {"private_pool": candidates["image"]}
    if scheme.num_public:
        if public_pool is None:
            raise InputError(
                f"k={scheme.k} with {scheme.private_slots} private images needs a public pool of "
                f"at least {scheme.num_public} images; pass public_pool, or use InstaHide.inside"
            )
        pools["public_pool"] = public_pool
    for name, pool in pools.items():
        if pool.shape[1:] != image.shape[1:] or pool.dtype != image.dtype:
            raise InputError(
                f"{name} holds {pool.dtype} images of shape {pool.shape[1:]}, the batch "
                f"{image.dtype} of {image.shape[1:]}; they must be alike"
            )
    if public_pool is not None and public_pool.shape[0] < scheme.num_public:
        raise InputError(
            f"public_pool has {public_pool.shape[0]} images; every mixture needs "
            f"{scheme.num_public} distinct ones: give more, or lower k"
        )
    num_candidates = candidates["image"].shape[0]
    if partners is None and num_candidates < scheme.private_slots:
        raise InputError(
            f"{scheme.private_slots} private images are to be mixed but there are {num_candidates} "
            "candidates; lower k, or give a larger batch or private_pool"
        )
    last = len(image) - 1 if rows is None else rows.max() if isinstance(rows, np.ndarray) else 0
    if partners is None and candidates is not batch and last >= num_candidates:
        raise InputError(
            f"row {last} has no candidate of its own among the {num_candidates} of private_pool; "
            "give one for every row, or partners"
        )
