"""Vision Transformers: their sizes, an explicit reference, positions, dropout, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import erf

from instahide_jax.encoders import Variables, ViT, make_model, num_parameters
from instahide_jax.errors import InputError

SMALL = {"patch_size": 4, "width": 12, "depth": 2, "num_heads": 3, "mlp_width": 20}
SHAPE = (8, 12, 3)
IMAGES = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
NO_STATS = nnx.State({})
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def features_of(config, train=False):
    """(params of the encoder, images, key) -> features; compiled."""
    model = make_model(config, SHAPE, 2)

    def features(params, images, key=None):
        variables = Variables({"encoder": params}, NO_STATS)
        return model.features(variables, images, train=train, dropout_key=key)[0]

    return jax.jit(features, compiler_options=QUICK)


@functools.cache
def random_params(config):
    """Every parameter normal, so that each of them matters, in the tree of params["encoder"]."""
    model, rng = make_model(config, SHAPE, 2), np.random.default_rng(1)
    tree = jax.eval_shape(model.init, jax.random.key(0)).params["encoder"]
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), tree)


# An explicit reference


def reference(params, images, config):
    """The features of a Vision Transformer in NumPy, float64, written out from the paper."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(params))
    size, width, heads = config.patch_size, config.width, config.num_heads
    count, height, length, channels = images.shape
    rows, columns = height // size, length // size
    patches = images.reshape(count, rows, size, columns, size, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(count, rows * columns, -1)
    x = patches @ p["patches"]["kernel"].reshape(-1, width) + p["patches"]["bias"]
    if config.pooling == "cls":
        x = np.concatenate([np.tile(p["cls"], (count, 1, 1)), x], axis=1)
    x = x + p["positions"]

    def norm(x, q):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]

    def dense(x, q):
        return x @ q["kernel"] + q["bias"]

    for i in range(config.depth):
        q = p["blocks"][i]
        y = norm(x, q["attention_norm"])
        query, key, value = (
            dense(y, q["attention"][n]).reshape(count, -1, heads, width // heads)
            for n in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(width // heads))
        mixed = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), value)
        x = x + dense(mixed.reshape(x.shape), q["attention"]["output"])
        y = dense(norm(x, q["mlp_norm"]), q["dense1"])
        x = x + dense(y * (1 + erf(y / np.sqrt(2))) / 2, q["dense2"])
    x = norm(x, p["norm"])
    return x[:, 0] if config.pooling == "cls" else x.mean(1)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_equal_an_explicit_reference(pooling):
    config = ViT(**SMALL, pooling=pooling)
    params = random_params(config)
    made = features_of(config)(params, IMAGES)
    assert made.shape == (5, 12)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, reference(params, IMAGES, config), rtol=0, atol=2e-5)


def test_epsilon_where_it_matters():
    """Tokens as small as the root of epsilon."""
    config = ViT(**SMALL)
    params = nnx.to_pure_dict(random_params(config))
    small = {name: jax.tree.map(lambda x: 1e-3 * x, params[name]) for name in ("patches", "cls")}
    tree = jax.tree.structure(random_params(config))
    params = jax.tree.unflatten(
        tree, jax.tree.leaves(params | small | {"positions": 1e-3 * params["positions"]})
    )
    expected = reference(params, IMAGES, config)
    np.testing.assert_allclose(features_of(config)(params, IMAGES), expected, rtol=0, atol=2e-5)


def _shuffled(images, order):
    """The same patches at other places."""
    patches = images.reshape(5, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(5, 6, 4, 4, 3)
    patches = patches[:, order].reshape(5, 2, 3, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(images.shape)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_only_the_positions_say_where_a_patch_is(pooling):
    config = ViT(**SMALL, pooling=pooling)
    params, features, order = random_params(config), features_of(config), [3, 0, 5, 1, 4, 2]
    others = _shuffled(IMAGES, order)
    assert np.abs(features(params, others) - features(params, IMAGES)).max() > 0.01
    first = config.pooling == "cls"
    same = np.array([0, *range(1, 7)] if first else range(6))
    moved = np.array([0, *(1 + i for i in order)] if first else order)
    positions = np.asarray(params["positions"][...])
    with_positions = {name: jax.tree.map(lambda x: x, params) for name in ("same", "moved", "none")}
    with_positions["same"]["positions"][...] = positions[:, same]
    with_positions["moved"]["positions"][...] = positions[:, moved]
    with_positions["none"]["positions"][...] = 0 * positions
    plain = features(with_positions["same"], IMAGES)
    np.testing.assert_allclose(features(with_positions["moved"], others), plain, atol=1e-5)
    none = with_positions["none"]
    np.testing.assert_allclose(features(none, others), features(none, IMAGES), atol=1e-5)


# Sizes, initialisation, dtypes


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ViT.base(), 86_567_656),
        (ViT.base(pooling="mean"), 86_567_656 - 2 * 768),  # neither the token nor its position
        (ViT.small(), 22_050_664),
        (ViT.tiny(), 5_717_416),
    ],
)
def test_number_of_parameters(config, count):
    """With 1,000 classes at 224x224, as published."""
    made = jax.eval_shape(make_model(config, (224, 224, 3), 1000).init, jax.random.key(0))
    assert num_parameters(made.params) == count
    assert made.params["head"]["kernel"].shape == (config.width, 1000)
    assert jax.tree.leaves(made.stats) == []


def test_settings_override_the_sizes():
    assert ViT.base() == ViT()
    assert ViT.tiny(patch_size=4, mlp_width=100).mlp_width == 100
    assert ViT.small(num_heads=12, dropout=0.1) == ViT(
        width=384, num_heads=12, mlp_width=1536, dropout=0.1
    )


