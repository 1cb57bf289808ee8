"""Folders of weights: every tensor accounted for, read and written whole, by names old and new."""

import json
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from instahide_jax.data.tokenize import load_tokenizer, word_tokenizer
from instahide_jax.encoders import Bert, ConvNet, Variables, make_model, num_parameters
from instahide_jax.encoders import bert_folder as module
from instahide_jax.encoders.bert_folder import from_folder, load_params, pretrained, save_folder
from instahide_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("bert", "roberta")
TENSORS = {kind: load_file(GOLDEN / kind / "model.safetensors") for kind in KINDS}


@pytest.fixture
def folder(tmp_path):
    """A copy of the BERT folder without weights."""
    made = tmp_path / "copy"
    made.mkdir()
    shutil.copy(GOLDEN / "bert" / "config.json", made)
    return made


def write(folder, tensors, file="model.safetensors"):
    save_file(tensors, folder / file)
    return folder


def configure(folder, drop=(), **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    content = {name: value for name, value in content.items() if name not in drop}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def load(folder, **settings):
    return load_params(from_folder(folder, **settings))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def golden(kind="bert", **settings):
    return load(GOLDEN / kind, **settings)


# Configurations


@pytest.mark.parametrize("kind", KINDS)
def test_configuration(kind):
    own = {
        "bert": {"kind": "bert", "vocab_size": 108, "norm_epsilon": 1e-12, "token_types": 2},
        "roberta": {"kind": "roberta", "vocab_size": 120, "norm_epsilon": 1e-5, "token_types": 1},
    }[kind]
    sizes = {"hidden": 32, "layers": 2, "heads": 4, "intermediate": 48, "positions": 20}
    path = GOLDEN / kind
    assert from_folder(path) == Bert(**sizes, **own, folder=str(path))


def test_settings_override_the_folder():
    settings = {"output": "mean", "dropout": 0.3, "attention_dropout": 0.0, "remat": True}
    settings["dtype"] = "bfloat16"
    plain = from_folder(GOLDEN / "bert")
    assert from_folder(GOLDEN / "bert", **settings) == replace(plain, **settings)


def test_rates_of_the_folder_and_their_defaults(folder):
    write(folder, TENSORS["bert"])
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0}
    configure(folder, **rates, layer_norm_eps=1e-3, initializer_range=0.5)
    made = from_folder(folder)
    assert (made.dropout, made.attention_dropout, made.norm_epsilon) == (0.2, 0.0, 1e-3)
    assert made.init_std == 0.5
    made = from_folder(configure(folder, drop=[*rates, "layer_norm_eps", "initializer_range"]))
    assert made == replace(from_folder(GOLDEN / "bert"), folder=str(folder))


def test_padding_position(folder):
    configure(folder, model_type="roberta", pad_token_id=4)
    assert from_folder(write(folder, TENSORS["bert"])).padding_idx == 4
    assert from_folder(configure(folder, drop=["pad_token_id"])).padding_idx == 1


# Weights


@pytest.mark.parametrize("kind", KINDS)
def test_weights_fit_the_model_and_are_float32(kind):
    params = golden(kind)
    made = jax.eval_shape(
        make_model(from_folder(GOLDEN / kind), (8,), 2).init, jax.random.key(0)
    ).params["encoder"]
    assert jax.tree.structure(params) == jax.tree.structure(made)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(made), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert num_parameters(params) == sum(t.size for t in TENSORS[kind].values())
    query = TENSORS[kind]["encoder.layer.1.attention.self.query.weight"]
    np.testing.assert_array_equal(params["layers"][1]["attention"]["query"]["kernel"][...], query.T)


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_heads_buffers_and_old_names(folder, kind):
    shutil.copy(GOLDEN / kind / "config.json", folder)
    tensors = {f"{kind}.{name}": value for name, value in TENSORS[kind].items()}
    same(load(write(folder, tensors)), golden(kind))
    old = {
        re.sub(r"(?<=LayerNorm\.)bias", "beta", re.sub(r"(?<=LayerNorm\.)weight", "gamma", name)): t
        for name, t in tensors.items()
    }
    assert len(set(old) - set(tensors)) == 10
    heads = ("cls.predictions.bias", "lm_head.dense.weight", "classifier.bias", "qa_outputs.bias")
    old |= {name: np.zeros(3, np.float32) for name in heads}
    old[f"{kind}.embeddings.position_ids"] = np.arange(20)[None, :]
    same(load(write(folder, old)), golden(kind))


def test_another_architecture_s_prefix_is_not_ignored(folder):
    tensors = {f"roberta.{name}": value for name, value in TENSORS["bert"].items()}
    with pytest.raises(InputError, match=r"39 missing \(.* and 29 more\); 39 surplus \(roberta"):
        load(write(folder, tensors))


