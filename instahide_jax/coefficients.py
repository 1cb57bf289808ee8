"""The law of mixing coefficients, and drawing from it row by row."""

from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from instahide_jax import prng

# The redraw of coefficients ends after this many rounds of at least 4 candidates each. A law that
# accepts one candidate in fifty is cut off once in 1e9 rows; the published laws accept one in three
# or more.
MAX_ROUNDS = 256
# A round of a redraw tries several times the candidates of the first draw at once, and is for a
# quarter of the rows, since few are left: under the published laws one turn does for most batches.
_CANDIDATES_FACTOR = 4
_REDRAWN_SHARE = 4


class CoefficientLaw(NamedTuple):
    """The law of one row's coefficients: |N(0,1)| in every slot, normalised, within bounds.

    A draw that breaks a bound is redrawn as a whole (Huang et al. 2020, section 3 and their code).

    Attributes:
      k: number of slots.
      num_private: leading slots that hold private images.
      max_coefficient: largest coefficient allowed.
      min_private_mass: smallest sum of the private slots allowed.
      min_own: smallest coefficient of slot 0 allowed.
    """

    k: int
    num_private: int
    max_coefficient: float = 1.0
    min_private_mass: float = 0.0
    min_own: float = 0.0

    @property
    def words_per_round(self) -> int:
        """Words of one round of candidates: as many candidates as 16 words give, at least 1."""
        return self.k * max(1, 16 // self.k)


def draw_coefficients(
    keys: jax.Array, first_words: jax.Array, law: CoefficientLaw, next_block: int = 0
) -> jax.Array:
    """Mixing coefficients of every row, float32 [B, k], within the law's bounds without exception.

    Candidates of a row are tried in order until one is accepted: first those in `first_words`, then
    those further on in the row's key stream. Should MAX_ROUNDS rounds not do, which only bounds
    that leave next to no room can cause, the last candidate is drawn towards the centre of the
    bounds until it keeps them.

    Args:
      keys: typed row keys [B].
      first_words: uint32 [B, law.words_per_round], random.
      law: the law.
      next_block: block of the key streams from which on they are unused.
    """
    coefficients, accepted = _first_accepted(first_words, law)
    num_words = _CANDIDATES_FACTOR * law.words_per_round
    num_blocks = prng.blocks_of(num_words)
    rows_per_turn = -(-keys.size // _REDRAWN_SHARE)

    def redraw(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        rounds, kept, settled = carry
        # Those that are not settled come first. XLA finds them fast among floats alone.
        rows = lax.top_k(jnp.where(settled, 0.0, 1.0), rows_per_turn)[1]
        first_blocks = next_block + rounds[rows] * jnp.uint32(num_blocks)
        fresh, fits = _first_accepted(prng.row_bits(keys[rows], num_words, first_blocks), law)
        was_settled = settled[rows]
        rounds = rounds.at[rows].add(jnp.uint32(1))
        kept = kept.at[rows].set(jnp.where(was_settled[:, None], kept[rows], fresh))
        ended = was_settled | fits | (rounds[rows] >= MAX_ROUNDS)
        return rounds, kept, settled.at[rows].set(ended)

    # Zeros that inside shard_map vary over the mesh as the rows do, which a loop's carry must.
    rounds = first_words[:, 0] & jnp.uint32(0)
    _, coefficients, _ = lax.while_loop(
        lambda carry: ~carry[2].all(), redraw, (rounds, coefficients, accepted)
    )
    accepted = _within(coefficients, law)
    return lax.cond(
        accepted.all(),
        lambda: coefficients,
        lambda: jnp.where(accepted[:, None], coefficients, _pull_within(coefficients, law)),
    )


def _half_normal_table() -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of |N(0, 1)| in units of 2**-20, and the steps between them, int32 [32 * 128].

    There are 128 cells per octave of the probability of a larger value, from 1 down to 2**-32.
    """
    tails = [2.0 ** -(octave + 1) * (1 + i / 128) for octave in range(32) for i in range(129)]
    quantiles = [round(-NormalDist().inv_cdf(tail / 2) * 2**20) for tail in tails]
    octaves = np.array(quantiles, np.int32).reshape(32, 129)
    return octaves[:, :-1].ravel(), np.diff(octaves, axis=1).ravel()


_QUANTILES, _QUANTILE_STEPS = _half_normal_table()


def _half_normal(words: jax.Array) -> jax.Array:
    """|N(0, 1)| from 32 random bits: uint32 in units of 2**-20, at least 1, exact to 5e-6.

    A word over 2**32 is the probability of a larger value. The arithmetic is that of integers: XLA
    evaluates erf_inv otherwise in the vectorised part of a loop than in its remainder, so that
    the last bits of a row would depend on how many rows its device holds.
    """
    words = words | jnp.uint32(1)
    octave = lax.clz(words)
    rest = words << octave << jnp.uint32(1)  # the bits below the leading one
    cell = (octave * jnp.uint32(128) + (rest >> jnp.uint32(25))).astype(jnp.int32)
    share = ((rest >> jnp.uint32(9)) & jnp.uint32(0xFFFF)).astype(jnp.int32)  # of 2**16
    steps = (jnp.asarray(_QUANTILE_STEPS)[cell] * share) >> 16
    return (jnp.asarray(_QUANTILES)[cell] + steps).astype(jnp.uint32) | jnp.uint32(1)


def _first_accepted(words: jax.Array, law: CoefficientLaw) -> tuple[jax.Array, jax.Array]:
    """The first candidate of each row within bounds (else its last), and whether there is one."""
    folded = _half_normal(words).reshape(words.shape[0], -1, law.k)
    total = folded.sum(axis=-1, keepdims=True, dtype=jnp.uint32)
    candidates = folded.astype(jnp.float32) / total.astype(jnp.float32)
    fits = _within(candidates, law)
    fits_or_last = fits.at[:, -1].set(True)
    chosen = jnp.argmax(fits_or_last, axis=1)
    return jnp.take_along_axis(candidates, chosen[:, None, None], axis=1)[:, 0], fits.any(axis=1)


def private_mass(coefficients: jax.Array, num_private: int) -> jax.Array:
    """Sum of the leading `num_private` entries of the last axis, added in order."""
    return jnp.asarray(sum(coefficients[..., i] for i in range(num_private)))


def _within(coefficients: jax.Array, law: CoefficientLaw) -> jax.Array:
    return (
        (coefficients.max(axis=-1) <= law.max_coefficient)
        & (private_mass(coefficients, law.num_private) >= law.min_private_mass)
        & (coefficients[..., 0] >= law.min_own)
    )


def _pull_within(coefficients: jax.Array, law: CoefficientLaw) -> jax.Array:
    """Move rows towards the centre of the bounds, by halves of the way, until they keep them."""
    # The margin of a few float32 roundings keeps the sum of the private slots above its bound.
    mass = max(law.num_private / law.k, law.min_private_mass + 1e-6, law.min_own)
    mass = min(mass, law.num_private * law.max_coefficient, 1.0)
    own = max(law.min_own, mass / law.num_private)
    partners = (mass - own) / max(1, law.num_private - 1)
    public = (1.0 - mass) / max(1, law.k - law.num_private)
    centre = jnp.array(
        [own] + [partners] * (law.num_private - 1) + [public] * (law.k - law.num_private),
        jnp.float32,
    )[None, None, :]
    # Powers of two, because a product that rounds would not round alike in every loop (see `mix`).
    shares = np.append(0.5 ** np.arange(1, 21), 0).astype(np.float32)[None, :, None]
    path = centre + (coefficients[:, None, :] - centre) * shares
    fits = _within(path, law).at[:, -1].set(True)
    return jnp.take_along_axis(path, jnp.argmax(fits, axis=1)[:, None, None], axis=1)[:, 0]
