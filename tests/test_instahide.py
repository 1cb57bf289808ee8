"""instahide_jax.instahide: what `encrypt` computes, what it guarantees, and what it refuses.

Images are coded so that an encryption shows its plan: image i has class i, so that a label shows
which private images are mixed and with which coefficients; in cross mode image i is also the i-th
unit vector, so that an unmasked mixture shows the public ones.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from instahide_jax import (
    InstaHide,
    SecretKey,
    coefficients,
    encrypt,
    insecure_key,
    insecure_secret,
    mixing,
    prng,
)

Result = dict[str, dict[str, np.ndarray]]
MASKS = ("sign", "abs", "none")
SHAPE = (33, 1, 1)  # one row more than a random word has signs
NUM_VALUES = 33


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
    """A new key object: for comparisons several encryptions use one key, which JAX would refuse."""
    return jax.random.wrap_key_data(words, impl=prng.chacha20_insecure)


# --- inside: a batch of 16 mixed within itself, under the three masks -----------------------------


@pytest.fixture(scope="module")
def inside() -> Callable[..., Result]:
    """Encryptions of one batch under all masks; as pixels + 2, so that no value is zero."""
    images = np.eye(NUM_VALUES, dtype=np.float32)[:16].reshape(16, *SHAPE)
    batch = {"image": images, "label": np.arange(16, dtype=np.int32)}
    schemes = {m: InstaHide.inside(4, mask=m, num_classes=16, mean=(-2,), std=(1,)) for m in MASKS}

    @jax.jit
    def compiled(words: jax.Array, rows: jax.Array) -> dict[str, dict[str, jax.Array]]:
        results = {
            mask: encrypt(key_of(words), batch, scheme=scheme, rows=rows)
            for mask, scheme in schemes.items()
        }
        return results | {"method": schemes["sign"].hide_inputs(key_of(words), batch, rows=rows)}

    def run(seed: int, rows: np.ndarray | None = None) -> Result:
        rows = np.arange(16) if rows is None else rows
        return jax.tree.map(np.asarray, compiled(words_of(seed), rows))

    return run


@pytest.fixture(scope="module")
def passes(inside: Callable[..., Result]) -> list[Result]:
    return [inside(seed) for seed in range(200)]


def signs_of(result: Result) -> np.ndarray:
    return np.sign(result["sign"]["image"]).reshape(16, NUM_VALUES)


def assert_one_pass(labels: np.ndarray, num_private: int) -> None:
    """Coefficients [rows, candidates]: own image included, none twice, all equally often."""
    used = labels > 0
    assert used.diagonal().all()
    assert (used.sum(axis=1) == num_private).all()
    assert (used.sum(axis=0) == num_private).all()


def test_inside_mixtures(passes: list[Result]) -> None:
    for result in passes:
        labels = result["none"]["label"]
        assert_one_pass(labels, 4)
        assert labels.max() <= np.float32(0.65)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        # The images are mixed by the coefficients of the labels; values 16.. are in no image.
        mixed = result["none"]["image"].reshape(16, NUM_VALUES) - 2
        np.testing.assert_allclose(mixed, np.pad(labels, ((0, 0), (0, 17))), atol=1e-6)
    partners = np.stack([result["none"]["label"] > 0 for result in passes])
    assert len(np.unique(partners, axis=0)) == len(passes)
    others = partners[:, 0, 1:].sum(axis=0)  # partners of row 0
    assert stats.chisquare(others).pvalue > 1e-6


def test_a_pass_with_a_repeated_image_is_rejected(passes: list[Result]) -> None:
    labels = passes[0]["none"]["label"]
    plain = np.eye(16)
    for _ in range(3):  # the published code: permutations that may hold the row itself
        plain = plain + np.eye(16)[np.random.default_rng(3).permutation(16)]
    shifted = np.roll(labels, 1, axis=1)
    for wrong in (plain, shifted, np.where(labels == labels[0].max(), 0, labels)):
        assert rejects(assert_one_pass, wrong, 4)


def test_masks_are_one_encryption_in_three_forms(passes: list[Result]) -> None:
    for result in passes[:20]:
        np.testing.assert_array_equal(np.abs(result["sign"]["image"]), result["abs"]["image"])
        np.testing.assert_array_equal(np.abs(result["none"]["image"]), result["abs"]["image"])
        for form in ("abs", "sign", "method"):
            np.testing.assert_array_equal(result[form]["label"], result["none"]["label"])
        np.testing.assert_array_equal(result["method"]["image"], result["sign"]["image"])
        assert set(np.unique(signs_of(result))) == {-1, 1}
        assert (result["none"]["image"] > 0).all()


def assert_random_signs(signs: np.ndarray) -> None:
    """Signs [steps, rows, values]: unbiased and uncorrelated, to 6 standard errors, none twice."""
    steps, rows, values = signs.shape
    assert abs(signs.mean()) < 6 / np.sqrt(signs.size)
    masks = signs.reshape(-1, values)
    assert len(np.unique(masks, axis=0)) == len(masks)
    for axis, count in ((2, steps * rows), (1, steps * values), (0, rows * values)):
        vectors = np.moveaxis(signs, axis, 0).reshape(signs.shape[axis], -1)
        assert np.abs(vectors.mean(axis=1)).max() < 6 / np.sqrt(count)
        products = vectors @ vectors.T / count
        assert np.abs(products - np.eye(len(products))).max() < 6 / np.sqrt(count)


def test_signs_are_random_over_pixels_rows_and_steps(passes: list[Result]) -> None:
    assert_random_signs(np.stack([signs_of(result) for result in passes]))


def test_wrong_masks_are_rejected(passes: list[Result]) -> None:
    signs = np.stack([signs_of(result) for result in passes])
    rng = np.random.default_rng(0)
    wrong = {
        "one mask per step": np.broadcast_to(signs[:, :1], signs.shape),
        "one mask per row": np.broadcast_to(signs[:1], signs.shape),
        "one sign per image": np.broadcast_to(signs[:, :, :1], signs.shape),
        "one sign per pixel pair": np.repeat(signs[:, :, ::2], 2, axis=2)[:, :, :NUM_VALUES],
        "a step returns": np.concatenate([signs[:-1], signs[:1]]),
        "two rows are opposite": np.concatenate([signs[:, :-1], -signs[:, :1]], axis=1),
        "biased": np.where(rng.random(signs.shape) < 0.52, 1.0, -1.0),
        "one biased pixel": np.where(np.arange(NUM_VALUES) == 5, 1.0, signs),
        "no mask": np.ones_like(signs),
    }
    for name, masks in wrong.items():
        assert rejects(assert_random_signs, masks), name


def test_calls_with_other_rows_share_nothing(inside: Callable[..., Result]) -> None:
    """Two devices with one key and their own row numbers, each mixing within itself."""
    first, second = inside(0), inside(0, np.arange(16, 32))
    same = inside(0, np.arange(16))
    assert not ((first["none"]["label"] > 0) == (second["none"]["label"] > 0)).all(axis=1).all()
    coefficients = [np.sort(r["none"]["label"], axis=1)[:, -4:] for r in (first, second)]
    assert not (coefficients[0] == coefficients[1]).any()
    assert rejects(assert_random_signs, np.stack([signs_of(first), signs_of(same)]))
    assert (signs_of(first) != signs_of(second)).any(axis=1).all()
    assert abs((signs_of(first) * signs_of(second)).mean()) < 6 / np.sqrt(16 * NUM_VALUES)
    jax.tree.map(np.testing.assert_array_equal, first, same)


def test_clients_under_vmap(inside: Callable[..., Result]) -> None:
    images = np.eye(NUM_VALUES, dtype=np.float32)[:16].reshape(16, *SHAPE)
    batch = {
        "image": np.stack([images] * 3),
        "label": np.tile(np.arange(16, dtype=np.int32), (3, 1)),
    }
    scheme = InstaHide.inside(4, num_classes=16, mean=(-2,), std=(1,))

    def hide(words: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return encrypt(SecretKey(key_of(words)), batch, scheme=scheme)

    secrets = np.stack([words_of(client) for client in range(3)])
    hidden = jax.jit(jax.vmap(hide))(secrets, batch)
    for client in range(3):
        alone = inside(client)["sign"]
        for name in ("image", "label"):
            np.testing.assert_array_equal(hidden[name][client], alone[name])


# --- cross: 24 private candidates, 9 public images, in calls of 8 rows ----------------------------


@pytest.fixture(scope="module")
def cross() -> Callable[..., Result]:
    """Unmasked and masked encryptions of chosen rows of a pass, as unit vectors."""
    vectors = np.eye(NUM_VALUES, dtype=np.float32).reshape(NUM_VALUES, *SHAPE)
    pool = {"image": jnp.asarray(vectors[:24]), "label": jnp.eye(24)}
    public = vectors[24:]
    plain = InstaHide.cross(6, mask="none")
    schemes = {
        "plain": plain,
        "masked": InstaHide.cross(6),
        "renormalised": InstaHide.cross(6, mask="none", renormalise_labels=True),
    }

    @jax.jit
    def compiled(words: jax.Array, rows: jax.Array) -> dict[str, dict[str, jax.Array]]:
        own = jax.tree.map(lambda x: x[rows], pool)
        results = {
            name: encrypt(key_of(words), own, public, scheme=scheme, rows=rows, private_pool=pool)
            for name, scheme in schemes.items()
        }
        partners = plain.pass_partners(key_of(words), 24)[rows]
        results["given partners"] = encrypt(
            key_of(words),
            own,
            public,
            scheme=plain,
            rows=rows,
            private_pool=pool,
            partners=partners,
        )
        return results

    def run(seed: int, rows: np.ndarray) -> Result:
        results = jax.tree.map(np.asarray, compiled(words_of(seed), rows))
        for part in results.values():
            part["image"] = part["image"].reshape(len(rows), NUM_VALUES)
        return results

    return run


@pytest.fixture(scope="module")
def cross_passes(cross: Callable[..., Result]) -> list[Result]:
    """30 whole passes, of three calls each."""

    def whole(seed: int) -> Result:
        calls = [cross(seed, np.arange(i, i + 8)) for i in (0, 8, 16)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *calls)

    return [whole(seed) for seed in range(30)]


def test_cross_mixtures(cross_passes: list[Result]) -> None:
    used_publics = np.zeros(9)
    for result in cross_passes:
        coefficients, labels = result["plain"]["image"], result["plain"]["label"]
        # The label carries the private mass, and nothing of the public images.
        np.testing.assert_array_equal(labels, coefficients[:, :24])
        assert_one_pass(labels, 2)
        assert ((coefficients[:, 24:] > 0).sum(axis=1) == 4).all()
        np.testing.assert_allclose(coefficients.sum(axis=1), 1, atol=1e-6)
        assert coefficients.max() <= np.float32(0.65)
        mass = labels.sum(axis=1)
        assert mass.min() >= 0.3 - 1e-7
        assert mass.max() < 1
        np.testing.assert_allclose(
            result["renormalised"]["label"], labels / mass[:, None], rtol=1e-6
        )
        np.testing.assert_array_equal(result["renormalised"]["image"], coefficients)
        np.testing.assert_array_equal(np.abs(result["masked"]["image"]), coefficients)
        jax.tree.map(np.testing.assert_array_equal, result["given partners"], result["plain"])
        used_publics += (coefficients[:, 24:] > 0).sum(axis=0)
    # Fewer than independent picks would vary, because a row's are distinct: hence only a bound.
    assert stats.chisquare(used_publics).pvalue > 1e-6


def test_rows_are_encrypted_alike_in_any_order(
    cross: Callable[..., Result], cross_passes: list[Result]
) -> None:
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(24)[:8]
        shuffled = cross(seed, rows)
        expected = jax.tree.map(lambda x, rows=rows: x[rows], cross_passes[seed])
        jax.tree.map(np.testing.assert_array_equal, shuffled, expected)


def test_signs_share_no_randomness_with_redrawn_coefficients() -> None:
    """Coefficients beyond the first candidates come from words that no sign uses."""
    law = InstaHide.inside(2).law

    @jax.jit
    def draw(words: jax.Array) -> tuple[jax.Array, ...]:
        keys = prng.row_keys(key_of(words), jnp.arange(60_000, dtype=jnp.uint32))
        partners = jnp.zeros((60_000, 1), jnp.int32)
        plan, sign_words = mixing.draw_plan(keys, partners, law, 0, (1, 16, 1))
        _, at_once = coefficients._first_accepted(prng.row_bits(keys, law.words_per_round), law)
        signs = mixing.random_signs(sign_words, 32).reshape(-1, 512)
        return plan.coefficients[:, 0], signs, at_once

    own, signs, at_once = (np.asarray(x) for x in draw(words_of(0)))
    own, signs = own[~at_once], signs[~at_once]
    assert len(own) > 1_000

    def assert_uncorrelated(values: np.ndarray) -> None:
        standard = (values - values.mean()) / values.std()
        assert np.abs(standard @ signs / len(values)).max() < 6 / np.sqrt(len(values))

    assert_uncorrelated(own)
    assert rejects(assert_uncorrelated, own + 0.05 * signs[:, 40])


# --- values: dtypes, standardisation, gradients ---------------------------------------------------

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def test_dtypes_and_standardisation() -> None:
    """uint8, float and bfloat16 agree with a float64 computation that standardises first."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 5, 7, 3), np.uint8)
    partners = mixing.draw_partners(insecure_key(1), 12, 4)[:, 1:]
    labels = np.arange(12, dtype=np.int32)

    def scheme(**settings: Any) -> InstaHide:
        return InstaHide.inside(4, num_classes=12, **settings)

    @jax.jit
    def compiled(words: jax.Array) -> dict[str, dict[str, jax.Array]]:
        def hidden(images: Any, **settings: Any) -> dict[str, jax.Array]:
            batch = {"image": images, "label": labels}
            return encrypt(key_of(words), batch, scheme=scheme(**settings), partners=partners)

        return {
            "uint8": hidden(images, mean=MEAN, std=STD),
            "float32": hidden((images / 255).astype(np.float32), mean=MEAN, std=STD),
            "bfloat16": hidden(images, mean=MEAN, std=STD, dtype="bfloat16"),
            "uint8 in [-1, 1]": hidden(images),
        }

    results = compiled(words_of(0))
    coefficients = np.asarray(results["uint8"]["label"], np.float64)
    assert_one_pass(coefficients[:, np.argsort(labels)], 4)

    def mixed(images: np.ndarray) -> np.ndarray:
        return np.einsum("rc,c...->r...", coefficients, images)

    standardised = mixed((images / 255 - np.array(MEAN)) / np.array(STD))
    signs = np.sign(np.asarray(results["uint8"]["image"]))
    for name, tolerance in (("uint8", 2e-6), ("float32", 2e-6), ("bfloat16", 0.02)):
        np.testing.assert_allclose(
            np.asarray(results[name]["image"], np.float64),
            signs * np.abs(standardised),
            atol=tolerance,
            err_msg=name,
        )
    signs = np.where(standardised < 0, -signs, signs)  # of the mask
    np.testing.assert_allclose(
        results["uint8 in [-1, 1]"]["image"], signs * mixed(images / 127.5 - 1), atol=2e-6
    )
    assert results["bfloat16"]["image"].dtype == jnp.bfloat16
    for name in results:
        assert results[name]["label"].dtype == jnp.float32
        np.testing.assert_array_equal(results[name]["label"], results["uint8"]["label"])


