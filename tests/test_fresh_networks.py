"""Fresh networks compute what those of the published code do: losses, activations, gradients."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fresh import (
    GOLDEN,
    NETWORKS,
    ORIGINALS,
    QUICK,
    SIDE,
    Statistics,
    check_golden,
    check_orders,
    small_bert,
    statistics,
)
from fresh import fresh_batches as data

from instahide_jax import InstaHide, NoHiding, TextHide, hide, insecure_secret
from instahide_jax.encoders import Bert, TanhHead, Variables, ViT, make_model, resnet
from instahide_jax.encoders.base import EncoderConfig
from instahide_jax.encoders.initialisation import HE_FAN_OUT, LECUN, LayerInit
from instahide_jax.training import example_losses


@pytest.mark.parametrize("name", ORIGINALS)
def test_statistics_of_the_originals(name):
    golden = json.loads((GOLDEN / "initialisation.json").read_text())[name]
    check_golden(statistics(name), golden)


# The head of a ViT starts at zero, which lets no gradient through: `test_gradients_of_vit`.
@pytest.mark.parametrize("name", [n for n in NETWORKS if not n.startswith("vit")])
def test_first_and_last_block_are_of_one_order(name):
    check_orders(statistics(name))


def test_gradients_of_vit():
    """Its head starts at zero and lets no gradient through; under another one they are alike."""

    class Started(ViT):
        @property
        def head_init(self):
            return LECUN

    for depth in (1, 6):
        config = Started(patch_size=4, width=64, num_heads=4, mlp_width=256, depth=depth)
        check_orders(Statistics(config))


# Losses under the project's own schemes

SCHEMES = {
    "vanilla": NoHiding(num_classes=10),
    "mixup": InstaHide.mixup(k=4, num_classes=10),
    "inside": InstaHide.inside(k=4, num_classes=10),
    "cross": InstaHide.cross(k=6, num_classes=10),
}


def check_loss(network, num_classes=10, seeds=range(3)):
    """A fresh network loses what guessing loses, whatever hides its inputs."""
    for name, ten in SCHEMES.items():
        scheme = replace(ten, num_classes=num_classes)
        losses, masses = [], []
        for seed in seeds:
            images, labels = data.batches(SIDE, num_classes, seed)["vanilla"]
            pool = data.batches(SIDE, num_classes, seed + 100)["vanilla"][0]
            hidden = _hide(scheme)(insecure_secret(seed), images, labels, pool)
            losses.append(network.of(seed, hidden["image"], hidden["label"])[0])
            masses.append(float(hidden["label"].sum(axis=1).mean()))
        # Labels of cross sum to less than 1.
        excess = np.mean(losses) / np.mean(masses) - np.log(num_classes)
        assert abs(excess) < 0.35, f"{name}: {excess:.2f} above guessing"


@functools.cache
def _hide(scheme):
    def hidden(key, images, labels, pool):
        public = pool if scheme.num_public else None
        return scheme.hide_inputs(key, {"image": images, "label": labels.argmax(axis=1)}, public)

    return jax.jit(hidden)


TEXT = [name for name, config in NETWORKS.items() if isinstance(config, Bert)]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in TEXT])
def test_loss_of_a_fresh_network(name):
    check_loss(statistics(name))


@pytest.mark.parametrize("name", ["published 1-1-1", "convnet"])
def test_loss_of_a_fresh_network_with_many_classes(name):
    check_loss(Statistics(NETWORKS[name], 100), 100, range(1))


@pytest.mark.parametrize("head", [None, TanhHead()])
@pytest.mark.parametrize("name", TEXT)
def test_loss_of_a_fresh_network_on_texts(name, head):
    """Plain, and with features mixed and masked by TextHide."""
    config = NETWORKS[name]
    model = make_model(config, (16,), 10, head)
    scheme = TextHide.intra(k=4, num_masks=16, num_classes=10)

    def losses(key, secret, ids, labels):
        params, stats = model.init(key)
        given = {"ids": ids, "types": jnp.zeros_like(ids), "mask": jnp.ones_like(ids)}
        features, _ = model.features(Variables(params, stats), given, train=True)
        masks = scheme.mask_pool(secret.stream("masks"), features.shape[1])
        hidden, soft = hide(secret.stream("step"), features, labels, masks, scheme=scheme)
        return [
            example_losses(model.logits(params, x), y).mean()
            for x, y in ((features, jnp.eye(10)[labels]), (hidden, soft))
        ]

    compute = jax.jit(losses, compiler_options=QUICK)
    for seed in range(2):
        ids, labels = data.tokens(seed)
        found = compute(
            jax.random.key(seed), insecure_secret(seed), ids.astype(np.int32), labels.argmax(axis=1)
        )
        np.testing.assert_allclose(found, np.log(10), atol=0.35)


# Wrong ones


def test_the_initialisation_that_did_not_train_is_found(monkeypatch):
    """Convolutions of variance 2 / fan_out and LeCun's head, as up to commit 12365ad."""
    golden = json.loads((GOLDEN / "initialisation.json").read_text())["published"]
    monkeypatch.setattr(resnet, "PYTORCH", HE_FAN_OUT)
    with pytest.raises(AssertionError, match="block"):
        check_golden(Statistics(ORIGINALS["published"]), golden, range(2))


def test_a_head_of_large_weights_is_found(monkeypatch):
    init = jax.nn.initializers.variance_scaling(36 / 3, "fan_in", "uniform")
    large = LayerInit(init, LECUN.bias)
    monkeypatch.setattr(EncoderConfig, "head_init", large)
    with pytest.raises(AssertionError, match="above guessing"):
        check_loss(Statistics(NETWORKS["published 1-1-1"]))


def test_another_spread_of_bert_is_found():
    golden = json.loads((GOLDEN / "initialisation.json").read_text())["bert"]
    with pytest.raises(AssertionError, match=r"block|loss"):
        check_golden(Statistics(small_bert(init_std=0.5)), golden, range(2))