def test_initialisation():
    config = ViT(patch_size=4, width=64, depth=1, num_heads=2, mlp_width=192)
    model = make_model(config, (32, 32, 3), 2)
    init = jax.jit(model.init, compiler_options=QUICK)
    made, other = (init(jax.random.key(i)).params["encoder"] for i in (1, 2))
    assert np.abs(made["cls"][...]).max() == 0
    assert 0.019 < np.std(made["positions"][...]) < 0.021
    assert np.abs(made["positions"][...] - other["positions"][...]).max() > 0.01
    block = made["blocks"][0]
    limit = np.sqrt(6 / (64 + 192))
    assert 0.98 * limit < np.abs(block["dense1"]["kernel"][...]).max() <= limit
    assert 0 < np.abs(block["dense1"]["bias"][...]).max() < 1e-5
    assert set(np.unique(block["mlp_norm"]["scale"][...])) == {1.0}


def test_bfloat16_computes_in_it_with_parameters_in_float32():
    config, exact = ViT(**SMALL, dtype="bfloat16"), ViT(**SMALL)
    params = random_params(exact)
    made = features_of(config)(params, IMAGES)
    assert made.dtype == jnp.float32
    assert 1e-4 < np.abs(made - features_of(exact)(params, IMAGES)).max() < 0.3
    init = jax.eval_shape(make_model(config, SHAPE, 2).init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    program = str(features_of(config).trace(params, IMAGES).jaxpr).splitlines()
    products = [x for x in program if "dot_general" in x or "conv_general" in x]
    # All but the scores of attention, which are summed in float32: 6 more dense layers a block
    # and the weighted sum of the values.
    assert sum("bf16[" in line.split("=")[0] for line in products) >= 1 + 2 * 7


# Dropout and training


def test_every_dropout_has_a_key_of_its_own(monkeypatch):
    keys, shapes = [], []

    def record(self, x, *, rngs):
        if self.rate:
            keys.append(np.asarray(jax.random.key_data(jax.random.clone(rngs))).tolist())
            shapes.append(x.shape[1:])
        return x

    config = ViT(**SMALL, dropout=0.25)
    params = random_params(ViT(**SMALL))
    monkeypatch.setattr(nnx.Dropout, "__call__", record)
    model = make_model(config, SHAPE, 2)
    variables = Variables({"encoder": params}, NO_STATS)
    model.features(variables, IMAGES, train=True, dropout_key=jax.random.key(1))
    assert shapes == [(7, 12), *[(7, 12), (7, 20), (7, 12)] * 2]
    assert len({tuple(key) for key in keys}) == len(keys)


def test_dropout_in_training_only_and_by_key():
    config, params = ViT(**SMALL, dropout=0.5), random_params(ViT(**SMALL))
    plain = features_of(ViT(**SMALL))(params, IMAGES)
    np.testing.assert_array_equal(features_of(config)(params, IMAGES), plain)
    train = features_of(config, True)
    a, again, b = (train(params, IMAGES, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(a, again)
    assert min(float(np.abs(x - y).max()) for x, y in ((a, b), (a, plain), (b, plain))) > 0.01


def test_it_learns_where_the_bright_patch_is():
    """What only positions tell: which of the 6 patches is bright."""
    model = make_model(ViT(**SMALL), SHAPE, 6)
    labels = np.arange(24) % 6
    images = np.zeros((24, 2, 4, 3, 4, 3), np.float32)
    images[np.arange(24), labels // 3, :, labels % 3] = 1
    images = images.reshape(24, *SHAPE) + 0.1 * np.random.default_rng(2).normal(size=(24, *SHAPE))
    optimizer = optax.adam(1e-2)

    def loss(params):
        features, _ = model.features(Variables(params, NO_STATS), images, train=True)
        logits = model.logits(params, features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def train(key):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        params = model.init(key).params
        return jax.lax.scan(step, (params, optimizer.init(params)), None, 30)[1]

    losses = train(jax.random.key(0))
    assert losses[0] > 1.5
    assert losses[-1] < 0.3


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 0}, "^patch_size is 0; it must be at least 1$"),
        ({"width": -1}, "^width is -1; it must be at least 1$"),
        ({"depth": 0}, "^depth is 0; it must be at least 1$"),
        ({"num_heads": 0}, "^num_heads is 0; it must be at least 1$"),
        ({"mlp_width": 0}, "^mlp_width is 0; it must be at least 1$"),
        ({"width": 100}, "^width is 100; it must be a multiple of num_heads, which is 12$"),
        ({"dropout": 1.0}, r"^dropout is 1.0; it must lie in \[0, 1\)$"),
        ({"dropout": -0.1}, r"^dropout is -0.1; it must lie in \[0, 1\)$"),
        ({"pooling": "max"}, "^pooling is 'max'; choose 'cls' or 'mean'$"),
        ({"dtype": "float16"}, "dtype is 'float16'; choose"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        ViT(**settings)


@pytest.mark.parametrize("shape", [(30, 32, 3), (32, 30, 3), (0, 32, 3)])
def test_images_that_patches_do_not_tile(shape):
    with pytest.raises(InputError) as caught:
        make_model(ViT(**SMALL | {"patch_size": 8}), shape, 2)
    assert str(caught.value) == (
        f"patch_size is 8; the images are {shape[0]}x{shape[1]}: choose one that divides both "
        "sides, or resize the images"
    )


@pytest.mark.parametrize("given", [(8, 8, 3), (16, 24, 3), (12, 8, 3)])
def test_images_of_another_size_than_the_positions(given):
    message = rf"the images are \({given[0]}, {given[1]}, 3\); this ViT has positions for \(8, 12"
    config = ViT(**SMALL)
    with pytest.raises(InputError, match=message):
        features_of(config)(random_params(config), np.zeros((2, *given), np.float32))
