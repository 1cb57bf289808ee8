"""instahide_jax.mixing: laws of partners and public images; wrong laws rejected."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from instahide_jax import insecure_key, mixing, prng
from instahide_jax.mixing import draw_distinct, draw_partners, draw_row_partners


def rejects(check: Callable[..., None], *args: Any) -> bool:
    """Whether a check fails, as it must for a wrong law."""
    try:
        check(*args)
    except AssertionError:
        return True
    return False


# --- partners -------------------------------------------------------------------------------------


def assert_one_pass(table: np.ndarray, num_candidates: int, num_private: int) -> None:
    """Own image first, every candidate `num_private` times, no candidate twice in a row."""
    assert table.shape == (num_candidates, num_private)
    assert table.dtype == np.int32
    identity = np.arange(num_candidates)
    np.testing.assert_array_equal(table[:, 0], identity)
    np.testing.assert_array_equal(np.sort(table, axis=0), np.tile(identity[:, None], num_private))
    in_order = np.sort(table, axis=1)
    assert (in_order[:, 1:] > in_order[:, :-1]).all()


@functools.cache
def many_tables(num_candidates: int, num_private: int, count: int = 4_000) -> np.ndarray:
    draw = jax.vmap(lambda key: draw_partners(key, num_candidates, num_private))
    return np.asarray(jax.jit(draw)(jax.random.split(insecure_key(0), count)))


@pytest.mark.parametrize(("num_candidates", "num_private"), [(1, 1), (4, 4), (7, 4), (8, 4)])
def test_partners_in_small_passes(num_candidates: int, num_private: int) -> None:
    for table in many_tables(num_candidates, num_private):
        assert_one_pass(table, num_candidates, num_private)


def test_partners_in_a_large_pass() -> None:
    table = np.asarray(jax.jit(draw_partners, static_argnums=(1, 2))(insecure_key(0), 50_000, 3))
    assert_one_pass(table, 50_000, 3)
    others = table[:, 1:]
    assert abs(np.corrcoef(others.T)[0, 1]) < 0.03  # 6 standard errors
    assert abs(np.corrcoef(others[:, 0], table[:, 0])[0, 1]) < 0.03


def test_plain_permutations_are_rejected() -> None:
    """The published code: about one row of a pass is mixed with itself."""
    rng = np.random.default_rng(0)
    columns = [np.arange(1000), *(rng.permutation(1000) for _ in range(3))]
    assert rejects(assert_one_pass, np.stack(columns, axis=1).astype(np.int32), 1000, 4)


def assert_partners_uniform(tables: np.ndarray) -> None:
    """Chi-square tests of the partner of every row and column over all other candidates."""
    _, num_candidates, num_private = tables.shape
    offsets = (tables - tables[:, :, :1]) % num_candidates
    for row in range(num_candidates):
        for column in range(1, num_private):
            counts = np.bincount(offsets[:, row, column], minlength=num_candidates)
            assert counts[0] == 0
            assert stats.chisquare(counts[1:]).pvalue > 1e-7


@pytest.mark.parametrize(("num_candidates", "num_private"), [(4, 4), (7, 4), (8, 4)])
def test_partners_are_uniform_over_the_others(num_candidates: int, num_private: int) -> None:
    assert_partners_uniform(many_tables(num_candidates, num_private))


def with_neighbours(rng: np.random.Generator, num_candidates: int) -> np.ndarray:
    """A wrong repair: a row that holds its own image takes its neighbour's entry."""
    entries = rng.permutation(num_candidates)
    while (fixed := np.flatnonzero(entries == np.arange(num_candidates))).size:
        pair = [fixed[0], (fixed[0] + 1) % num_candidates]
        entries[pair] = entries[pair[::-1]]
    return np.stack([np.arange(num_candidates), entries], axis=1)


def test_partners_that_are_not_uniform_are_rejected() -> None:
    rng = np.random.default_rng(0)
    order = np.arange(8)
    constant_shift = np.tile(np.stack([order, (order + 3) % 8], axis=1)[None], (4_000, 1, 1))
    assert rejects(assert_partners_uniform, constant_shift)
    repaired = np.stack([with_neighbours(rng, 8) for _ in range(4_000)])
    assert rejects(assert_partners_uniform, repaired)
    # A random shift of the given order is uniform for one row and column, but only N - 1 passes
    # exist; the cyclic passes for few candidates go through a random order instead.
    assert len(np.unique(many_tables(7, 4).reshape(4_000, -1), axis=0)) > 300


def test_passes_differ_between_keys() -> None:
    assert many_tables(8, 4)[0, :3].tolist() == [[0, 7, 4, 6], [1, 2, 5, 7], [2, 4, 7, 3]]
    assert len(np.unique(many_tables(8, 4).reshape(4_000, -1), axis=0)) == 4_000


def assert_uniform_permutations(permutations: np.ndarray) -> None:
    """Chi-square test over all orders of four, and of the pairs of two columns [passes, 2, 4]."""
    place_values = np.array([64, 16, 4, 1])
    orders, numbers = np.unique(permutations @ place_values, return_inverse=True)
    assert len(orders) == 24
    numbers = numbers.reshape(-1, 2)
    for counts in (np.bincount(numbers[:, 0]), np.bincount(numbers @ np.array([24, 1]))):
        assert stats.chisquare(counts).pvalue > 1e-6


