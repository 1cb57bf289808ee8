"""Fresh networks, and statistics of what they compute, for tests of how networks start."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instahide_jax.encoders import (
    Bert,
    ConvNet,
    LeNet5,
    ResNet,
    Variables,
    ViT,
    WideResNet,
    bert,
    make_model,
    resnet,
    vit,
)
from instahide_jax.training import example_losses

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import fresh_batches  # noqa: E402 - stands beside the script that uses it

QUICK = {"xla_backend_optimization_level": 0}
SIDE = 32


def small_bert(**settings):
    sizes = {"vocab_size": 100, "hidden": 64, "layers": 4, "heads": 4, "intermediate": 256}
    quiet = {"positions": 16, "dropout": 0.0, "attention_dropout": 0.0, "output": "mean"}
    return Bert(**sizes | quiet | settings)


SMALL_VIT = {"patch_size": 4, "width": 64, "num_heads": 4, "mlp_width": 256}
# The networks of the golden statistics, which PyTorch makes. ViT's original is in JAX, and ConvNet
# is this project's own: the tests of spread, losses and orders alone say how they begin.
ORIGINALS = {
    "published": ResNet(width=16),
    "standard": ResNet(width=16, form="standard"),
    "imagenet": ResNet(width=16, form="standard", stem="imagenet"),
    "wide": WideResNet(depth=16, widen=2),
    "lenet": LeNet5(),
    "bert": small_bert(),
}
OTHERS = {
    "published 1-1-1": ResNet(blocks=(1, 1, 1), width=16, stem="strided"),
    "published 3-4-6-3": ResNet(blocks=(3, 4, 6, 3), width=8),
    "imagenet 1-1": ResNet(blocks=(1, 1), width=16, form="standard", stem="imagenet"),
    "wide 10-1": WideResNet(depth=10, widen=1),
    "wide 22-1": WideResNet(depth=22, widen=1),
    "convnet": ConvNet(),
    "convnet deep": ConvNet(widths=(16,) * 8, strides=(2, 1, 1, 2, 1, 1, 1, 1)),
    "vit 1": ViT(**SMALL_VIT, depth=1),
    "vit 6": ViT(**SMALL_VIT, depth=6, pooling="mean"),
    "bert 1": small_bert(layers=1, output="pooled"),
    "bert 6": small_bert(layers=6, output="cls"),
    "roberta 2": small_bert(layers=2, kind="roberta", positions=18),
    "published 1-1, bfloat16": ResNet(blocks=(1, 1), width=16, dtype="bfloat16"),
}
NETWORKS = ORIGINALS | OTHERS


def shape_of(config):
    return (16,) if isinstance(config, Bert) else (SIDE, SIDE, 3)


def fresh(config, seeds, num_outputs=10, head=None):
    """Variables of fresh networks, stacked along the first axis."""
    model = make_model(config, shape_of(config), num_outputs, head)
    init = jax.jit(jax.vmap(model.init), compiler_options=QUICK)
    return jax.device_get(init(jax.random.split(jax.random.key(0), seeds)))


# Statistics of what a fresh network computes


class Statistics:
    """Jitted statistics of one kind of network, compiled once for all seeds and schemes."""

    def __init__(self, config, num_classes=10):
        self.config, self.outputs = config, []
        self.model = make_model(config, shape_of(config), num_classes)
        self.layer = next(layer for base, layer in LAYERS.items() if isinstance(config, base))
        self.init = jax.jit(self.model.init, compiler_options=QUICK)
        self.compute = jax.jit(self._compute, compiler_options=QUICK)

    def _compute(self, variables, inputs, labels):
        module, name = self.layer
        original = getattr(module, name)

        def recorded(*args, **settings):
            self.outputs.append(original(*args, **settings))
            return self.outputs[-1]

        def loss(params):
            self.outputs = []
            features, _ = self.model.features(
                Variables(params, variables.stats), inputs, train=True
            )
            outputs = self.model.logits(params, features)
            return example_losses(outputs, labels).mean(), (self.outputs[0], self.outputs[-1])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, recorded)
            (value, ends), gradients = jax.value_and_grad(loss, has_aux=True)(variables.params)
        rms = [jnp.sqrt(jnp.square(end.astype(jnp.float32)).mean()) for end in ends]
        return value, rms, _end_kernels(gradients["encoder"])

    def of(self, seed, inputs, labels):
        """Loss, rms of both ends' outputs, norms of both ends' gradients."""
        loss, activations, kernels = self.compute(self.init(jax.random.key(seed)), inputs, labels)
        return float(loss), [float(x) for x in activations], [float(x) for x in kernels]


def names_of(tree):
    """The weights of a tree by their paths, such as "encoder/stem/kernel"."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        words = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path]
        found["/".join(word for word in words if word not in ("", "value"))] = leaf
    return found


