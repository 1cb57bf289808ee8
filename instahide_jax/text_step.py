"""The texts of a training step: which ones, in which order, at which length."""

from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from instahide_jax.parallel import sharded
from instahide_jax.training import Examples, Keys, Take

Tokens = dict[str, jax.Array]

# Batches among which texts are sorted by length. With more, batches are more alike in length and
# less alike a random sample.
WINDOW = 50


class TextPass(NamedTuple):
    """One pass over a training set in memory; everything is drawn anew for every pass.

    Attributes:
      order: int32 [steps, B], numbers of the private texts of every step.
      public: int32 [steps, B], numbers of the public texts; None without any.
      buckets: int [steps], which length every step is computed at.
    """

    order: np.ndarray
    public: np.ndarray | None
    buckets: np.ndarray


class PrivateTexts(NamedTuple):
    """Private texts on the devices.

    Attributes:
      tokens: integers [N, length] each, see `data.text_sources.TokenSet`.
      labels: int32 [N] or float32 [N].
      order: of `TextPass`.
      public: of `TextPass`.
    """

    tokens: Tokens
    labels: jax.Array
    order: jax.Array
    public: jax.Array | None


def buckets_of(mask: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """The first of the ascending `lengths` that holds each row of a mask [N, L], int [N]."""
    return np.searchsorted(lengths, mask.sum(axis=1))


def plan_pass(
    seed: jax.Array,
    epoch: int,
    batch_size: int,
    buckets: np.ndarray,
    public_buckets: np.ndarray | None = None,
) -> TextPass:
    """Order, public texts and lengths of one pass, a pure function of its arguments.

    Every private text occurs at most once; which ones are left over is random. Random batches would
    nearly always hold a long text, so texts are sorted by bucket among `WINDOW` batches, and the
    batches put in random order. Batches of long private texts get the batches of long public ones.

    Args:
      seed: typed key of what is no secret.
      epoch: number of the pass.
      batch_size: B, private texts per step and public texts per step.
      buckets: int [N] of `buckets_of`.
      public_buckets: int [M], M >= B.
    """
    steps = len(buckets) // batch_size
    order_key, public_key = (
        jax.random.fold_in(jax.random.fold_in(seed, purpose), epoch) for purpose in (0, 4)
    )
    order_key, shuffle_key = jax.random.split(order_key)
    order = _grouped(order_key, buckets, batch_size)
    longest = buckets[order].max(axis=1)
    public = None
    if public_buckets is not None:
        per_turn = len(public_buckets) // batch_size
        turns = jax.random.split(public_key, -(-steps // per_turn))
        batches = [_grouped(key, public_buckets, batch_size) for key in turns]
        public = np.concatenate(batches)[:steps]
        public_longest = public_buckets[public].max(axis=1)
        by_rank = np.empty_like(public)
        by_rank[np.argsort(longest, kind="stable")] = public[
            np.argsort(public_longest, kind="stable")
        ]
        public = by_rank
        longest = np.maximum(longest, public_buckets[public].max(axis=1))
    shuffled = np.asarray(jax.random.permutation(shuffle_key, steps))
    return TextPass(
        order[shuffled], None if public is None else public[shuffled], longest[shuffled]
    )


def _grouped(key: jax.Array, buckets: np.ndarray, batch_size: int) -> np.ndarray:
    """A random order of all whole batches, int32 [N // B, B], alike in bucket where possible."""
    count = len(buckets) // batch_size * batch_size
    order = np.asarray(jax.random.permutation(key, len(buckets)), np.int32)[:count]
    width = WINDOW * batch_size
    windows = [order[start : start + width] for start in range(0, count, width)]
    in_order = [rows[np.argsort(buckets[rows], kind="stable")] for rows in windows]
    return np.concatenate(in_order).reshape(-1, batch_size)


def make_take(mesh: Mesh) -> Take:
    """The texts of a step, private and public, cut to the step's length, sharded over "data"."""
    by_rows = sharded(mesh)

    def rows_of(order: jax.Array, step: jax.Array) -> jax.Array:
        rows = lax.dynamic_index_in_dim(order, step % order.shape[0], keepdims=False)
        return lax.with_sharding_constraint(rows, by_rows)

    def cut(tokens: Tokens, rows: jax.Array, length: int) -> Tokens:
        return {name: array[rows, :length] for name, array in tokens.items()}

    def take(
        keys: Keys, step: jax.Array, private: PrivateTexts, public: Tokens | None, length: int
    ) -> Examples:
        del keys  # the order was drawn for the pass
        rows = rows_of(private.order, step)
        others = None
        if public is not None and private.public is not None:
            others = cut(public, rows_of(private.public, step), length)
        return Examples(cut(private.tokens, rows, length), private.labels[rows], others)

    return take
