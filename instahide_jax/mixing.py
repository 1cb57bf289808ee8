"""Who is mixed with whom and with which coefficients; shared by InstaHide and TextHide.

Every draw that belongs to one row comes from that row's own key, so it does not depend on which
device holds the row, on how many rows there are, or on the backend.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from instahide_jax import prng
from instahide_jax.coefficients import CoefficientLaw, draw_coefficients, private_mass


class MixPlan(NamedTuple):
    """The mixture of every row.

    Attributes:
      partners: int32 [B, num_private - 1], positions among the private candidates; the row's own
        image is not listed.
      public: int32 [B, num_public], positions in the public pool.
      coefficients: float32 [B, k], in the order own, partners, public; every row sums to 1.
    """

    partners: jax.Array
    public: jax.Array
    coefficients: jax.Array


def draw_partners(key: jax.Array, num_candidates: int, num_private: int) -> jax.Array:
    """Private partners of every candidate in one pass over all of them.

    Column 0 is the identity and every other column a random permutation, so each candidate is used
    exactly `num_private` times; no row holds the same candidate twice (the published code lets one
    in about N rows be mixed with itself). Where a fresh permutation repeats a candidate of its row,
    the entry is exchanged with that of a row drawn uniformly from those where the exchange repeats
    nothing. With fewer than 2 * num_private candidates such a row need not exist; the columns are
    then cyclic shifts of one random order.

    Args:
      key: typed key.
      num_candidates: N, at least num_private.
      num_private: columns.

    Returns:
      int32 [N, num_private].
    """
    identity = jnp.arange(num_candidates, dtype=jnp.int32)
    if num_private == 1:
        return identity[:, None]
    shuffle_key, repair_key = jax.random.split(key)
    if num_candidates < 2 * num_private:
        order = jax.random.permutation(shuffle_key, identity)
        place = jnp.zeros_like(order).at[order].set(identity)
        shifts = jnp.arange(num_private, dtype=jnp.int32)
        return order[(place[:, None] + shifts[None, :]) % num_candidates]
    shuffled = _shuffled(shuffle_key, num_candidates, num_private - 1)
    return _without_repeats(repair_key, jnp.concatenate([identity[None, :], shuffled])).T


def draw_row_partners(
    key: jax.Array, rows: jax.Array, num_private: int, num_candidates: int | None
) -> jax.Array:
    """Private partners of some rows of a pass, int32 [B, num_private - 1].

    Args:
      key: typed key of the pass.
      rows: integers [B], numbers of the rows in the pass.
      num_private: private slots, the row's own included.
      num_candidates: candidate rows[i] is row i itself; or None: the candidates are the rows of
        this call. Calls that share a key, one per device, then part by their first row; row 0
        begins the pass, and its call draws what a pass over its rows would.
    """
    if num_candidates is not None:
        return draw_partners(key, num_candidates, num_private)[rows, 1:]
    of_pass, of_part = (jax.random.key_data(k) for k in (key, jax.random.fold_in(key, rows[0])))
    words = jnp.where(rows[0] == 0, of_pass, of_part)
    part_key = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
    return draw_partners(part_key, len(rows), num_private)[:, 1:]


def _shuffled(key: jax.Array, size: int, count: int) -> jax.Array:
    """Independent uniform permutations of 0..size-1, int32 [count, size].

    The entries are sorted in words of 64 bits, random ones above and the entry below: XLA sorts an
    array of words without companions several times as fast as the records of random bits and entry
    that `jax.random.permutation` sorts. Of up to 2**b entries two tie, and keep their order, with
    probability 2**(b - 64).
    """
    entry_bits = np.uint64(max(1, (size - 1).bit_length()))
    low, high = jax.random.bits(key, (2, count, size), "uint32")
    with jax.enable_x64(True):  # for 64-bit words; the caller's setting stays as it is
        random_bits = (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)
        entries = lax.broadcasted_iota(jnp.uint64, (count, size), 1)
        ordered = lax.sort((random_bits >> entry_bits << entry_bits) | entries, dimension=1)
        return (ordered & ((np.uint64(1) << entry_bits) - np.uint64(1))).astype(jnp.int32)


def _without_repeats(key: jax.Array, columns: jax.Array) -> jax.Array:
    """Exchange entries within permutations [columns, N] until no row holds an entry twice.

    Columns are mended one after the other, each against those before it. Each turn proposes a
    uniform row, and exchanges entries where that mends one row and breaks none. About one row per
    pair of columns is wrong, whatever the size, and of a large pass nearly every row will do.
    """
    count, size = columns.shape

    def repeats(columns: jax.Array) -> jax.Array:
        of_column = [(columns[:c] == columns[None, c]).any(axis=0) for c in range(1, count)]
        return jnp.stack(of_column)  # [columns - 1, N]

    def exchange(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        columns, turn = carry
        first = jnp.argmax(repeats(columns))
        column, row = first // size + 1, first % size
        draw = jax.random.bits(jax.random.fold_in(key, turn), (), "uint32")
        other = (draw % jnp.uint32(size)).astype(jnp.int32)
        rows, swapped = jnp.stack([row, other]), jnp.stack([other, row])
        entries = columns[column, swapped]
        before = jnp.arange(count)[:, None] < column
        suits = ~((columns[:, rows] == entries[None, :]) & before).any()
        kept = jnp.where(suits, entries, entries[::-1])
        return columns.at[column, rows].set(kept), turn + 1

    columns, _ = lax.while_loop(
        lambda carry: repeats(carry[0]).any(), exchange, (columns, jnp.uint32(0))
    )
    return columns


def draw_distinct(words: jax.Array, size: int) -> jax.Array:
    """A uniform random subset per row, by Floyd's algorithm.

    Uniform up to a relative bias of size / 2**32 that the reduction of 32-bit words leaves.

    Args:
      words: uint32 [B, n], random, one word per element.
      size: number of things to choose from, n <= size < 2**31.

    Returns:
      int32 [B, n], distinct values in [0, size).
    """
    count = words.shape[1]
    chosen: list[jax.Array] = []
    for i in range(count):
        last = size - count + i
        pick = (words[:, i] % jnp.uint32(last + 1)).astype(jnp.int32)
        if chosen:
            repeated = (jnp.stack(chosen) == pick[None, :]).any(axis=0)
            pick = jnp.where(repeated, last, pick)
        chosen.append(pick)
    return jnp.stack(chosen, axis=1) if chosen else jnp.zeros((words.shape[0], 0), jnp.int32)


def draw_plan(
    keys: jax.Array,
    partners: jax.Array,
    law: CoefficientLaw,
    pool_size: int,
    extra_shape: tuple[int, ...],
    *,
    unused: bool = False,
) -> tuple[MixPlan, jax.Array]:
    """The plan of every row, and random words of its own for what the scheme does beyond mixing.

    All words of a row come from one stretch of its key stream: one call of the block function over
    all rows costs half of what a call per kind of draw does.

    Args:
      keys: typed row keys [B].
      partners: int32 [B, num_private - 1].
      law: of the coefficients; says how many slots are public.
      pool_size: public candidates.
      extra_shape: of the words of a row.
      unused: leave room for the words but do not draw them, so that schemes that differ in their
        use share a plan.

    Returns:
      The plan, and uint32 [B, *extra_shape] ([B, 0] where unused).
    """
    num_public = law.k - law.num_private
    ends = (law.words_per_round, law.words_per_round + num_public)
    num_words = ends[1] + math.prod(extra_shape)
    words = prng.row_bits(keys, ends[1] if unused else num_words)
    plan = MixPlan(
        partners=partners.astype(jnp.int32),
        public=draw_distinct(words[:, ends[0] : ends[1]], pool_size),
        coefficients=draw_coefficients(keys, words[:, : ends[0]], law, prng.blocks_of(num_words)),
    )
    return plan, words[:, ends[1] :].reshape(keys.size, *((0,) if unused else extra_shape))


def mix(coefficients: jax.Array, parts: Sequence[jax.Array]) -> jax.Array:
    """Weighted sum over slots, float32 [B, ...].

    The sum is written out over the slots. XLA then fuses the gathers that produced the parts, the
    products and whatever follows into one pass without materialising k copies.

    Every bit of the result is the same on any number of devices. Parts of uint8 are mixed in exact
    integer arithmetic, coefficients rounded to multiples of 2**-23, which a CPU also does faster.
    For other parts the order of addition is fixed, and every product is multiplied by a one that
    the compiler cannot see through: it may fuse a product with the addition that follows, without
    rounding in between, and does so in some loops and not in others. Fusing the exact product with
    one changes nothing.

    Args:
      coefficients: float32 [B, k], of [0, 1], no row with a sum above 1 by more than rounding.
      parts: k arrays [B, ...], of any numeric dtype.
    """
    shape = (-1,) + (1,) * (parts[0].ndim - 1)
    if all(part.dtype == jnp.uint8 for part in parts):
        # 255 * 2**23 is the largest such power that int32 holds.
        weights = jnp.round(coefficients * 2**23).astype(jnp.int32)
        total = sum(
            weights[:, i].reshape(shape) * part.astype(jnp.int32) for i, part in enumerate(parts)
        )
        return jnp.asarray(total).astype(jnp.float32) * jnp.float32(2**-23)
    one = (coefficients[:, 0] >= 0).astype(jnp.float32).reshape(shape)
    return jnp.asarray(
        sum(
            coefficients[:, i].reshape(shape) * part.astype(jnp.float32) * one
            for i, part in enumerate(parts)
        )
    )


def mix_labels(
    coefficients: jax.Array, parts: Sequence[jax.Array], renormalise: bool = False
) -> jax.Array:
    """Labels [B, ...] of mixtures: public images have none, so the private mass is their weight.

    Args:
      coefficients: float32 [B, k], private slots first.
      parts: labels of the private slots, [B, ...] each.
      renormalise: divide by the private mass.
    """
    private = coefficients[:, : len(parts)]
    if renormalise:
        private = private / private_mass(private, len(parts))[:, None]
    return mix(private, parts)


def random_signs(words: jax.Array, height: int) -> jax.Array:
    """One sign per value, float32 [B, height, W, C] in {-1, +1}, each from one random bit.

    Neighbouring values take theirs from neighbouring words: with neighbouring bits of one word, XLA
    does not vectorise the pass that mixes, and takes one and a half times as long on a CPU. The
    price are unused bits where the height is no multiple of 32.

    Args:
      words: uint32 [B, R, W, C] with R = ceil(height / 32), random. Bit 31 - j of the words in row
        r gives the signs of row R * j + r.
      height: rows of signs.
    """
    shifts = jnp.arange(32, dtype=jnp.uint32)[None, :, None, None, None]
    sign_bits = (words[:, None] << shifts) & jnp.uint32(0x80000000)
    # As the sign bit of 1.0: the product with +-1 is exact and has a gradient.
    one = jnp.uint32(0x3F800000)
    signs = lax.bitcast_convert_type(sign_bits | one, jnp.float32)
    return signs.reshape(words.shape[0], -1, *words.shape[2:])[:, :height]