def _end_kernels(gradients):
    """Norms of the gradients of the first kernel in the first and in the last block."""
    weights = names_of(gradients)
    blocks = range(len(weights))
    layers = [weights[k.format(i)] for k in KERNELS for i in blocks if k.format(i) in weights]
    if not layers:
        layers = [weights["conv1/kernel"], weights["dense2/kernel"]]
    return [jnp.sqrt(jnp.square(layer).sum()) for layer in (layers[0], layers[-1])]


# The first kernel of a block, by the encoder's own names; LeNet-5 has layers instead of blocks.
KERNELS = (
    "blocks/{}/conv1/kernel",
    "blocks/{}/dense1/kernel",
    "layers/{}/intermediate/kernel",
    "convs/{}/kernel",
)
# What puts out the blocks of an encoder, or its layers.
LAYERS = {
    ResNet: (resnet, "apply_block"),
    WideResNet: (resnet, "apply_block"),
    ViT: (vit, "apply_block"),
    Bert: (bert, "apply_block"),
    ConvNet: (nnx, "relu"),
    LeNet5: (nnx, "relu"),
}


@functools.cache
def statistics(name):
    return Statistics(NETWORKS[name])


def measured(network, seeds):
    """Mean and deviation over seeds of the golden statistics, by their names."""
    found = []
    for seed in seeds:
        one = {}
        if isinstance(network.config, Bert):
            ids, labels = fresh_batches.tokens(seed)
            ids = ids.astype(np.int32)
            given = {"ids": ids, "types": np.zeros_like(ids), "mask": np.ones_like(ids)}
            data = {"vanilla": (given, labels)}
        else:
            data = fresh_batches.batches(SIDE, 10, seed)
        for scheme, batch in data.items():
            loss, activations, gradients = network.of(seed, *batch)
            one[f"loss, {scheme}"] = loss
            for place, activation, gradient in zip(
                ("first", "last"), activations, gradients, strict=True
            ):
                one[f"activations of the {place} block, {scheme}"] = activation
                one[f"gradients of the {place} block, {scheme}"] = gradient
        found.append(one)
    return {k: (np.mean(v), np.std(v, ddof=1)) for k, v in _columns(found).items()}


def _columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def check_golden(network, golden, seeds=range(6)):
    """The statistics of the PyTorch original are met within their spread."""
    found = measured(network, seeds)
    for name, (mean, deviation) in golden.items():
        ours, spread = found[name]
        error = 5 * np.hypot(deviation / 4, spread / np.sqrt(len(seeds)))
        assert ours == pytest.approx(mean, abs=error + 1e-3 * mean), name


def check_orders(network, seeds=range(2)):
    """First and last block are of one order of magnitude, in activations and gradients."""
    found = measured(network, seeds)
    for scheme in {name.partition(", ")[2] for name in found}:
        for what in ("activations", "gradients"):
            first, last = (
                found[f"{what} of the {end} block, {scheme}"][0] for end in ("first", "last")
            )
            assert 0.1 < first / last < 10, f"{what}, {scheme}: {first:.3g} and {last:.3g}"
