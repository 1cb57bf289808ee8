"""TextHide (Huang, Song, Chen, Li, Arora, Findings of EMNLP 2020): `hide` and its parameters."""

from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp

from instahide_jax import prng
from instahide_jax.arrays import for_jax
from instahide_jax.errors import InputError
from instahide_jax.hiding import (
    Examples,
    MixingScheme,
    check_partners,
    check_rows,
    split_pass_key,
    targets,
)
from instahide_jax.mixing import (
    draw_plan,
    draw_row_partners,
    mix,
    mix_labels,
    random_signs,
)
from instahide_jax.parallel import Neighbours
from instahide_jax.secret import unwrap

# A pool stays on the device. Beyond this a fresh mask for every example is the better choice.
MAX_MASKS = 2**20


@dataclass(frozen=True)
class TextHide(MixingScheme):
    """Parameters of TextHide, beside those of every `MixingScheme`.

    `intra` and `inter` give the published settings. Their coefficients have no upper bound, unlike
    those of InstaHide.

    Attributes:
      num_masks: masks in the client's pool (m of the paper), from which every example takes one at
        random; 0 mixes only, None takes a fresh mask for every example (m = infinity).
    """

    num_masks: int | None = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_masks is not None and self.num_masks not in range(MAX_MASKS + 1):
            bound = "at least 0" if self.num_masks < 0 else f"an integer up to {MAX_MASKS:,}"
            raise InputError(
                f"num_masks is {self.num_masks}; it must be {bound}, or None for a fresh mask per "
                "example"
            )

    @classmethod
    def intra(cls, k: int = 4, **settings: Any) -> Self:
        """All k examples are private (TextHide-intra, section 3)."""
        return cls(k=k, **settings)

    @classmethod
    def inter(cls, k: int = 4, **settings: Any) -> Self:
        """Every other slot is public (TextHide-inter, section 3 and the published code)."""
        return cls(**{"k": k, "num_private": (k + 1) // 2} | settings)

    def unmixed(self) -> Self:
        """The same masks without mixing: how the owner of the masks evaluates."""
        return replace(
            self,
            k=1,
            num_private=None,
            max_coefficient=1.0,
            min_private_mass=0.0,
            min_own_coefficient=0.0,
        )

    def mask_pool(self, key: Any, width: int) -> jax.Array:
        """The client's pool of secret masks, float32 [num_masks, width] in {-1, +1}.

        A function of the key alone, so there is nothing to store: a run that starts again has the
        same masks. A larger pool begins with the masks of a smaller one.

        Args:
          key: a `SecretKey` or typed ChaCha20 key that serves nothing else, such as
            `secret.stream("masks")`; each client its own.
          width: of the features.
        """
        count = self.num_masks or 0
        keys = prng.row_keys(unwrap(key), jnp.arange(count, dtype=jnp.uint32))
        return _signs(prng.row_bits(keys, -(-width // 32)), width)

    def hide_features(
        self,
        secret: Any,
        step: jax.Array,
        features: jax.Array,
        labels: jax.Array,
        public_features: jax.Array | None = None,
        neighbours: Neighbours | None = None,
    ) -> Examples:
        """`hide` with this scheme; pool and key are streams of the client's secret."""
        key = secret.stream("features").fold_in(step)
        pool = self._masks_of(secret, features.shape[1])
        if neighbours is None:
            return hide(key, features, labels, pool, scheme=self, public_features=public_features)
        partners = self.pass_partners(key, neighbours.size, neighbours.first)
        candidates, public_features = neighbours.gather(((features, labels), public_features))
        return hide(
            key,
            features,
            labels,
            pool,
            scheme=self,
            public_features=public_features,
            rows=neighbours.position,
            private_pool=candidates,
            partners=partners[neighbours.position - neighbours.first],
        )

    def mask_features(
        self, secret: Any, draw: int | jax.Array, features: jax.Array, rows: jax.Array
    ) -> jax.Array:
        """Features [B, width] under masks and unmixed, as their owner evaluates.

        Args:
          secret: the `SecretKey` of the run, for the masks of its training.
          draw: number of the draw; another one draws every row's mask anew.
          features: [B, width], outputs of the encoder.
          rows: integers [B], numbers of the examples in their set.
        """
        key = secret.stream("evaluate").fold_in(draw)
        pool, unread = self._masks_of(secret, features.shape[1]), jnp.zeros(len(features))
        return hide(key, features, unread, pool, scheme=self.unmixed(), rows=rows)[0]

    def _masks_of(self, secret: Any, width: int) -> jax.Array | None:
        return self.mask_pool(secret.stream("masks"), width) if self.num_masks else None


def hide(
    key: Any,
    features: jax.Array,
    labels: jax.Array,
    mask_pool: jax.Array | None = None,
    *,
    scheme: TextHide,
    public_features: jax.Array | None = None,
    rows: jax.Array | None = None,
    private_pool: Examples | None = None,
    partners: jax.Array | None = None,
) -> Examples:
    """Hide features: z~ = mask * sum_i c_i z_i, label sum over private i of c_i y_i.

    A pure function without collectives or host transfers, differentiable in all features: gradients
    flow through masks and mixtures into the encoder. A key must serve one step only. Under the same
    key a row has the same coefficients and mask, bit for bit, on any number of devices; and the
    same partners where they are drawn from the same candidates: give `private_pool`.

    Guarantees: coefficients keep the bounds of `scheme` in every row and follow its law; no mixture
    holds the same example twice (the published code lets one in six of a batch of 32 do so); every
    private example is used exactly `num_private` times in a batch; public examples never touch a
    label (the published code gives their weight to labels of unrelated private examples); masks are
    uniform over the pool, independent between rows and keys.

    Args:
      key: a `SecretKey` or typed ChaCha20 key, shape [].
      features: [B, width] float, outputs of an encoder; arrays of NumPy or JAX, or what NumPy makes
        an array of.
      labels: integers [B], soft labels [B, classes], or numbers [B] of floats, which are mixed as
        they are (regression).
      mask_pool: float32 [num_masks, width] of `TextHide.mask_pool`; needed unless num_masks is 0 or
        None.
      scheme: the parameters.
      public_features: [M, width], M >= k - num_private, of public examples; needed where the scheme
        has public slots.
      rows: integers [B], positions in the global batch, by default 0..B-1. Every secret of a row
        comes from `fold_in`(key, position): on a mesh pass global positions.
      private_pool: (features [N, width], labels) of the candidates for partners, of which candidate
        rows[i] is row i itself: on a mesh the gathered global batch. By default the batch: a
        row's partners then depend on which rows share its device.
      partners: int32 [B, num_private - 1], positions in the candidates, where they were drawn
        before (`TextHide.pass_partners`).

    Returns:
      Features [B, width] and labels, [B, classes] or [B], float32.

    Raises:
      InputError: for a key that is no secret, shapes that do not match, a missing or too small
        public batch or mask pool, k larger than the candidates.
    """
    row_parent, partner_parent = split_pass_key(key)
    features, labels = _as_examples("the batch", (features, labels))
    candidates = (features, labels)
    if private_pool is not None:
        candidates = _as_examples("private_pool", private_pool)
    mask_pool, public_features = (
        None if values is None else for_jax(values, name, "floats")
        for values, name in ((mask_pool, "masks"), (public_features, "public features"))
    )
    rows = None if rows is None else for_jax(rows, "rows", "integers [B]")
    partners = None if partners is None else for_jax(partners, "partners", "integers")
    _check(features, labels, candidates, mask_pool, public_features, scheme, rows, partners)
    features, labels, candidates, mask_pool, public_features = jax.tree.map(
        jnp.asarray, (features, labels, candidates, mask_pool, public_features)
    )
    size, width = features.shape
    rows = jnp.arange(size) if rows is None else rows
    if partners is None:
        num_candidates = None if private_pool is None else len(candidates[0])
        partners = draw_row_partners(partner_parent, rows, scheme.private_slots, num_candidates)
    keys = prng.row_keys(row_parent, rows.astype(jnp.uint32))
    pool_size = 0 if public_features is None else len(public_features)
    # The words of a row beyond its plan: one chooses from the pool, or the signs of a fresh mask.
    num_words = -(-width // 32) if scheme.num_masks is None else min(1, scheme.num_masks)
    plan, words = draw_plan(keys, partners, scheme.law, pool_size, (num_words,))

    chosen = [plan.partners[:, i] for i in range(scheme.num_partners)]
    parts = [features, *(candidates[0][rows_of] for rows_of in chosen)]
    if public_features is not None:
        parts += [public_features[plan.public[:, i]] for i in range(scheme.num_public)]
    mixed = mix(plan.coefficients, parts)
    if scheme.num_masks is None:
        mixed = mixed * _signs(words, width)
    elif scheme.num_masks:
        assert mask_pool is not None
        # Uniform up to a relative bias of num_masks / 2**32.
        mixed = mixed * mask_pool[words[:, 0] % jnp.uint32(scheme.num_masks)]
    of_slots = [targets(labels, scheme.num_classes)]
    of_slots += [targets(candidates[1][rows_of], scheme.num_classes) for rows_of in chosen]
    return mixed, mix_labels(plan.coefficients, of_slots, scheme.renormalise_labels)


def _as_examples(name: str, examples: Any) -> Examples:
    """Features and labels in dtypes that JAX takes."""
    if not isinstance(examples, tuple) or len(examples) != 2:
        raise InputError(f"{name} is a {type(examples).__name__}; give a tuple (features, labels)")
    features, labels = examples
    return (
        for_jax(features, f"features of {name}", "floats"),
        for_jax(labels, f"labels of {name}"),
    )


def _signs(words: jax.Array, width: int) -> jax.Array:
    """Random signs [B, width] of words [B, ceil(width / 32)]."""
    return random_signs(words[:, :, None, None], width)[:, :, 0, 0]


def _check(
    features: jax.Array,
    labels: jax.Array,
    candidates: Examples,
    mask_pool: jax.Array | None,
    public_features: jax.Array | None,
    scheme: TextHide,
    rows: jax.Array | None,
    partners: jax.Array | None,
) -> None:
    """Everything that shapes and dtypes can tell, hence also while tracing."""
    if features.ndim != 2 or not jnp.issubdtype(features.dtype, jnp.floating):
        raise InputError(
            f"features have shape {features.shape} and dtype {features.dtype}; give floats "
            "[batch, width]"
        )
    size, width = features.shape
    for name, (some, theirs) in (("the batch", (features, labels)), ("private_pool", candidates)):
        if some.shape[1:] != (width,):
            raise InputError(f"{name} has features of shape {some.shape}; give [N, {width}]")
        if theirs.shape[:1] != some.shape[:1]:
            raise InputError(
                f"{name} has {len(some)} examples but labels of shape {theirs.shape}; give one "
                "label per example"
            )
    if candidates[1].shape[1:] != labels.shape[1:] or candidates[1].dtype != labels.dtype:
        raise InputError(
            f"labels of the batch are {labels.dtype} {labels.shape}, those of private_pool "
            f"{candidates[1].dtype} {candidates[1].shape}; they must be alike"
        )
    if rows is not None:
        check_rows(rows, size)
    if partners is not None:
        check_partners(partners, size, scheme.num_partners)
    if len(candidates[0]) < scheme.private_slots:
        raise InputError(
            f"{scheme.private_slots} private examples are to be mixed but there are "
            f"{len(candidates[0])} candidates; lower k, or give a larger batch"
        )
    if scheme.num_masks and (mask_pool is None or mask_pool.shape != (scheme.num_masks, width)):
        given = "missing" if mask_pool is None else f"of shape {mask_pool.shape}"
        raise InputError(
            f"mask_pool is {given}; num_masks={scheme.num_masks} needs shape "
            f"{(scheme.num_masks, width)}: make it with scheme.mask_pool(key, {width})"
        )
    if scheme.num_public:
        given = "missing" if public_features is None else f"of shape {public_features.shape}"
        if (
            public_features is None
            or public_features.shape[1:] != (width,)
            or len(public_features) < scheme.num_public
        ):
            raise InputError(
                f"public_features is {given}; k={scheme.k} with {scheme.private_slots} private "
                f"examples needs at least {scheme.num_public} public ones of width {width}: pass "
                "encoded public text, or use TextHide.intra"
            )