def test_shards(folder):
    names = sorted(TENSORS["bert"])
    parts = {"a.safetensors": names[:11], "b.safetensors": names[11:]}
    for file, part in parts.items():
        write(folder, {name: TENSORS["bert"][name] for name in part}, file)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    same(load(folder), golden())
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks b\.safetensors, which model.*json names"):
        load(folder)
    for damage in ("{", "[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b"}}'):
        index.write_text(damage)
        with pytest.raises(InputError, match=r"index\.json .*; restore it"):
            load(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_precision(folder, dtype):
    tensors = {name: value.astype(dtype) for name, value in TENSORS["bert"].items()}
    made = load(write(folder, tensors))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype("float32")}
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(golden()), strict=True):
        np.testing.assert_array_equal(a, b.astype(dtype).astype(np.float32))


def test_a_pooler_is_needed_for_pooled_output_only(folder):
    tensors = {n: t for n, t in TENSORS["bert"].items() if not n.startswith("pooler.")}
    write(folder, tensors)
    for output in ("cls", "mean", "sequence"):
        made = load(folder, output=output)
        assert "pooler" not in made
        same(made, golden(output=output))  # whose file has one: it is left out
    message = (
        r"2 missing \(pooler.dense.bias, pooler.dense.weight\); without a pooler choose output "
        "'cls', 'mean' or 'sequence'"
    )
    with pytest.raises(InputError, match=message):
        load(folder)


def test_all_that_does_not_fit_is_listed_in_one_line(folder):
    tensors = dict(TENSORS["bert"])
    del tensors["encoder.layer.1.output.dense.bias"], tensors["pooler.dense.weight"]
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    tensors["bert.pooler.dense.bias"] = tensors["pooler.dense.bias"]
    tensors["embeddings.LayerNorm.bias"] = np.zeros(33, np.float32)
    tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((32, 48), np.float32)
    tensors["encoder.layer.0.output.dense.bias"] = np.zeros(32, np.int8)
    with pytest.raises(InputError) as caught:
        load(write(folder, tensors))
    message = str(caught.value)
    assert message.count("\n") == 0
    missing, surplus, misshapen, remedy = message.split("; ")
    assert missing == (
        f"the weights in {folder} do not fit: 2 missing (encoder.layer.1.output.dense.bias, "
        "pooler.dense.weight)"
    )
    assert re.fullmatch(
        r"2 surplus \((bert\.)?pooler\.dense\.bias, encoder\.layer\.2\.output\.dense\.bias\)",
        surplus,
    )
    assert misshapen == (
        "3 misshapen (embeddings.LayerNorm.bias is F32 [33] instead of [32], "
        "encoder.layer.0.intermediate.dense.weight is F32 [32, 48] instead of [48, 32], "
        "encoder.layer.0.output.dense.bias is I8 [32] instead of [32])"
    )
    assert remedy == "take the config.json that belongs to them"


# Starting from a folder


def test_pretrained():
    assert pretrained(ConvNet()) is None
    assert pretrained(Bert()) is None
    same(pretrained(from_folder(GOLDEN / "bert")), golden())
    with pytest.raises(InputError, match="names no folder to load from; set folder"):
        load_params(Bert())


def test_init_reads_no_folder_and_the_caller_puts_the_weights_in():
    config = from_folder(GOLDEN / "bert")
    model = make_model(config, (12,), 2)
    elsewhere = make_model(replace(config, folder="nowhere"), (12,), 2)
    jax.eval_shape(elsewhere.init, jax.random.key(0))
    constants = jax.make_jaxpr(model.init)(jax.random.key(0)).consts
    assert sum(np.size(c) for c in constants) < 100
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    params, stats = init(jax.random.key(0))
    loaded = jax.tree.map(  # as in the docstring
        lambda old, new: jax.device_put(new, old.sharding), params["encoder"], pretrained(config)
    )
    variables = Variables({**params, "encoder": loaded}, stats)
    assert jax.tree.structure(variables.params) == jax.tree.structure(params)
    expected = np.load(GOLDEN / "bert" / "expected.npz")
    tokens = {name: jnp.asarray(expected[name]) for name in ("ids", "types", "mask")}
    made, _ = model.features(variables, tokens, train=False)
    np.testing.assert_allclose(made, expected["pooled"], atol=1e-5)


