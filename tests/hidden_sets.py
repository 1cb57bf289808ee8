"""A small data set that `encrypt_dataset` hides in tests."""

import jax
import numpy as np
import pytest
from tiny import CLASSES, labelled

from instahide_jax import InstaHide, encrypt_dataset, insecure_secret

SECRET = insecure_secret(11)
SCHEME = InstaHide.inside(k=4, num_classes=CLASSES, mean=(0.5,), std=(0.25,))
ARRAYS = labelled(21, (8, 8, 1))
DATA = {"image": ARRAYS.images, "label": ARRAYS.labels}
CROSS = InstaHide.cross(k=6, num_classes=CLASSES)


@pytest.fixture(scope="module")
def one_key_for_many_calls():
    """The calls of a pass share its key and part by row number; JAX's checker calls that reuse."""
    with jax.debug_key_reuse(False):
        yield


def hidden(data=DATA, pool=None, scheme=SCHEME, secret=SECRET, **settings):
    batches = list(encrypt_dataset(secret, data, pool, scheme=scheme, progress=False, **settings))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def assert_equal(a, b):
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(a["label"], b["label"])
