"""Heads: what they compute, and dropout in training alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instahide_jax.encoders import Head, TanhHead
from instahide_jax.encoders.initialisation import PYTORCH

FEATURES = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


@pytest.mark.parametrize("repeats", [1, 3])
def test_published_head_applies_one_layer_repeatedly(repeats):
    head = TanhHead(repeats=repeats)
    params = head.init(jax.random.key(1), 6, 3, PYTORCH)
    assert {name: p.shape for name, p in params.items()} == {
        "shared_kernel": (6, 6),
        "shared_bias": (6,),
        "kernel": (6, 3),
        "bias": (3,),
    }
    assert not np.array_equal(params["shared_kernel"][:, :3], params["kernel"])
    params["bias"] = jnp.zeros(3)
    params["shared_bias"] = jnp.full(6, 0.25)
    expected = FEATURES
    for _ in range(repeats):
        expected = np.tanh(expected @ np.asarray(params["shared_kernel"]) + 0.25)
    expected = expected @ np.asarray(params["kernel"])
    np.testing.assert_allclose(head.apply(params, FEATURES), expected, atol=1e-6)
    stacked = head.apply(params, np.stack([FEATURES] * 2))
    np.testing.assert_allclose(stacked[1], expected, atol=1e-6)


@pytest.mark.parametrize("kind", [Head, TanhHead])
def test_dropout_drops_in_training_and_keeps_the_mean(kind):
    params = kind().init(jax.random.key(0), 6, 3, PYTORCH)
    head = kind(dropout=0.4)
    plain = kind().apply(params, FEATURES)
    np.testing.assert_array_equal(head.apply(params, FEATURES), plain)
    np.testing.assert_array_equal(kind().apply(params, FEATURES, jax.random.key(2)), plain)
    first = head.apply(params, FEATURES, jax.random.key(2))
    assert not np.allclose(first, plain)


def test_dropout_rate():
    identity = {"kernel": jnp.eye(400), "bias": jnp.zeros(400)}
    kept = np.asarray(Head(dropout=0.4).apply(identity, jnp.ones((50, 400)), jax.random.key(3)))
    assert set(np.round(np.unique(kept), 5)) == {0, np.float32(1.66667)}
    assert abs((kept > 0).mean() - 0.6) < 0.02
