"""Random views: a function of key and number, uniform, in the images' own type."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import pixels

from instahide_jax.data.augment import Augment, augment, centre
from instahide_jax.errors import InputError

KEY = jax.random.key(3)
_augment = jax.jit(augment, static_argnums=0)


def _views(config, image, count, key=KEY):
    images = np.broadcast_to(image, (count, *image.shape))
    return np.asarray(_augment(config, key, images, np.arange(count)))


def test_identity_returns_the_same_array():
    images = jnp.asarray(pixels(3, 5, 5, 1))
    assert augment(Augment(), KEY, images, jnp.arange(3)) is images


def test_view_depends_on_key_and_number_only():
    config, images = Augment(padding=2, flip=True), pixels(20, 6, 7, 3)
    whole = np.asarray(_augment(config, KEY, images, np.arange(20)))
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    some = np.array([17, 3, 3, 0])
    np.testing.assert_array_equal(_augment(config, KEY, images[some], some), whole[some])
    other = np.asarray(_augment(config, jax.random.key(4), images, np.arange(20)))
    assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.7
    floats = np.asarray(_augment(config, KEY, images.astype(np.float32), np.arange(20)))
    np.testing.assert_array_equal(floats, whole.astype(np.float32))


def test_offsets_are_uniform_and_borders_zero():
    """An image that tells its pixels apart; every view is one of 9 x 7 crops of it, with zeros."""
    image = np.arange(1, 1 + 5 * 4, dtype=np.uint8).reshape(5, 4, 1)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    views = _views(Augment(padding=4), image, 8100)
    crops = {
        padded[top : top + 5, left : left + 4].tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
        if padded[top : top + 5, left : left + 4].any()
    }
    offsets = [crops[view.tobytes()] for view in views if view.any()]
    counts = np.bincount([top * 9 + left for top, left in offsets], minlength=81)
    counts = counts[counts > 0]
    assert len(counts) == len(crops)
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert chi_square < len(counts) + 5 * (2 * len(counts)) ** 0.5


def test_half_are_flipped_and_left_right_only():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    views = _views(Augment(flip=True), image, 2000)
    flipped = (views == image[:, ::-1]).all(axis=(1, 2, 3))
    kept = (views == image).all(axis=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / 2000**0.5


def test_smaller_crops():
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    views = _views(Augment(size=4), image, 300)
    assert views.shape == (300, 4, 4, 1)
    corners = set(views[:, 0, 0, 0].tolist())
    assert corners == {top * 6 + left for top in range(3) for left in range(3)}


def test_centre():
    images = pixels(2, 7, 6, 3)
    np.testing.assert_array_equal(centre(Augment(size=4), images), images[:, 1:5, 1:5])
    assert centre(Augment(padding=4, flip=True), images).shape == images.shape
    with pytest.raises(InputError, match=r"size is 8, larger than images of \(7, 6\)"):
        centre(Augment(padding=4, size=8), images)


def test_output_shape():
    assert Augment(padding=3).output_shape((7, 6, 3)) == (7, 6, 3)
    assert Augment(padding=1, size=8).output_shape((7, 6, 3)) == (8, 8, 3)
    with pytest.raises(InputError, match="size is 9, larger than"):
        Augment(padding=1, size=9).output_shape((7, 6, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Augment, padding=-1), "padding is -1; it must be at least 0"),
        (partial(Augment, size=0), "size is 0; it must be at least 1"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(InputError, match=message):
        make()
