"""The texts of a training step: which ones, in which order, at which length."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instahide_jax.parallel import device_map
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
    """Private texts on the devices, those of every client on its own.

    Attributes:
      tokens: integers [K, N, length] each, see `data.text_sources.TokenSet`.
      labels: int32 [K, N] or float32 [K, N].
      order: int32 [K, steps, B / K], of `TextPass`.
      public: likewise; None without public texts.
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


def make_take(mesh: Mesh, clients: int = 1) -> Take:
    """The texts of a step, every private one followed by a public one, cut to the step's length.

    Args:
      mesh: of `parallel.make_mesh`.
      clients: K.
    """

    def take(
        keys: Keys, step: jax.Array, private: PrivateTexts, public: Tokens | None, length: int
    ) -> Examples:
        del keys  # the order was drawn for the pass

        def cut(tokens: Tokens, order: jax.Array, turn: jax.Array, position: jax.Array) -> Tokens:
            numbers = order[turn, position]
            return {name: array[numbers, :length] for name, array in tokens.items()}

        def on_device(
            step: jax.Array, own: tuple[PrivateTexts, Tokens | None], position: jax.Array
        ) -> Examples:
            texts, others = own
            turn = step % texts.order.shape[0]
            inputs = cut(texts.tokens, texts.order, turn, position)
            if others is not None and texts.public is not None:
                mixed_in = cut(others, texts.public, turn, position)
                inputs = jax.tree.map(_alternating, inputs, mixed_in)
            return Examples(inputs, texts.labels[texts.order[turn, position]])

        size = private.order.shape[2]
        position = jnp.tile(jnp.arange(size, dtype=jnp.int32), clients)
        return device_map(on_device, mesh)(step, (private, public), position)

    return take


def _alternating(first: jax.Array, second: jax.Array) -> jax.Array:
    """Rows of the two in turn, [2 B, ...]; in the wider of their types."""
    wide = jnp.promote_types(first.dtype, second.dtype)
    both = jnp.stack([first.astype(wide), second.astype(wide)], axis=1)
    return both.reshape(-1, *first.shape[1:])
