"""instahide_jax.texthide: what `hide` computes, what it guarantees, and what it refuses.

Example i has class i and the i-th unit vector, plus 2 in every place, as features. Labels then show
which private examples are mixed and with which coefficients, magnitudes of features show all of
them, and signs of features show the mask.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from instahide_jax import InputError, TextHide, hide, insecure_key, insecure_secret, prng

BATCH, PUBLIC, WIDTH = 16, 7, 40
MASKS = 5
FEATURES = np.eye(WIDTH, dtype=np.float32)[:BATCH] + 2
PUBLIC_FEATURES = np.eye(WIDTH, dtype=np.float32)[BATCH : BATCH + PUBLIC] + 2
LABELS = np.arange(BATCH, dtype=np.int32)
SCHEMES = {
    "intra": TextHide.intra(4, num_masks=MASKS, num_classes=BATCH),
    "inter": TextHide.inter(4, num_masks=MASKS, num_classes=BATCH),
    "fresh": TextHide.intra(4, num_masks=None, num_classes=BATCH),
    "mix only": TextHide.inter(4, num_masks=0, num_classes=BATCH),
    "unmixed": TextHide.intra(4, num_masks=MASKS, num_classes=BATCH).unmixed(),
}
MASK_KEY = 99


def rejects(check: Callable[..., None], *args: Any) -> bool:
    """Whether a check fails, as it must for a wrong implementation."""
    try:
        check(*args)
    except AssertionError:
        return True
    return False


def words_of(seed: int) -> np.ndarray:
    return np.asarray(jax.random.key_data(insecure_key(seed)))


def key_of(words: Any) -> jax.Array:
    """A new key object: for comparisons one key is used several times, which JAX would refuse."""
    return jax.random.wrap_key_data(words, impl=prng.chacha20_insecure)


def pool_of(scheme: TextHide) -> jax.Array | None:
    return scheme.mask_pool(insecure_key(MASK_KEY), WIDTH) if scheme.num_masks else None


@jax.jit
def _hide_all(words: jax.Array, rows: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {
        name: hide(
            key_of(words),
            FEATURES,
            LABELS,
            pool_of(scheme),
            scheme=scheme,
            public_features=PUBLIC_FEATURES if scheme.num_public else None,
            rows=rows,
            private_pool=None,
        )
        for name, scheme in SCHEMES.items()
    }


@pytest.fixture(scope="module")
def steps() -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    return [
        jax.tree.map(np.asarray, _hide_all(words_of(seed), np.arange(BATCH))) for seed in range(300)
    ]


# --- mixtures and labels --------------------------------------------------------------------------


def assert_one_pass(labels: np.ndarray, num_private: int) -> None:
    """Own example included, none twice, all equally often."""
    used = labels > 0
    assert used.diagonal().all()
    assert (used.sum(axis=1) == num_private).all()
    assert (used.sum(axis=0) == num_private).all()


@pytest.mark.parametrize(("name", "num_private"), [("intra", 4), ("inter", 2), ("fresh", 4)])
def test_mixtures_match_their_labels(steps: Any, name: str, num_private: int) -> None:
    for step in steps[:100]:
        features, labels = step[name]
        assert_one_pass(labels, num_private)
        coefficients = np.abs(features) - 2
        np.testing.assert_allclose(coefficients[:, :BATCH], labels, atol=1e-6)
        np.testing.assert_allclose(coefficients.sum(axis=1), 1, atol=1e-5)
        used = coefficients[:, BATCH:] > 1e-5
        assert not used[:, PUBLIC:].any()
        assert (used.sum(axis=1) <= 4 - num_private).all()
        if num_private == 4:
            assert not used.any()


def test_what_the_published_code_does_is_rejected(steps: Any) -> None:
    labels = steps[0]["intra"][1]
    rng = np.random.default_rng(3)
    repeats = sum(np.eye(BATCH)[rng.permutation(BATCH)] for _ in range(3)) + np.eye(BATCH)
    assert rejects(assert_one_pass, repeats, 4)  # permutations that may hold the row itself
    public_mass = 1 - steps[0]["inter"][1].sum(axis=1)
    shifted = np.roll(np.eye(BATCH), 3, axis=1)  # its weight on an unrelated private label
    wrong = steps[0]["inter"][1] + public_mass[:, None] * shifted
    assert rejects(assert_one_pass, wrong, 2)
    assert (labels.sum(axis=1) > 0.999).all()


def test_public_examples_have_no_label_and_all_are_used(steps: Any) -> None:
    mass = np.concatenate([step["inter"][1].sum(axis=1) for step in steps])
    assert mass.max() < 1
    assert abs(mass.mean() - 0.5) < 0.02  # two coefficients of four
    used = sum((np.abs(step["inter"][0][:, BATCH:]) > 2 + 1e-5).sum(axis=0) for step in steps)
    assert (used[PUBLIC:] == 0).all()
    assert stats.chisquare(used[:PUBLIC]).pvalue > 1e-6
    scheme = replace(SCHEMES["inter"], renormalise_labels=True, num_masks=0)
    _, labels = hide(
        insecure_key(0), FEATURES, LABELS, scheme=scheme, public_features=PUBLIC_FEATURES
    )
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)


def assert_uncapped(labels: np.ndarray) -> None:
    """7.2 % of mixtures of four exceed 0.65 without a cap (measured on the published code)."""
    share = (labels.max(axis=1) > 0.65).mean()
    assert abs(share - 0.072) < 5 * np.sqrt(0.072 * 0.928 / len(labels))


def test_coefficients_have_no_bound_unless_one_is_set(steps: Any) -> None:
    labels = np.concatenate([step["intra"][1] for step in steps])
    assert_uncapped(labels)
    capped = TextHide.intra(4, max_coefficient=0.65, num_masks=0, num_classes=BATCH)
    draw = jax.jit(lambda words: hide(key_of(words), FEATURES, LABELS, scheme=capped)[1])
    bounded = np.concatenate([draw(words_of(seed)) for seed in range(300)])
    assert bounded.max() <= np.float32(0.65)
    assert rejects(assert_uncapped, bounded)


def test_numbers_and_soft_labels_are_mixed_as_they_are(steps: Any) -> None:
    numbers = np.linspace(0, 5, BATCH).astype(np.float32)
    soft = np.eye(BATCH, dtype=np.float32)[::-1]
    scheme = replace(SCHEMES["intra"], num_masks=0, num_classes=None)
    for given in (numbers, soft):
        _, mixed = hide(key_of(words_of(0)), FEATURES, given, scheme=scheme)
        expected = steps[0]["intra"][1] @ given
        assert mixed.shape == given.shape
        np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_unmixed_is_the_mask_alone(steps: Any) -> None:
    for step in steps[:20]:
        features, labels = step["unmixed"]
        np.testing.assert_array_equal(np.abs(features), FEATURES)
        np.testing.assert_array_equal(labels, np.eye(BATCH))
        assert (features < 0).any()


# --- masks ----------------------------------------------------------------------------------------


def test_masks_come_from_the_pool_alone_and_uniformly(steps: Any) -> None:
    pool = np.asarray(pool_of(SCHEMES["intra"]))
    assert set(np.unique(pool)) == {-1, 1}

    def assert_uniform(signs: np.ndarray) -> None:
        same = (signs[:, None] == pool[None]).all(axis=2)
        assert (same.sum(axis=1) == 1).all()
        assert stats.chisquare(same.sum(axis=0)).pvalue > 1e-6

    for name in ("intra", "inter", "unmixed"):
        signs = np.concatenate([np.sign(step[name][0]) for step in steps])
        assert_uniform(signs)
    assert rejects(assert_uniform, np.concatenate([signs, pool[[0] * 400]]))
    assert rejects(assert_uniform, np.concatenate([signs, -pool]))
    for step in steps[:20]:
        assert (step["mix only"][0] > 0).all()


def assert_unbiased(signs: np.ndarray) -> None:
    """Mean and pairwise products of signs [N, width] within six standard errors of 0."""
    bound = 6 / np.sqrt(len(signs))
    assert np.abs(signs.mean(axis=0)).max() < bound
    products = signs.T @ signs / len(signs)
    assert np.abs(products[~np.eye(len(products), dtype=bool)]).max() < bound


def test_fresh_masks_are_unbiased_and_never_return(steps: Any) -> None:
    signs = np.concatenate([np.sign(step["fresh"][0]) for step in steps])
    assert_unbiased(signs)
    assert len(np.unique(signs, axis=0)) == len(signs)
    assert rejects(assert_unbiased, np.where(np.arange(len(signs))[:, None] % 8, signs, 1))


def test_the_pool_is_a_function_of_the_key() -> None:
    large = TextHide(num_masks=4_000)
    pool = np.asarray(large.mask_pool(insecure_secret(1).stream("masks"), WIDTH))
    assert pool.shape == (4_000, WIDTH)
    assert pool.dtype == np.float32
    assert_unbiased(pool)
    again = TextHide(num_masks=16).mask_pool(insecure_secret(1).stream("masks"), WIDTH)
    np.testing.assert_array_equal(again, pool[:16])
    for other in (insecure_secret(1).stream("features"), insecure_secret(2).stream("masks")):
        agreement = (np.asarray(large.mask_pool(other, WIDTH)) == pool).mean()
        assert abs(agreement - 0.5) < 6 * 0.5 / np.sqrt(pool.size)


# --- keys, rows, devices, gradients ---------------------------------------------------------------


def test_steps_differ_in_everything(steps: Any) -> None:
    partners = np.stack([step["intra"][1] > 0 for step in steps])
    assert len(np.unique(partners, axis=0)) == len(steps)
    assert len(np.unique(np.concatenate([step["intra"][1] for step in steps]), axis=0)) == 4_800


@pytest.mark.parametrize("name", ["intra", "inter", "fresh"])
def test_every_step_of_a_run_has_its_own_key(name: str) -> None:
    scheme, count = SCHEMES[name], 5
    public = PUBLIC_FEATURES if scheme.num_public else None

    def of_step(step: int | jax.Array) -> Any:
        secret = insecure_secret(MASK_KEY)
        return scheme.hide_features(secret, step, FEATURES, LABELS, public)

    made = jax.jit(of_step)
    features, labels = (
        np.stack(parts) for parts in zip(*(made(np.int32(t)) for t in range(count)), strict=True)
    )
    assert len(np.unique(labels > 0, axis=0)) == count  # partners
    coefficients = np.sort(labels, axis=2).reshape(count * BATCH, -1)
    assert len(np.unique(coefficients, axis=0)) == count * BATCH
    masks = np.sign(features)
    assert len(np.unique(masks, axis=0)) == count
    all_masks = len(np.unique(masks.reshape(count * BATCH, -1), axis=0))
    assert all_masks == (count * BATCH if name == "fresh" else MASKS)

    secret = insecure_secret(MASK_KEY)
    pool = scheme.mask_pool(secret.stream("masks"), WIDTH) if scheme.num_masks else None
    expected = jax.jit(partial(hide, scheme=scheme, public_features=public))(
        secret.stream("features").fold_in(3), FEATURES, LABELS, pool
    )
    np.testing.assert_array_equal(labels[3], expected[1])
    np.testing.assert_allclose(features[3], expected[0], rtol=1e-6)


def _hide_part(
    scheme: TextHide, public: Any, words: Any, own: Any, labels: Any, rows: Any, everyone: Any
) -> Any:
    return hide(
        key_of(words),
        own,
        labels,
        pool_of(scheme),
        scheme=scheme,
        public_features=public,
        rows=rows,
        private_pool=everyone,
    )


def test_eight_devices_give_the_bits_of_one() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(BATCH, WIDTH)).astype(np.float32)
    for name in ("inter", "fresh"):
        scheme = SCHEMES[name]
        public = PUBLIC_FEATURES if scheme.num_public else None
        run = partial(_hide_part, scheme, public)
        arguments = (words_of(1), features, LABELS, np.arange(BATCH), (features, LABELS))
        split = P("data")
        spread = jax.shard_map(
            run, mesh=mesh, in_specs=(P(), split, split, split, P()), out_specs=split
        )
        one, eight = jax.jit(run)(*arguments), jax.jit(spread)(*arguments)
        jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_gradients_flow_through_masks_and_mixtures(steps: Any) -> None:
    """The derivative of sum(w * hidden) by features is M^T (w * mask), M the coefficients."""
    weights = np.random.default_rng(0).normal(size=(BATCH, WIDTH)).astype(np.float32)
    words = words_of(0)

    def loss(features: jax.Array, public: jax.Array) -> jax.Array:
        hidden, _ = hide(
            key_of(words),
            features,
            LABELS,
            pool_of(SCHEMES["inter"]),
            scheme=SCHEMES["inter"],
            public_features=public,
        )
        return (hidden * weights).sum()

    own, public = jax.jit(jax.grad(loss, argnums=(0, 1)))(FEATURES, PUBLIC_FEATURES)
    hidden = steps[0]["inter"][0]
    coefficients = np.abs(hidden) - 2
    masked = weights * np.sign(hidden)
    np.testing.assert_allclose(own, coefficients[:, :BATCH].T @ masked, atol=1e-4)
    used = coefficients[:, BATCH : BATCH + PUBLIC]
    np.testing.assert_allclose(public, used.T @ masked, atol=1e-4)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k is 0; it must be an integer of at least 1"),
        ({"num_masks": -1}, "num_masks is -1; it must be at least 0, or None for a fresh mask"),
        ({"num_private": 5}, "num_private is 5; it must lie in [1, k=4]"),
        ({"max_coefficient": 0.2}, "max_coefficient is 0.2; 4 coefficients that sum to 1"),
    ],
)
def test_wrong_parameters(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        TextHide(**settings)
    assert "\n" not in str(error.value)


POOL = np.ones((MASKS, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": FEATURES[:, :, None]}, "features have shape (16, 40, 1)"),
        ({"features": LABELS[:, None]}, "dtype int32; give floats [batch, width]"),
        ({"labels": LABELS[:3]}, "the batch has 16 examples but labels of shape (3,)"),
        (
            {"features": FEATURES[:3], "labels": LABELS[:3]},
            "4 private examples are to be mixed but",
        ),
        ({"mask_pool": None}, "mask_pool is missing; num_masks=5 needs shape (5, 40)"),
        ({"mask_pool": POOL[:3]}, "mask_pool is of shape (3, 40); num_masks=5 needs"),
        ({"scheme": SCHEMES["inter"]}, "public_features is missing; k=4 with 2 private"),
        (
            {"scheme": SCHEMES["inter"], "public_features": PUBLIC_FEATURES[:1]},
            "public_features is of shape (1, 40); k=4 with 2 private examples needs at least 2",
        ),
        ({"rows": np.arange(3)}, "rows has shape (3,)"),
        ({"private_pool": (FEATURES[:, :9], LABELS)}, "private_pool has features of shape (16, 9)"),
        ({"private_pool": (FEATURES, np.eye(16))}, "labels of the batch are int32 (16,), those of"),
        ({"scheme": TextHide(num_masks=MASKS)}, "integer labels need the scheme's num_classes"),
        ({"key": jax.random.key(0)}, "256-bit ChaCha20 key is expected"),
        ({"key": 3}, "a secret key is expected, not a int"),
    ],
)
def test_wrong_inputs(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "key": insecure_key(0),
        "features": FEATURES,
        "labels": LABELS,
        "mask_pool": POOL,
        "scheme": SCHEMES["intra"],
    } | changes
    first = [given.pop(name) for name in ("key", "features", "labels", "mask_pool")]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        hide(*first, **given)
    assert "\n" not in str(error.value)