def test_gradients_reach_own_images_and_partners() -> None:
    """encrypt is affine in the images, so a finite difference of any size is exact."""
    rng = np.random.default_rng(0)
    images, direction = rng.standard_normal((2, 6, 3, 5, 1)).astype(np.float32)
    weights = rng.standard_normal((6, 3, 5, 1)).astype(np.float32)
    partners = mixing.draw_partners(insecure_key(1), 6, 3)[:, 1:]
    scheme = InstaHide.inside(3, mean=(0.3,), std=(0.7,))

    @jax.jit
    @jax.value_and_grad
    def loss(images: jax.Array) -> jax.Array:
        batch = {"image": images, "label": jnp.eye(6)}
        hidden = encrypt(insecure_key(0), batch, scheme=scheme, partners=partners)
        return (hidden["image"] * weights).sum()

    before, gradient = loss(images)
    after, _ = loss(images + direction)
    assert (np.asarray(gradient) != 0).all()
    assert (gradient * direction).sum() == pytest.approx(float(after - before), abs=2e-5)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (1, 1, 1), (17, 13, 3), (224, 224, 3)])
@pytest.mark.parametrize("scheme", [None, InstaHide.inside(num_classes=7, dtype="bfloat16")])
def test_any_image_shape(shape: tuple[int, ...], scheme: InstaHide | None) -> None:
    batch = {"image": np.zeros((8, *shape), np.uint8), "label": np.zeros((8, 7), np.float32)}
    public = np.zeros((5, *shape), np.uint8)
    compiled = jax.jit(encrypt, static_argnames="scheme")
    hidden = compiled.eval_shape(insecure_secret(0), batch, public, scheme=scheme)
    assert hidden["image"].shape == (8, *shape)
    assert hidden["image"].dtype == ("bfloat16" if scheme else "float32")
    assert hidden["label"].shape == (8, 7)
