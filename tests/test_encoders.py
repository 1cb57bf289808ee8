"""Encoders: their sizes, what training and evaluation change, and what is refused."""

import functools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instahide_jax.encoders import (
    ConvNet,
    EncoderConfig,
    LeNet5,
    ResNet,
    ResNet18,
    Variables,
    WideResNet,
    make_model,
    num_parameters,
)
from instahide_jax.errors import InputError

SMALL = {
    "convnet": (ConvNet(widths=(4, 6), strides=(2, 2)), 6),
    "lenet": (LeNet5(), 84),
    "published": (ResNet(blocks=(1, 1), width=2), 4),
    "standard": (ResNet(blocks=(1, 1), width=2, form="standard", stem="imagenet"), 4),
    "wide": (WideResNet(depth=10, widen=1, dropout=0.5), 64),
}
SHAPE = (16, 16, 3)
IMAGES = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)


@functools.cache
def _model(name, dtype="float32"):
    config = SMALL[name][0]
    return make_model(replace(config, dtype=dtype), SHAPE, 10)


@functools.cache
def _made(name, dtype="float32"):
    """What one compiled program makes of a model: outputs, statistics and gradients."""
    model = _model(name, dtype)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def make(variables, images, dropout_key):
        def loss(params):
            features, stats = model.features(
                Variables(params, variables.stats), images, train=True, dropout_key=dropout_key
            )
            return jnp.square(model.logits(params, features)).sum(), (features, stats)

        gradients, (trained, stats) = jax.grad(loss, has_aux=True)(variables.params)
        tested, kept = model.features(variables, images, train=False)
        return {
            "train": trained,
            "stats": stats,
            "eval": tested,
            "kept": kept,
            "logits": model.logits(variables.params, tested),
            "gradients": gradients,
        }

    return make, jax.jit(model.init)(jax.random.key(1))


def _call(name, dtype="float32", images=IMAGES, stats=None, dropout=2):
    make, variables = _made(name, dtype)
    variables = variables if stats is None else variables._replace(stats=stats)
    return make(variables, images, jax.random.key(dropout)), variables


def _differ(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [float(jnp.abs(x - y).max()) for x, y in pairs]


# Sizes


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LeNet5(), 62_006),
        (ResNet18(), 11_171_274),
        (ResNet18(form="standard"), 11_173_962),
        (WideResNet(depth=28, widen=10), 36_479_194),
        (WideResNet(), 13_144_794),
    ],
)
def test_number_of_parameters(config, count):
    model = make_model(config, (32, 32, 3), 10)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert num_parameters(variables.params) == count
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    features, _ = jax.eval_shape(lambda v, x: model.features(v, x, train=False), variables, images)
    assert features.shape == (2, variables.params["head"]["kernel"].shape[0])


@pytest.mark.parametrize(
    ("stem", "side", "expected"), [("cifar", 32, 4), ("strided", 32, 4), ("imagenet", 224, 4)]
)
def test_stems_take_the_images_they_are_for(stem, side, expected):
    model = make_model(ResNet(blocks=(1, 1), width=2, stem=stem), (side, side, 1), 3)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
    features, _ = jax.eval_shape(lambda v, x: model.features(v, x, train=True), variables, images)
    assert features.shape == (2, expected)


# What a call computes


@pytest.mark.parametrize("name", SMALL)
def test_features_logits_and_gradients(name):
    made, variables = _call(name)
    assert made["train"].shape == made["eval"].shape == (6, SMALL[name][1])
    assert made["logits"].shape == (6, 10)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made))
    assert jax.tree.structure(made["gradients"]) == jax.tree.structure(variables.params)
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(made["gradients"])) > 0


@pytest.mark.parametrize("name", SMALL)
def test_statistics_change_in_training_only(name):
    made, variables = _call(name)
    assert sum(_differ(made["kept"], variables.stats)) == 0
    if name == "lenet":
        assert jax.tree.leaves(variables.stats) == []
        return
    assert min(_differ(made["stats"], variables.stats)) > 0
    # Momentum 0.9: the same batch again moves them by 0.9 of the step before.
    again, _ = _call(name, stats=made["stats"])
    for s0, s1, s2 in zip(
        *(jax.tree.leaves(s) for s in (variables.stats, made["stats"], again["stats"])), strict=True
    ):
        np.testing.assert_allclose(s2 - s1, 0.9 * (s1 - s0), atol=1e-4)


@pytest.mark.parametrize("name", ["convnet", "standard"])
def test_training_normalises_by_the_batch_and_evaluation_does_not(name):
    plain, brighter = _call(name)[0], _call(name, images=10 * IMAGES)[0]
    assert float(jnp.abs(plain["train"] - brighter["train"]).max()) < 0.05
    assert float(jnp.abs(plain["eval"] - brighter["eval"]).max()) > 0.5
    one_less = _call(name, images=np.concatenate([IMAGES[:5], 3 * IMAGES[5:]]))[0]
    assert float(jnp.abs(plain["train"] - one_less["train"])[:5].max()) > 1e-3
    np.testing.assert_allclose(plain["eval"][:5], one_less["eval"][:5], atol=1e-5)


def test_dropout_in_training_only():
    first, other = _call("wide", dropout=2)[0], _call("wide", dropout=3)[0]
    np.testing.assert_array_equal(first["eval"], other["eval"])
    assert float(jnp.abs(first["train"] - other["train"]).max()) > 1e-3
    again = _call("wide", dropout=2)[0]
    np.testing.assert_array_equal(first["train"], again["train"])


def test_bfloat16_computes_in_it_with_parameters_in_float32():
    made, variables = _call("convnet", "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = _call("convnet")[0]["eval"]
    error = float(jnp.abs(made["eval"] - exact).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.05
    assert made["eval"].dtype == jnp.float32


def test_init_is_a_function_of_the_key():
    model = _model("convnet")
    init = jax.jit(model.init)
    a, b, c = (init(jax.random.key(i)).params for i in (1, 1, 2))
    assert sum(_differ(a, b)) == 0
    assert max(_differ(a, c)) > 0


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet(dtype="float16"), "dtype is 'float16'; choose"),
        (lambda: ConvNet(widths=()), "at least one width"),
        (lambda: ConvNet(widths=(4, 0), strides=(1, 1)), r"widths is \(4, 0\)"),
        (lambda: ConvNet(widths=(4,)), r"strides is \(2, 2, 1\); give one"),
        (lambda: ConvNet(widths=(4,), strides=(0,)), r"strides is \(0,\)"),
        (lambda: ResNet(blocks=()), "at least 1 block"),
        (lambda: ResNet(blocks=(1, 0)), r"blocks is \(1, 0\)"),
        (lambda: ResNet(width=0), "width is 0; it must be at least 1"),
        (lambda: ResNet(form="new"), "form is 'new'; choose"),
        (lambda: ResNet(stem="large"), "stem is 'large'; choose"),
        (lambda: WideResNet(depth=27), r"depth is 27; it must be 6 n \+ 4"),
        (lambda: WideResNet(depth=4), "depth is 4"),
        (lambda: WideResNet(widen=0), "widen is 0"),
        (lambda: WideResNet(dropout=1.0), r"dropout is 1.0; it must lie in \[0, 1\)"),
        (lambda: make_model(LeNet5(), (15, 32, 3), 10), r"at least 16x16, not \(15, 32\)"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_base_says_what_is_missing():
    with pytest.raises(TypeError, match="EncoderConfig does not define build"):
        make_model(EncoderConfig(), SHAPE, 10)
