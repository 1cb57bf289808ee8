"""The images of a step of a stream: hidden under a key of the step, from views of the step."""

import functools

import jax
import numpy as np
import pytest
from tiny import pixels, tiny

from instahide_jax import InstaHide, NoHiding, encrypt, insecure_secret
from instahide_jax.data.augment import Augment, augment
from instahide_jax.image_step import Private, make_hide
from instahide_jax.parallel import sharded

BATCH, STEPS = 8, 5
# Every image has its own class, so that labels show partners and coefficients.
BATCH_OF_ALL_STEPS = Private(pixels(BATCH, 8, 8, 3), np.arange(BATCH, dtype=np.int32), None)
SCHEME = InstaHide.inside(k=4, num_classes=BATCH, mean=(0.5,), std=(0.25,))
MIXTURE = InstaHide.mixup(k=4, num_classes=BATCH, mean=(0.5,), std=(0.25,))
AUGMENT = Augment(padding=2, flip=True)


@functools.cache
def _hidden(scheme, devices=1, **changes):
    """Images and labels [step, row, ...] of the same streamed batch in every step."""
    run = tiny(devices, partners="batch", **changes)
    hide = jax.jit(make_hide(run.experiment, scheme, run.mesh))
    private = jax.device_put(BATCH_OF_ALL_STEPS, sharded(run.mesh))
    made = [
        hide(run.keys, jax.device_put(np.int32(t), run.whole), private, None) for t in range(STEPS)
    ]
    return tuple(np.stack([step[name] for step in made]) for name in ("image", "label"))


def test_partners_and_coefficients_are_new_in_every_step():
    labels = _hidden(SCHEME)[1]
    assert len(np.unique(labels > 0, axis=0)) == STEPS
    coefficients = np.sort(labels, axis=2).reshape(STEPS * BATCH, -1)
    assert len(np.unique(coefficients, axis=0)) == STEPS * BATCH


def test_masks_are_new_in_every_step():
    (masked, labels), (mixed, same_labels) = _hidden(SCHEME), _hidden(MIXTURE)
    np.testing.assert_array_equal(labels, same_labels)
    signs = (np.signbit(masked) != np.signbit(mixed)).reshape(STEPS * BATCH, -1)
    agreement = (signs[:, None] == signs[None]).mean(axis=2)[np.triu_indices(len(signs), 1)]
    assert np.abs(agreement - 0.5).max() < 6 * 0.5 / signs.shape[1] ** 0.5  # six deviations


@pytest.mark.parametrize("devices", [1, 8])
def test_the_key_is_that_of_the_step(devices):
    images, labels = _hidden(SCHEME, devices)
    batch = {"image": BATCH_OF_ALL_STEPS.images, "label": BATCH_OF_ALL_STEPS.labels}
    key = insecure_secret(5).stream("step").fold_in(3)
    expected = jax.jit(lambda key: encrypt(key, batch, scheme=SCHEME, private_pool=batch))(key)
    np.testing.assert_array_equal(labels[3], expected["label"])
    np.testing.assert_allclose(images[3], expected["image"], atol=1e-6)


def test_views_are_new_in_every_step():
    """An image has another view wherever it returns; rows of one batch have their own, too."""
    plain = NoHiding(BATCH, mean=(0.0,), std=(1 / 255,))
    views = _hidden(plain, augment=AUGMENT)[0]
    assert len(np.unique(views, axis=0)) == STEPS
    for step in range(STEPS):
        numbers = np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.uint32)
        key = jax.random.fold_in(jax.random.key(6), 1)
        expected = augment(AUGMENT, key, BATCH_OF_ALL_STEPS.images, numbers)
        np.testing.assert_allclose(views[step], expected, atol=1e-3)


def test_mixtures_are_made_of_the_views_of_their_step():
    mixed, labels = _hidden(MIXTURE, augment=AUGMENT)
    views, _ = _hidden(NoHiding(BATCH, MIXTURE.mean, MIXTURE.std), augment=AUGMENT)
    for step in range(STEPS):
        expected = np.einsum("rc,chwd->rhwd", labels[step], views[step])
        np.testing.assert_allclose(mixed[step], expected, atol=1e-4)
        assert np.abs(mixed[step] - mixed[step - 1]).max() > 1
