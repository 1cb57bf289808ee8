"""BERT and RoBERTa: PyTorch's numbers, padding, dropout, memory, sizes, and what is refused."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instahide_jax.encoders import Bert, ConvNet, Variables, make_model, num_parameters
from instahide_jax.encoders.bert_folder import from_folder, load_params
from instahide_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("bert", "roberta")
OUTPUTS = ("sequence", "pooled", "cls", "mean")
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def golden(kind):
    return dict(np.load(GOLDEN / kind / "expected.npz"))


@functools.cache
def config(kind, **settings):
    plain = {"dropout": 0.0, "attention_dropout": 0.0}
    return from_folder(GOLDEN / kind, **plain | settings)


@functools.cache
def params(kind, output="sequence"):
    return {"encoder": load_params(config(kind, output=output))}


def quickly(function):
    return jax.jit(function, compiler_options=QUICK)


@functools.cache
def features_of(encoder, train=False):
    """(params, tokens, key) -> features."""
    model = make_model(encoder, (12,), 2)

    def features(params, tokens, key=None):
        variables = Variables(params, nnx.State({}))
        return model.features(variables, tokens, train=train, dropout_key=key)[0]

    return features


@functools.cache
def compiled(encoder, train):
    return quickly(features_of(encoder, train))


def tokens(kind):
    return {name: golden(kind)[name] for name in ("ids", "types", "mask")}


def features(kind, inputs=None, key=None, train=False, **settings):
    encoder = config(kind, **settings)
    inputs = tokens(kind) if inputs is None else inputs
    return compiled(encoder, train)(params(kind, encoder.output), inputs, key)


def close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# Numbers


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_those_of_pytorch(kind):
    expected, mask = golden(kind), golden(kind)["mask"][..., None]
    assert mask.min() == 0
    sequence = features(kind, output="sequence")
    np.testing.assert_allclose(sequence, expected["sequence"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(features(kind, output="pooled"), expected["pooled"], atol=1e-5)
    np.testing.assert_allclose(
        features(kind, output="cls"), expected["sequence"][:, 0], rtol=0, atol=1e-5
    )
    mean = (expected["sequence"] * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(features(kind, output="mean"), mean, rtol=0, atol=1e-5)


@functools.cache
def loss_and_gradients(kind, remat=False):
    """Of the loss in make_bert_golden.py: a part of the pooled output and one of the sequence."""
    expected = golden(kind)
    weights = expected["weights"] * expected["mask"][..., None]
    encoders = {o: config(kind, output=o, remat=remat) for o in ("pooled", "sequence")}

    def loss(params):
        pooled = features_of(encoders["pooled"])(params["pooled"], tokens(kind))
        sequence = features_of(encoders["sequence"])(params["sequence"], tokens(kind))
        return jnp.square(pooled).sum() + (sequence * weights).sum()

    both = {output: params(kind, output) for output in encoders}
    value, gradients = quickly(jax.value_and_grad(loss))(both)
    pooled, sequence = (gradients[o]["encoder"] for o in ("pooled", "sequence"))
    pooler = np.asarray(pooled.pop("pooler")["kernel"][...])
    return value, jax.tree.map(np.add, pooled, sequence), pooler


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_pytorch(kind):
    expected = golden(kind)
    loss, made, pooler = loss_and_gradients(kind)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    close(pooler.T, expected["grad_pooler"], 1e-5)
    embeddings, (first, second) = made["embeddings"], (made["layers"][i] for i in (0, 1))
    for name in ("words", "positions", "types"):
        close(embeddings[name]["embedding"][...], expected[f"grad_{name}"], 1e-5)
    close(first["attention"]["query"]["kernel"][...].T, expected["grad_query"], 1e-5)
    close(second["intermediate"]["kernel"][...].T, expected["grad_intermediate"], 1e-5)
    close(first["output_norm"]["scale"][...], expected["grad_output_norm"], 1e-5)
    # Of the keys' bias all gradients cancel in the softmax: rounding is all there is.
    assert np.abs(expected["grad_key_bias"]).max() < 1e-4
    assert np.abs(second["attention"]["key"]["bias"][...]).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_remat_gives_the_same_and_keeps_less(kind):
    plain, again = loss_and_gradients(kind), loss_and_gradients(kind, remat=True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    def kept(remat):
        function = features_of(config(kind, output="mean", remat=remat))
        given = params(kind, "mean")
        pull = jax.eval_shape(lambda p: jax.vjp(function, p, tokens(kind))[1], given)
        return sum(leaf.size for leaf in jax.tree.leaves(pull)) - num_parameters(given)

    assert kept(True) < 0.4 * kept(False)


def test_remat_repeats_the_dropout_of_the_forward_pass():
    def gradient(remat):
        encoder = config("bert", output="cls", dropout=0.5, attention_dropout=0.5, remat=remat)
        function = features_of(encoder, True)
        given, key = params("bert", "cls"), jax.random.key(3)
        return quickly(jax.grad(lambda p: (function(p, tokens("bert"), key) ** 2).sum()))(given)

    plain, again = gradient(False), gradient(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_in_it_with_parameters_in_float32():
    encoder = config("bert", output="pooled", dtype="bfloat16")
    exact = features("bert", output="pooled")
    rounded = features("bert", output="pooled", dtype="bfloat16")
    assert rounded.dtype == jnp.float32
    assert 1e-4 < float(jnp.abs(rounded - exact).max()) < 0.2
    made = jax.eval_shape(make_model(encoder, (12,), 2).init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(features_of(encoder))(params("bert", "pooled"), tokens("bert")))
    dots = [line for line in program.splitlines() if "dot_general" in line]
    assert sum("bf16[" in line.split("=")[0] for line in dots) > 10


# Padding and positions


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, output):
    inputs, rng = tokens(kind), np.random.default_rng(1)
    pad = inputs["mask"] == 0
    other = {
        "ids": np.where(pad, rng.integers(0, 100, pad.shape), inputs["ids"]),
        "types": np.where(pad, config(kind).token_types - 1, inputs["types"]),
        "mask": inputs["mask"],
    }
    longer = {n: np.pad(a, ((0, 0), (0, 5)), constant_values=1) for n, a in inputs.items()}
    longer["types"][:, 12:] = longer["mask"][:, 12:] = 0
    made = [features(kind, i, output=output) for i in (inputs, other, longer)]
    if output == "sequence":
        made = [np.asarray(m[:, :12])[~pad] for m in made]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_allclose(made[0], made[2], atol=1e-5)
    fewer = {**inputs, "mask": inputs["mask"] * (np.arange(12) != 5)[None, :]}
    assert np.abs(features(kind, fewer, output=output) - features(kind, output=output)).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_positions_count_tokens_in_roberta_alone(kind):
    """Padding on the left leaves RoBERTa's positions alone, and shifts BERT's."""
    inputs = tokens(kind)
    left = {name: np.roll(array[1:2], 5, axis=1) for name, array in inputs.items()}
    right = {name: array[1:2] for name, array in inputs.items()}
    assert right["mask"].sum() == 7
    change = jnp.abs(features(kind, left, output="mean") - features(kind, right, output="mean"))
    assert (float(change.max()) < 1e-5) == (kind == "roberta")


def test_first_position_of_roberta():
    """Two tokens use the positions 2 and 3, and padding position 1: the gradient says so."""
    inputs = {"ids": np.array([[5, 6, 1]]), "types": np.zeros((1, 3), int), "mask": [[1, 1, 0]]}
    inputs["mask"] = np.array(inputs["mask"])
    function = features_of(config("roberta", output="sequence"))

    def used(sequence_weights):
        gradient = quickly(
            jax.grad(lambda p: (function(p, inputs) ** 3 * sequence_weights[None, :, None]).sum())
        )(params("roberta"))
        rows = np.abs(gradient["encoder"]["embeddings"]["positions"]["embedding"][...]).sum(1)
        return np.flatnonzero(rows).tolist()

    assert used(jnp.array([1.0, 1.0, 0.0])) == [2, 3]
    assert used(jnp.array([0.0, 0.0, 1.0])) == [1, 2, 3]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("output", ["pooled", "mean"])
def test_a_row_without_tokens_is_finite(output, train):
    inputs = tokens("bert")
    inputs["mask"] = inputs["mask"] * np.array([[1], [0], [1]])
    encoder = config("bert", output=output, attention_dropout=0.5)
    function, key = features_of(encoder, train), jax.random.key(1) if train else None
    value, gradient = quickly(jax.value_and_grad(lambda p: function(p, inputs, key).sum()))(
        params("bert", output)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


# Dropout


@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
def test_dropout_in_training_only_and_by_key(rates):
    settings = {"output": "cls", "dropout": rates[0], "attention_dropout": rates[1]}
    plain = features("bert", output="cls")
    np.testing.assert_array_equal(features("bert", **settings), plain)
    keys = [jax.random.key(i) for i in (1, 1, 2)]
    a, again, b = (features("bert", key=key, train=True, **settings) for key in keys)
    np.testing.assert_array_equal(a, again)
    assert min(float(jnp.abs(x - y).max()) for x, y in ((a, b), (a, plain), (b, plain))) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_training_is_evaluation(kind):
    plain = features(kind, output="mean")
    np.testing.assert_array_equal(features(kind, output="mean", train=True), plain)
    # So small that nothing is dropped, but computed by the attention that drops.
    rare = features(kind, output="mean", attention_dropout=1e-12, train=True, key=jax.random.key(0))
    np.testing.assert_allclose(rare, plain, atol=1e-5)


def test_every_dropout_has_a_key_of_its_own(monkeypatch):
    keys, rates = [], []

    def record(self, x, *, rngs):
        keys.append(np.asarray(jax.random.key_data(jax.random.clone(rngs))).tolist())
        rates.append(self.rate)
        return x

    monkeypatch.setattr(nnx.Dropout, "__call__", record)
    encoder = config("bert", output="mean", dropout=0.25, attention_dropout=0.75)
    model, key = make_model(encoder, (12,), 2), jax.random.key(1)
    variables = Variables(params("bert", "mean"), nnx.State({}))
    model.features(variables, tokens("bert"), train=True, dropout_key=key)
    assert rates == [0.25, *[0.75, 0.25, 0.25] * 2]
    assert len({tuple(key) for key in keys}) == len(keys)


# Sizes and initialisation


@pytest.mark.parametrize(
    ("encoder", "count"),
    [
        (Bert(), 109_482_240),
        (Bert(output="cls"), 108_891_648),
        (Bert(kind="roberta", vocab_size=50_265, positions=514, token_types=1), 124_645_632),
    ],
)
def test_number_of_parameters(encoder, count):
    made = jax.eval_shape(make_model(encoder, (8,), 2).init, jax.random.key(0)).params
    assert num_parameters(made["encoder"]) == count
    assert made["head"]["kernel"].shape == (encoder.hidden, 2)


def test_initialisation():
    encoder = Bert(vocab_size=900, hidden=64, layers=1, heads=2, intermediate=64, init_std=0.5)
    init = quickly(make_model(encoder, (8,), 2).init)
    made, other = (init(jax.random.key(i)).params["encoder"] for i in (1, 2))
    for a, b in ((made["embeddings"]["words"], other["embeddings"]["words"]),):
        assert np.abs(a["embedding"][...] - b["embedding"][...]).max() > 0.1
    layer = made["layers"][0]
    for table in (made["embeddings"]["words"]["embedding"], layer["intermediate"]["kernel"]):
        assert np.abs(table[...]).max() <= 1.0
        assert 0.40 < np.std(table[...]) < 0.47  # 0.88 of 0.5: cut at two deviations
    assert np.abs(layer["intermediate"]["bias"][...]).max() == 0
    assert set(np.unique(layer["output_norm"]["scale"][...])) == {1.0}


def test_the_head_takes_sequences():
    model = make_model(config("bert", output="sequence"), (12,), 5)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(
        lambda v: model.logits(v.params, model.features(v, tokens("bert"), train=False)[0]),
        variables,
    )
    assert logits.shape == (3, 12, 5)


def test_integers_of_any_width_are_tokens():
    wide = {name: array.astype(np.uint8) for name, array in tokens("bert").items()}
    np.testing.assert_array_equal(
        features("bert", wide, output="cls"), features("bert", output="cls")
    )


# What is refused


@pytest.mark.parametrize(("kind", "longest"), [("bert", 20), ("roberta", 18)])
def test_sequences_longer_than_the_positions(kind, longest):
    encoder = config(kind)
    assert encoder.max_length == longest
    jax.eval_shape(make_model(encoder, (longest,), 2).init, jax.random.key(0))
    message = f"have {longest + 1} tokens; this {kind} has positions for {longest}: truncate"
    with pytest.raises(InputError, match=message):
        jax.eval_shape(make_model(encoder, (longest + 1,), 2).init, jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "gpt"}, "kind is 'gpt'; choose"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"positions": 0}, "positions is 0"),
        ({"hidden": 10, "heads": 4}, "hidden is 10; it must be a multiple of heads, which is 4"),
        ({"padding_idx": -1}, "padding_idx is -1"),
        (
            {"kind": "roberta", "positions": 2},
            r"positions is 2; RoBERTa leaves padding_idx \+ 1 = 2",
        ),
        ({"norm_epsilon": 0.0}, "norm_epsilon is 0.0; it must be above 0"),
        ({"init_std": -1.0}, "init_std is -1.0"),
        ({"output": "max"}, "output is 'max'; choose"),
        ({"dropout": 1.0}, r"^dropout is 1.0; it must lie in \[0, 1\)"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Bert(**settings)


def test_wrong_inputs():
    for inputs, message in (
        ({"ids": tokens("bert")["ids"]}, r"Bert is given a dict of \['ids'\]; it takes a dict of"),
        (np.zeros((2, 8, 8, 3)), "Bert is given one array"),
        (
            tokens("bert") | {"mask": np.ones((3, 4))},
            r"'mask': \(3, 4\), .*\}; all must be the same",
        ),
        (jax.tree.map(lambda x: x[0], tokens("bert")), r"\(12,\)\}; all must be the same \[B, L\]"),
    ):
        with pytest.raises(InputError, match=message):
            features("bert", inputs, output="cls")
    with pytest.raises(InputError, match=r"the shape of a text is \(8, 8, 3\); give \(length,\)"):
        make_model(Bert(), (8, 8, 3), 2)
    images = make_model(ConvNet(widths=(4,), strides=(2,)), (8, 8, 3), 2)
    with pytest.raises(InputError, match=r"ConvNet is given a dict of .*; it takes one array"):
        jax.eval_shape(
            lambda k: images.features(images.init(k), tokens("bert"), train=False),
            jax.random.key(0),
        )


def test_the_folder_is_no_part_of_the_shape():
    there, nowhere = config("bert"), replace(config("bert"), folder="nowhere")
    a, b = (
        jax.eval_shape(make_model(c, (8,), 2).init, jax.random.key(0)) for c in (there, nowhere)
    )
    assert jax.tree.structure(a) == jax.tree.structure(b)