# Writing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["pooled", "mean"])
def test_what_is_saved_is_read_again(tmp_path, kind, output):
    config = from_folder(GOLDEN / kind, output=output, dropout=0.3)
    config = replace(config, init_std=0.25)
    params = jax.tree.map(lambda x: x + 1, load_params(config))
    save_folder(tmp_path / "saved", config, jax.device_put(params))
    again = from_folder(tmp_path / "saved", output=output)
    assert again == replace(config, folder=str(tmp_path / "saved"))
    same(load_params(again), params)
    files = {file.name for file in (tmp_path / "saved").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    written = load_file(tmp_path / "saved" / "model.safetensors")
    kept = {n for n in TENSORS[kind] if output == "pooled" or not n.startswith("pooler.")}
    assert set(written) == kept


def test_the_description_is_that_of_the_original(tmp_path):
    """What is written agrees with what PyTorch's library wrote, where both say something."""
    for kind in KINDS:
        config = from_folder(GOLDEN / kind)
        save_folder(tmp_path / kind, config, load_params(config))
        ours, theirs = (
            json.loads((root / kind / "config.json").read_text()) for root in (tmp_path, GOLDEN)
        )
        assert len(set(ours) & set(theirs)) > 14
        assert all(ours[name] == theirs[name] for name in set(ours) & set(theirs))


def test_tokenizer_files_are_copied(tmp_path):
    config = from_folder(GOLDEN / "bert")
    save_folder(tmp_path / "saved", config, load_params(config), tokenizer=GOLDEN / "bert")
    copied = tmp_path / "saved" / "vocab.txt"
    assert copied.read_bytes() == (GOLDEN / "bert" / "vocab.txt").read_bytes()
    with pytest.raises(InputError, match=r"holds no vocab\.txt or tokenizer\.json to copy"):
        save_folder(tmp_path / "other", config, load_params(config), tokenizer=GOLDEN / "roberta")
    assert not (tmp_path / "other").exists()


def test_words_of_texts_are_for_their_owner_alone(tmp_path):
    config = from_folder(GOLDEN / "bert")
    words = word_tokenizer(["a b"], 9)
    save_folder(tmp_path / "saved", config, load_params(config), tokenizer=words)
    file = tmp_path / "saved" / "tokenizer.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_tokenizer(tmp_path / "saved").get_vocab() == words.get_vocab()


@pytest.mark.parametrize("error", [OSError("No space left"), KeyboardInterrupt()])
def test_whole_or_absent(tmp_path, monkeypatch, error):
    def fail(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, "save_file", fail)
    config = from_folder(GOLDEN / "bert")
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(expected):
        save_folder(tmp_path / "saved", config, load_params(config))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    config, params = from_folder(GOLDEN / "bert"), golden()
    with pytest.raises(InputError, match="exists already; choose another folder"):
        save_folder(tmp_path, config, params)
    with pytest.raises(InputError, match=r"folder .*absent does not exist; create it or choose"):
        save_folder(tmp_path / "absent" / "saved", config, params)


def test_parameters_of_another_encoder_are_not_written(tmp_path):
    config = from_folder(GOLDEN / "bert")
    for params in (golden(output="cls"), {"encoder": golden()}, golden("roberta")):
        with pytest.raises(InputError, match="parameters are not those of the encoder"):
            save_folder(tmp_path / "saved", config, params)


# Folders that are refused


def test_folders_without_weights(tmp_path, folder):
    with pytest.raises(InputError, match=r"absent is no folder; give one with config.json"):
        from_folder(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no weights: neither model\.safetensors nor"):
        from_folder(folder)
    write(folder, TENSORS["bert"])
    whole = (folder / "model.safetensors").read_bytes()
    for part in (whole[:-1], whole[:50], b""):
        (folder / "model.safetensors").write_bytes(part)
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read: .*; restore it"):
            load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds no config\.json; restore it"):
        from_folder(folder)


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({"model_type": "gpt2"}, (), "json is 'gpt2'; it must be 'bert' or 'roberta'"),
        ({}, ("model_type",), "model_type in .* is None; it must be"),
        (
            {"hidden_act": "gelu_new"},
            (),
            "hidden_act in .* is 'gelu_new'; only 'gelu' is supported",
        ),
        ({"position_embedding_type": "relative_key"}, (), "only 'absolute' is supported"),
        ({"is_decoder": True}, (), "is_decoder in .* is True; only False"),
        ({"add_cross_attention": True}, (), "add_cross_attention in .* is True"),
        ({}, ("hidden_size",), "lacks hidden_size; add it"),
        ({"hidden_size": "32"}, (), "hidden_size in .* is '32'; it must be a number"),
        ({"hidden_size": 32.5}, (), "hidden_size in .* is 32.5; it must be a number"),
        ({"layer_norm_eps": True}, (), "layer_norm_eps in .* is True; it must be a number"),
        ({"num_attention_heads": 5}, (), "hidden is 32; it must be a multiple of heads"),
    ],
)
def test_configurations_that_are_refused(folder, changes, drop, message):
    with pytest.raises(InputError, match=message):
        from_folder(configure(write(folder, TENSORS["bert"]), drop, **changes))


def test_sizes_cannot_be_set():
    with pytest.raises(InputError, match="hidden cannot be set beside a folder; choose among out"):
        from_folder(GOLDEN / "bert", hidden=64)
