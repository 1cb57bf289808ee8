"""instahide_jax.mixing: laws of coefficients, partners and public images; wrong laws rejected."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from instahide_jax import InputError, InstaHide, insecure_key, mixing, prng
from instahide_jax.mixing import CoefficientLaw, draw_coefficients, draw_distinct, draw_partners

INSIDE4 = CoefficientLaw(k=4, num_private=4, max_coefficient=0.65)
CROSS4 = CoefficientLaw(k=4, num_private=2, max_coefficient=0.65, min_private_mass=0.3)
CROSS6 = CoefficientLaw(k=6, num_private=2, max_coefficient=0.65, min_private_mass=0.3)
PAIR = CoefficientLaw(k=2, num_private=2, max_coefficient=0.65)
OWN = CoefficientLaw(k=4, num_private=4, max_coefficient=0.65, min_own=0.6)


def rejects(check: Callable[..., None], *args: Any) -> bool:
    """Whether a check fails, as it must for a wrong law."""
    try:
        check(*args)
    except AssertionError:
        return True
    return False


NUM_ROWS = 125_000  # one size for all, so that every law is compiled once


@functools.cache
def compiled_draw(law: CoefficientLaw) -> Callable[..., jax.Array]:
    def draw(key: jax.Array, rows: jax.Array, spoilt: jax.Array) -> jax.Array:
        keys = prng.row_keys(key, rows)
        words = prng.row_bits(keys, law.words_per_round)
        # One huge value and otherwise tiny ones in every candidate: none is accepted.
        worst = np.full((1, words.shape[1]), 0xFFFFFFFF, np.uint32)
        worst[:, :: law.k] = 0
        words = jnp.where(spoilt, worst, words)
        return draw_coefficients(keys, words, law, prng.blocks_of(law.words_per_round))

    return jax.jit(draw)


@functools.cache
def drawn(
    law: CoefficientLaw, seed: int = 0, num_rows: int = NUM_ROWS, spoilt: bool = False
) -> np.ndarray:
    rows = np.arange(num_rows, dtype=np.uint32)
    return np.asarray(compiled_draw(law)(insecure_key(seed), rows, spoilt))


def candidates(law: CoefficientLaw) -> tuple[np.ndarray, np.ndarray]:
    """One candidate per row, and whether it is accepted."""
    words = np.random.default_rng(0).integers(0, 2**32, (400_000, law.k), np.uint32)
    first, accepted = jax.jit(mixing._first_accepted, static_argnums=1)(words, law)
    return np.asarray(first), np.asarray(accepted)


def mass_of(coefficients: np.ndarray, law: CoefficientLaw) -> np.ndarray:
    return coefficients[:, : law.num_private].sum(axis=1)


def fits(coefficients: np.ndarray, law: CoefficientLaw, slack: float = 0.0) -> np.ndarray:
    return (
        (coefficients.max(axis=1) <= law.max_coefficient + slack)
        & (mass_of(coefficients, law) >= law.min_private_mass - slack)
        & (coefficients[:, 0] >= law.min_own - slack)
    )


@functools.cache
def published(law: CoefficientLaw, seed: int, num_rows: int = NUM_ROWS) -> np.ndarray:
    """The published sampler in float64: normalise |N(0, 1)|, draw rows out of bounds anew."""
    rng = np.random.default_rng(seed)

    def candidates(count: int) -> np.ndarray:
        folded = np.abs(rng.standard_normal((count, law.k)))
        return folded / folded.sum(axis=1, keepdims=True)

    rows = candidates(num_rows)
    while (wrong := ~fits(rows, law)).any():
        rows[wrong] = candidates(wrong.sum())
    return rows


def assert_law(sample: np.ndarray, law: CoefficientLaw, seed: int = 1) -> None:
    """Bounds, and Kolmogorov-Smirnov tests against the published sampler at a level of 1e-6."""
    assert fits(sample, law, slack=1e-6).all()
    reference = published(law, seed, num_rows=len(sample))
    statistics: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "own": lambda c: c[:, 0],
        "last": lambda c: c[:, -1],
        "largest": lambda c: c.max(axis=1),
        "smallest": lambda c: c.min(axis=1),
        "private mass": lambda c: mass_of(c, law) if law.num_private < law.k else c[:, 1],
        "own less next": lambda c: c[:, 0] - c[:, 1],
    }
    for name, statistic in statistics.items():
        test = stats.ks_2samp(statistic(sample), statistic(reference), method="asymp")
        assert test.pvalue > 1e-6, name


# --- coefficients ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "acceptance", "own", "largest", "mass"),
    [
        (INSIDE4, 0.928, 0.250, 0.450, 1.0),
        (CROSS4, 0.803, 0.272, 0.441, 0.544),
        (CROSS6, 0.565, 0.217, 0.342, 0.435),
        (PAIR, 0.371, 0.5, 0.574, 1.0),
    ],
    ids=["inside k=4", "cross k=4", "cross k=6", "k=2"],
)
def test_published_acceptance_and_means(
    law: CoefficientLaw, acceptance: float, own: float, largest: float, mass: float
) -> None:
    """The published figures, to their three digits (0.0005) plus four standard errors."""

    def agrees(sample: np.ndarray, value: float) -> None:
        error = sample.std() / np.sqrt(len(sample))
        assert abs(sample.mean() - value) < 0.0005 + 4 * error

    coefficients, accepted = candidates(law)
    agrees(accepted, acceptance)
    agrees(coefficients[accepted, 0], own)
    agrees(coefficients[accepted].max(axis=1), largest)
    agrees(mass_of(coefficients[accepted], law), mass)
    assert_law(coefficients[accepted], law)
    assert rejects(agrees, accepted, acceptance + 0.01)
    assert rejects(agrees, coefficients.max(axis=1), largest)


@pytest.mark.parametrize("law", [INSIDE4, CROSS6], ids=str)
def test_drawn_coefficients_follow_the_published_law(law: CoefficientLaw) -> None:
    assert_law(drawn(law), law)


@pytest.mark.parametrize("law", [INSIDE4, CROSS6], ids=str)
def test_other_laws_are_rejected(law: CoefficientLaw) -> None:
    rng = np.random.default_rng(5)
    unbounded = law._replace(max_coefficient=1.0, min_private_mass=0.0)
    once, again = published(unbounded, seed=2), published(unbounded, seed=3)
    clipped = np.clip(once, 0, law.max_coefficient)
    flat = rng.dirichlet(np.ones(law.k), 200_000)
    uniform = rng.random((200_000, law.k))
    uniform /= uniform.sum(axis=1, keepdims=True)
    wrong = {
        "without bounds": once,
        "redrawn once at most": np.where(fits(once, law)[:, None], once, again),
        "clipped and normalised": clipped / clipped.sum(axis=1, keepdims=True),
        "Dirichlet within bounds": flat[fits(flat, law)],
        "uniform within bounds": uniform[fits(uniform, law)],
        "sorted": np.sort(published(law, seed=4), axis=1)[:, ::-1],
        "without the bound on the largest": published(law._replace(max_coefficient=1.0), seed=4),
        "own and next swapped where larger": drawn(law)[:, [1, 0, *range(2, law.k)]],
    }
    swap = drawn(law)[:, 0] > drawn(law)[:, 1]
    wrong["own and next swapped where larger"][~swap] = drawn(law)[~swap]
    for name, sample in wrong.items():
        assert rejects(assert_law, sample, law), name
    assert_law(published(law, seed=4), law)


@pytest.mark.parametrize(("law", "seeds"), [(INSIDE4, 1), (CROSS6, 8)], ids=["inside", "cross"])
def test_no_bound_is_broken_in_a_million_rows(law: CoefficientLaw, seeds: int) -> None:
    for seed in range(seeds):
        coefficients = drawn(law, seed)
        assert coefficients.dtype == np.float32
        assert fits(coefficients, law, slack=1e-7).all()
        assert coefficients.max() <= np.float32(law.max_coefficient)
        assert coefficients.min() > 0
        np.testing.assert_allclose(coefficients.sum(axis=1, dtype=np.float64), 1, atol=1e-6)


def test_rows_that_are_redrawn_follow_the_law_too() -> None:
    redrawn = drawn(INSIDE4, spoilt=True)
    assert_law(redrawn, INSIDE4)
    assert len(np.unique(redrawn, axis=0)) > len(redrawn) - 3
    # Rows that are redrawn anyway: all four first candidates fail in 3 of 100,000.
    assert (redrawn == drawn(INSIDE4)).all(axis=1).sum() < 30


@pytest.mark.parametrize(
    "law",
    [
        OWN,
        CoefficientLaw(k=3, num_private=2, max_coefficient=0.5, min_private_mass=0.9999),
    ],
    ids=str,
)
def test_almost_impossible_bounds_end_and_hold(law: CoefficientLaw) -> None:
    coefficients = drawn(law, num_rows=2_000)
    assert fits(coefficients, law, slack=1e-7).all()
    np.testing.assert_allclose(coefficients.sum(axis=1, dtype=np.float64), 1, atol=1e-6)
    assert coefficients.min() >= 0
    if law is OWN:  # one candidate in eighty is accepted, so none is pulled within the bounds
        assert_law(coefficients, law)


def random_laws(count: int) -> list[CoefficientLaw]:
    """Laws that `InstaHide` accepts, many with a bound at its limit."""
    rng = np.random.default_rng(0)
    laws: list[CoefficientLaw] = []
    while len(laws) < count:
        k = int(rng.integers(2, 5))
        num_private = int(rng.integers(1, k + 1))
        largest = float(rng.choice([1 / k, rng.uniform(1 / k, 1), 1.0]))
        mass = float(rng.choice([0, rng.random(), min(num_private * largest, 0.999)]))
        own = float(rng.choice([0, rng.uniform(0, largest), largest]))
        with contextlib.suppress(InputError):
            scheme = InstaHide(
                k=k,
                num_private=num_private,
                max_coefficient=largest,
                min_private_mass=mass,
                min_own_coefficient=own,
            )
            laws.append(scheme.law)
    return laws


def test_the_last_resort_keeps_every_bound() -> None:
    pull = jax.jit(mixing._pull_within, static_argnums=1)
    rng = np.random.default_rng(1)
    for law in random_laws(16):
        outside = rng.dirichlet(0.3 * np.ones(law.k), 5).astype(np.float32)
        inside = np.asarray(pull(outside, law))
        assert fits(inside, law, slack=1e-7).all(), law
        assert inside.min() >= 0, law
        np.testing.assert_allclose(inside.sum(axis=1), 1, atol=1e-6)


def test_half_normal_quantiles() -> None:
    edges = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
    edges += [2**i + d for i in range(3, 31) for d in (-1, 0, 1)]
    random = np.random.default_rng(0).integers(0, 2**32, 200_000)
    words = np.concatenate([edges, random]).astype(np.uint32)
    values = np.asarray(jax.jit(mixing._half_normal)(words))
    assert values.dtype == np.uint32
    assert values.min() >= 1
    exact = -special.ndtri((words | np.uint32(1)) / 2.0**33)
    np.testing.assert_allclose(values * 2.0**-20, exact, atol=6e-6)
    assert (np.diff(values[np.argsort(words)].astype(np.int64)) <= 1).all()  # falls with the word


def test_golden_coefficients() -> None:
    """Literals: made from integers and one division, hence the same on every JAX version."""
    assert (drawn(INSIDE4)[:2] * 2.0**30).astype(np.int64).tolist() == [
        [86348880, 235782960, 64086324, 687523648],
        [364727680, 482310848, 131529096, 95174224],
    ]


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
    assert many_tables(8, 4)[0, :3].tolist() == [[0, 6, 7, 5], [1, 3, 0, 4], [2, 5, 4, 1]]
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
    # One round sorts by as many bits as a word has left beside the place: ties keep their order.
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
    coefficients = published(CROSS6, seed=0, num_rows=5).astype(np.float32)
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
