"""Encoders: their sizes, what training and evaluation change, rematerialisation, refusals."""

import functools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from instahide_jax.config import from_json, to_json
from instahide_jax.encoders import (
    Bert,
    ConvNet,
    EncoderConfig,
    LeNet5,
    ResNet,
    ResNet18,
    Variables,
    ViT,
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
    "vit": (ViT(patch_size=8, width=8, depth=1, num_heads=2, mlp_width=12, dropout=0.5), 8),
}
WITHOUT_STATISTICS = ("lenet", "vit")
SHAPE = (16, 16, 3)
IMAGES = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)


@functools.cache
def _model(name, **settings):
    return make_model(replace(SMALL[name][0], **settings), SHAPE, 10)


@functools.cache
def _made(name, **settings):
    """What one compiled program makes of a model: outputs, statistics and gradients."""
    model = _model(name, **settings)

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

    return make


@functools.cache
def _variables(name):
    """Initial ones; neither dtype nor remat changes them."""
    variables = jax.jit(_model(name).init)(jax.random.key(1))
    if name == "vit":  # its head starts at 0, which lets no gradient through
        kernel = variables.params["head"]["kernel"]
        variables.params["head"]["kernel"] = jax.random.normal(jax.random.key(4), kernel.shape)
    return variables


def _call(name, images=IMAGES, stats=None, dropout=2, **settings):
    make, variables = _made(name, **settings), _variables(name)
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
    for path, gradient in jax.tree_util.tree_leaves_with_path(made["gradients"]):
        # Of the keys' bias all gradients cancel in the softmax.
        assert jnp.abs(gradient).max() > 0 or "['key']['bias']" in jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", SMALL)
def test_statistics_change_in_training_only(name):
    made, variables = _call(name)
    assert sum(_differ(made["kept"], variables.stats)) == 0
    if name in WITHOUT_STATISTICS:
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
    made, _ = _call("convnet", dtype="bfloat16")
    variables = jax.eval_shape(_model("convnet", dtype="bfloat16").init, jax.random.key(1))
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


# Rematerialisation


@pytest.mark.parametrize("name", ["standard", "wide", "vit"])
def test_remat_changes_nothing(name):
    """Outputs, dropout, statistics and gradients; BatchNorm in a block is updated once."""
    plain, again = _call(name)[0], _call(name, remat=True)[0]
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for part in plain:
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[part]) or [1])
        for a, b in zip(*map(jax.tree.leaves, (plain[part], again[part])), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * scale)
    if name in ("wide", "vit"):
        other = _call(name, dropout=3, remat=True)[0]
        assert float(jnp.abs(other["train"] - again["train"]).max()) > 1e-3


REMAT = jax.make_jaxpr(jax.checkpoint(jnp.sin))(0.0).eqns[0].primitive.name
DEEP = {
    "published": (ResNet(blocks=(2, 2), width=4), 4, 1),
    "standard": (ResNet(blocks=(2, 2), width=4, form="standard"), 4, 1),
    "wide": (WideResNet(depth=16, widen=1, dropout=0.5), 6, 1),
    "vit": (ViT(patch_size=4, width=16, depth=4, num_heads=2, mlp_width=64, dropout=0.5), 4, 1),
    "bert": (Bert(vocab_size=9, hidden=16, layers=4, heads=2, intermediate=64, output="cls"), 4, 0),
}


@pytest.mark.parametrize("name", DEEP)
def test_remat_repeats_whole_blocks_and_keeps_little(name):
    """Every block is one `remat` equation; no convolution or product of a block is outside.

    Memory is counted in what the forward pass hands to the backward pass: XLA for CPUs merges the
    repetition with the first pass.
    """
    config, blocks, outside = DEEP[name]
    shape = (8,) if name == "bert" else SHAPE
    inputs = jax.tree.map(lambda x: jnp.zeros((4, *x.shape[1:]), x.dtype), config.example(shape))
    kept, equations = {}, {}
    for remat in (False, True):
        model = make_model(replace(config, remat=remat), shape, 2)
        variables = jax.eval_shape(model.init, jax.random.key(0))

        def features(params, model=model, variables=variables):
            given = Variables(params, jax.tree.map(jnp.zeros_like, variables.stats))
            return model.features(given, inputs, train=True, dropout_key=jax.random.key(0))

        pull = jax.eval_shape(
            lambda p, f=features: jax.vjp(f, p, has_aux=True)[1], variables.params
        )
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull))
        program = jax.make_jaxpr(features)(variables.params)
        equations[remat] = [_flat(equation) for equation in program.eqns]
    assert sum(REMAT in names for names in equations[False]) == 0
    assert sum(REMAT in names for names in equations[True]) == blocks
    heavy = {"conv_general_dilated", "dot_general"}
    assert sum(bool(names & heavy) for names in equations[False]) > outside + blocks
    assert sum(REMAT not in n and bool(n & heavy) for n in equations[True]) == outside
    given = num_parameters(variables.params)
    assert kept[True] - given < 0.4 * (kept[False] - given)


def _flat(equation):
    """The names of an equation and of all equations inside it."""
    names = {equation.primitive.name}
    for inner in jaxprs_in_params(equation.params):
        for other in inner.eqns:
            names |= _flat(other)
    return names


@pytest.mark.parametrize("config", [ConvNet(), ResNet18(), Bert()])
def test_configurations_saved_without_remat_are_read(config):
    value = to_json(config)
    assert value.pop("remat") is False
    assert from_json(value) == config
    assert from_json(to_json(SMALL["wide"][0])).remat is False
    deep = replace(SMALL["wide"][0], remat=True)
    assert from_json(to_json(deep)) == deep


def test_an_encoder_of_ones_own_refuses_remat_until_it_says_that_it_can():
    class Own(EncoderConfig):
        pass

    class Able(EncoderConfig):
        can_remat = True

    with pytest.raises(InputError, match="remat is True; Own has no blocks to recompute"):
        Own(remat=True)
    assert Able(remat=True).remat


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet(dtype="float16"), "dtype is 'float16'; choose"),
        (lambda: ConvNet(remat=True), "^remat is True; ConvNet has no blocks to recompute: set"),
        (lambda: LeNet5(remat=True), "^remat is True; LeNet5 has no blocks to recompute: set it"),
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