def test_shuffles_of_four_are_uniform_and_independent() -> None:
    draw = jax.jit(jax.vmap(lambda key: mixing._shuffled(key, 4, 2)))
    permutations = np.asarray(draw(jax.random.split(insecure_key(0), 30_000)))
    assert_uniform_permutations(permutations)
    assert rejects(assert_uniform_permutations, np.repeat(permutations[:, :1], 2, axis=1))
    biased = np.where((np.arange(30_000) % 20 == 0)[:, None, None], np.arange(4), permutations)
    assert rejects(assert_uniform_permutations, biased)


def assert_no_order_left(permutation: np.ndarray) -> None:
    """A random permutation of N rises at (N - 1) / 2 +- sqrt((N + 1) / 12) places."""
    size = len(permutation)
    np.testing.assert_array_equal(np.sort(permutation), np.arange(size))
    rises = (np.diff(permutation) > 0).sum()
    assert abs(rises - (size - 1) / 2) < 5 * np.sqrt((size + 1) / 12)


@pytest.mark.parametrize("size", [2**15, 50_000, 2**17 + 1])
def test_large_shuffles_keep_nothing_of_the_order(size: int) -> None:
    for permutation in np.asarray(
        jax.jit(mixing._shuffled, static_argnums=(1, 2))(insecure_key(0), size, 2)
    ):
        assert_no_order_left(permutation)
    # What words of 32 bits have left beside the entry is too little: ties keep their order.
    few_bits = np.random.default_rng(0).integers(0, 2 ** (32 - (size - 1).bit_length()), size)
    assert rejects(assert_no_order_left, np.argsort(few_bits, kind="stable"))


# --- public images --------------------------------------------------------------------------------


def words(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)


def assert_uniform_subsets(chosen: np.ndarray, size: int) -> None:
    """No row repeats a value, and every subset is as frequent as any other."""
    in_order = np.sort(chosen, axis=1)
    assert in_order.min() >= 0
    assert in_order.max() < size
    assert (in_order[:, 1:] > in_order[:, :-1]).all()
    _, counts = np.unique(in_order, axis=0, return_counts=True)
    assert len(counts) == special.comb(size, chosen.shape[1], exact=True)
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize(("count", "size"), [(1, 7), (2, 5), (4, 6), (4, 9)])
def test_public_images_are_uniform_subsets(count: int, size: int) -> None:
    chosen = jax.jit(draw_distinct, static_argnums=1)(words(50_000, count), size)
    assert chosen.dtype == jnp.int32
    assert_uniform_subsets(np.asarray(chosen), size)


def test_wrong_subsets_are_rejected() -> None:
    picks = words(50_000, 3).astype(np.int64) % 6
    stepped = picks.copy()
    for i in (1, 2):  # steps on where a value is taken: favours neighbours
        while (taken := (stepped[:, :i] == stepped[:, i : i + 1]).any(axis=1)).any():
            stepped[taken, i] = (stepped[taken, i] + 1) % 6
    for wrong in (picks, stepped, np.sort(picks, axis=1) + np.arange(3)):
        assert rejects(assert_uniform_subsets, wrong, 6)


def test_extreme_sizes_of_the_public_pool() -> None:
    assert draw_distinct(words(5, 0), 0).shape == (5, 0)
    everything = np.sort(np.asarray(draw_distinct(words(100, 4), 4)), axis=1)
    np.testing.assert_array_equal(everything, np.tile(np.arange(4), (100, 1)))
    size = 2**31 - 1
    chosen = np.asarray(draw_distinct(words(10_000, 2), size))
    assert chosen.min() >= 0
    assert chosen.max() < size
    assert stats.kstest(chosen[:, 1] / size, "uniform").pvalue > 1e-6


# --- mixtures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "bfloat16"])
def test_mix_is_the_weighted_sum(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    coefficients = rng.dirichlet(np.ones(6), 5).astype(np.float32)
    parts = [jnp.asarray(rng.integers(0, 256, (5, 3, 2)), dtype) for _ in range(6)]
    expected = sum(
        coefficients[:, i, None, None].astype(np.float64) * np.asarray(part, np.float64)
        for i, part in enumerate(parts)
    )
    mixed = mixing.mix(jnp.asarray(coefficients), parts)
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            mixing.mix(jnp.asarray(coefficients[:, ::-1]), parts), expected, rtol=1e-6
        )


@pytest.mark.parametrize("height", [1, 28, 31, 32, 33, 64, 95])
def test_random_signs_use_one_bit_each(height: int) -> None:
    rows = -(-height // 32)
    words = np.random.default_rng(0).integers(0, 2**32, (5, rows, 3, 2), np.uint32)
    signs = np.asarray(mixing.random_signs(jnp.asarray(words), height))
    assert signs.shape == (5, height, 3, 2)
    for row in range(height):
        bits = (words[:, row % rows] >> np.uint32(31 - row // rows)) & 1
        np.testing.assert_array_equal(signs[:, row], 1.0 - 2.0 * bits)


def test_rows_without_a_pool_are_a_pass_of_their_own():
    """The default of `encrypt` and `hide` is what the batch as pool gives; other parts differ."""
    words = jax.random.key_data(insecure_key(4))

    def drawn(first, size):
        key = jax.random.wrap_key_data(words, impl=prng.chacha20_insecure)
        rows = first + jnp.arange(12)
        return np.asarray(draw_row_partners(key, rows, 4, size))

    np.testing.assert_array_equal(drawn(0, None), drawn(0, 12))
    parts = [drawn(first, None) for first in (0, 12, 24)]
    assert len({part.tobytes() for part in parts}) == 3
    for part in parts:
        assert (part != np.arange(12)[:, None]).all()
