"""From keys to mixtures: the numbers that `secret.ALGORITHM` stands for.

When a change of the code turns this red, keys that have hidden data the old way would hide the same
data another way. Then raise `ALGORITHM` and put the numbers that this test prints into GOLDEN.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instahide_jax import (
    InstaHide,
    TextHide,
    encrypt,
    encrypt_dataset,
    encryption_order,
    hide,
    insecure_secret,
)
from instahide_jax.secret import ALGORITHM

GOLDEN = {
    "inside": "46c37d8c91a6900e",
    "cross": "9c8433ffded2a296",
    "redrawn": "8ce7799c6eab8522",
    "uint8": "84abf02bd51faa92",
    "dataset": "3e4416a5f2a09c91",
    "intra": "a726cf1956da8536",
    "inter": "88d098cb85cbff6c",
}


def _digest(*arrays):
    """Of integers: floats are multiples of 2**-23 here, up to rounding."""
    content = b""
    for array in arrays:
        whole = np.round(np.asarray(array, np.float64) * 2**23 / 16)
        content += whole.astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _instahide(scheme, dtype=np.float32):
    """Mixtures of unit vectors: they show partners, coefficients and signs."""
    images = np.eye(24, dtype=dtype)[:, :, None, None]
    batch = {"image": images[:12], "label": np.arange(12, dtype=np.int32)}
    public = images[12:] if scheme.num_public else None
    hidden = encrypt(insecure_secret(1), batch, public, scheme=scheme)
    return _digest(hidden["image"], hidden["label"])


def _texthide(scheme):
    features = jnp.eye(24)
    secret = insecure_secret(2)
    pool = scheme.mask_pool(secret.stream("masks"), 24) if scheme.num_masks else None
    public = features[12:] if scheme.num_public else None
    labels = jnp.arange(12.0)
    with jax.debug_key_reuse(False):
        hidden = hide(
            secret.fold_in(3), features[:12], labels, pool, scheme=scheme, public_features=public
        )
    return _digest(*hidden)


def _dataset():
    """Encryptions of a released set, which the owner's secret finds again by their order."""
    images = np.eye(12, dtype=np.uint8)[:, :, None, None]
    data = {"image": images, "label": np.arange(12)}
    settings = {"scheme": InstaHide.inside(k=4, num_classes=12), "passes": 2}
    with jax.debug_key_reuse(False):
        (hidden,) = encrypt_dataset(insecure_secret(4), data, progress=False, **settings)
    order = encryption_order(insecure_secret(4), data, **settings)
    return _digest(hidden["image"], hidden["label"], order)


MADE = {
    "inside": lambda: _instahide(InstaHide.inside(k=4, num_classes=12)),
    "cross": lambda: _instahide(InstaHide.cross(k=6, num_classes=12)),
    "redrawn": lambda: _instahide(InstaHide.inside(k=4, num_classes=12, min_own_coefficient=0.5)),
    "uint8": lambda: _instahide(InstaHide.inside(k=4, num_classes=12), np.uint8),
    "dataset": _dataset,
    "intra": lambda: _texthide(TextHide.intra(k=4, num_masks=16)),
    "inter": lambda: _texthide(TextHide.inter(k=4, num_masks=None)),
}


@pytest.mark.parametrize("name", MADE)
def test_a_change_of_draws_or_mixtures_raises_the_number(name):
    made = MADE[name]()
    assert (ALGORITHM, made) == (2, GOLDEN.get(name)), f"{name}: {made}"


def test_the_digest_sees_one_coefficient():
    mixture = np.full((3, 4), 0.25)
    other = mixture + 2.0**-18 * (np.arange(12).reshape(3, 4) == 7)
    assert _digest(mixture) != _digest(other)
    assert _digest(mixture) == _digest(mixture + 2.0**-24)
