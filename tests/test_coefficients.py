"""instahide_jax.coefficients: the law of coefficients; wrong laws rejected."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from instahide_jax import InputError, InstaHide, insecure_key, prng
from instahide_jax.coefficients import (
    CoefficientLaw,
    _first_accepted,
    _half_normal,
    _pull_within,
    draw_coefficients,
)

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
    first, accepted = jax.jit(_first_accepted, static_argnums=1)(words, law)
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
    pull = jax.jit(_pull_within, static_argnums=1)
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
    values = np.asarray(jax.jit(_half_normal)(words))
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
