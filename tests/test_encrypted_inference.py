"""Encrypted inference: what is mixed into the images asked about, and how predictions are averaged.

Every image is black but for one pixel of its own, so a mixture shows its coefficients. The model
is a linear map that notes what it is given.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import CLASSES, EXPERIMENT, labelled

from instahide_jax import InputError, InstaHide, image_evaluation, insecure_secret
from instahide_jax.encoders import Model, Variables

TEST, OWNERS, PUBLIC = 20, 24, 10  # images
EVAL_BATCH = 8  # so the last batch is padded
INSIDE = InstaHide.inside(k=4, mask="none", num_classes=CLASSES, mean=(0.0,), std=(1.0,))
CROSS = InstaHide.cross(k=6, mask="none", num_classes=CLASSES, mean=(0.0,), std=(1.0,))
PIXELS = 64
KERNEL = np.random.default_rng(0).normal(size=(PIXELS, CLASSES)).astype(np.float32)


def _images(first, count):
    """Image i has its pixel first + i white."""
    images = np.zeros((count, PIXELS), np.uint8)
    images[np.arange(count), first + np.arange(count)] = 255
    return images.reshape(count, 8, 8, 1)


def _arrays(first, count):
    return replace(labelled(count, (8, 8, 1)), images=_images(first, count))


@pytest.fixture
def ask(monkeypatch):
    """(scores, coefficients [encryption, test image, pixel]) under a scheme."""
    monkeypatch.setattr(image_evaluation, "EVAL_BATCH", EVAL_BATCH)

    def run(scheme, counts):
        seen = []

        def features(variables, inputs, *, train):
            assert not train
            values = inputs.reshape(len(inputs), PIXELS)
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), values, ordered=True)
            return values, variables.stats

        model = Model(None, features, lambda params, features: features @ params)
        pool = _images(TEST + OWNERS, PUBLIC) if scheme.num_public else None
        with jax.debug_key_reuse(False):  # the batches of a pass share a key, rows differ
            scores = image_evaluation.encrypted_accuracies(
                EXPERIMENT,
                scheme,
                model,
                Variables(KERNEL, {}),
                insecure_secret(3),
                _arrays(0, TEST),
                _arrays(TEST, OWNERS),
                pool,
                counts,
            )
            jax.effects_barrier()
        batches = -(-TEST // EVAL_BATCH)
        coefficients = np.stack(seen).reshape(-1, batches * EVAL_BATCH, PIXELS)
        return scores, coefficients[:, :TEST]

    return run


def _right(probabilities):
    """Accuracy per entry of the first axis."""
    return (probabilities.argmax(axis=2) == np.arange(TEST) % CLASSES).mean(axis=1).tolist()


def test_predictions_are_averaged(ask):
    scores, coefficients = ask(INSIDE, range(1, 9))
    assert coefficients.shape == (8, TEST, PIXELS)
    alone = np.asarray(jax.nn.softmax(coefficients @ KERNEL))
    averaged = _right(np.cumsum(alone, axis=0))
    assert [score.network for score in scores.values()] == pytest.approx(averaged)
    assert sum(a != b for a, b in zip(averaged, _right(alone), strict=True)) > 3
    asked = {count: score.network for count, score in ask(INSIDE, (5, 2))[0].items()}
    assert asked == pytest.approx({2: averaged[1], 5: averaged[4]})


@pytest.mark.parametrize("scheme", [INSIDE, CROSS], ids=["inside", "cross"])
def test_the_oracle_reads_labels_and_coefficients_of_the_private_images(ask, scheme):
    """Of public images it knows nothing, and every encryption counts alike."""
    scores, coefficients = ask(scheme, range(1, 9))
    private = coefficients[..., : TEST + OWNERS]
    labels = np.concatenate([np.arange(TEST), np.arange(OWNERS)]) % CLASSES
    true = (private / private.sum(axis=2, keepdims=True)) @ np.eye(CLASSES)[labels]
    expected = _right(np.cumsum(true, axis=0))
    assert [score.oracle for score in scores.values()] == pytest.approx(expected)
    assert expected[0] < expected[-1]


@pytest.mark.parametrize("scheme", [INSIDE, CROSS], ids=["inside", "cross"])
def test_mixtures_hold_the_image_asked_about_and_partners_of_the_owner(ask, scheme):
    _, coefficients = ask(scheme, (3,))
    used = coefficients > 1e-6
    np.testing.assert_array_equal(used[:, :, :TEST], np.broadcast_to(np.eye(TEST) > 0, (3, 20, 20)))
    owners, public = used[..., TEST : TEST + OWNERS], used[..., TEST + OWNERS :]
    assert (owners.sum(axis=2) == scheme.num_partners).all()
    assert (public.sum(axis=2) == scheme.num_public).all()
    assert not public[..., PUBLIC:].any()
    np.testing.assert_allclose(coefficients.sum(axis=2), 1, atol=1e-5)


def test_every_encryption_is_fresh(ask):
    _, coefficients = ask(CROSS, (4,))
    sorted_ = np.sort(coefficients, axis=2).reshape(4 * TEST, PIXELS)
    assert len(np.unique(sorted_, axis=0)) == 4 * TEST
    for part in (coefficients[..., TEST : TEST + OWNERS], coefficients[..., TEST + OWNERS :]):
        assert len(np.unique(part > 0, axis=0)) == 4  # partners


def test_masks_are_fresh(ask):
    """Behind a mean that no pixel has, signs of zero pixels are those of the mask."""
    scheme = replace(INSIDE, mask="sign", mean=(-1.0,))
    signs = ask(scheme, (4,))[1].reshape(4 * TEST, PIXELS) > 0
    assert len(np.unique(signs, axis=0)) == 4 * TEST
    assert abs(signs.mean() - 0.5) < 6 * 0.5 / signs.size**0.5  # six deviations


def test_the_floor_of_the_own_coefficient_is_kept(ask):
    def own(floor):
        coefficients = ask(replace(INSIDE, min_own_coefficient=floor), (4,))[1]
        return coefficients[:, np.arange(TEST), np.arange(TEST)]

    assert own(0.4).min() >= 0.4 - 1e-6
    assert own(0.0).min() < 0.2


@pytest.mark.parametrize("counts", [(0,), (3, 0), (-1, 2)])
def test_counts_below_1_are_refused(ask, counts):
    message = f"number of encryptions is {min(counts)}; it must be at least 1"
    with pytest.raises(InputError, match=message):
        ask(INSIDE, counts)
