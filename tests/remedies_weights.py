"""Cases of `remedies`: vocabularies, folders of weights, scores."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_text
from programs import files_up_to
from remedies import case, refused
from safetensors.numpy import load_file, save_file

from instahide_jax.data.tokenize import encode, load_tokenizer, word_tokenizer
from instahide_jax.encoders import make_model
from instahide_jax.encoders.bert_folder import from_folder, load_params, save_folder
from instahide_jax.encoders.tensor_files import weights_identity
from instahide_jax.scores import score

GOLDEN = Path(__file__).parent / "golden"


@case
def vocabularies(place: Path) -> None:
    with refused("is no folder; name one with a vocabulary"):
        load_tokenizer("v")
    folder = place / "v"
    folder.mkdir()
    with refused("name a folder that does"):
        load_tokenizer(folder)
    words = (GOLDEN / "bert/vocab.txt").read_text()
    (folder / "vocab.txt").write_text(words.replace("[CLS]\n", ""))
    with refused("lacks [CLS]; take the vocabulary of a BERT"):
        load_tokenizer(folder)
    capitals = "".join(f"Word{i}\n" for i in range(99))
    (folder / "vocab.txt").write_text(words + capitals)
    with refused('write {"do_lower_case": false} to v/tokenizer_config.json'):
        load_tokenizer("v")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    load_tokenizer("v")
    (folder / "tokenizer_config.json").write_text("{")
    with refused("tokenizer_config.json cannot be read", "restore it"):
        load_tokenizer("v")
    shutil.copy(GOLDEN / "bert/vocab.txt", folder)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    size = len(words.splitlines())
    with refused("take the vocabulary that belongs to the model, or a larger vocab_size"):
        load_tokenizer(folder, 5)
    load_tokenizer(folder, size)
    unpadded = json.loads(tokenizer.to_str().replace("[PAD]", "[GAP]"))
    (folder / "tokenizer.json").write_text(json.dumps(unpadded))
    with refused("has none of the tokens [PAD], <pad>; add one"):
        load_tokenizer(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    load_tokenizer(folder)
    with refused("1 first texts and 2 second; give pairs"):
        encode(tokenizer, ["a"], 8, ["b", "c"])
    with refused("second text 0 is 3; give a string"):
        encode(tokenizer, ["a"], 8, [3])  # type: ignore[list-item]
    with refused("it must be above 3"):
        encode(tokenizer, ["a"], 3, ["b"])
    encode(tokenizer, ["a"], 4, ["b"])
    with refused("it must be above 4"):
        word_tokenizer(["a"], 4)
    word_tokenizer(["a"], 5)


@case
def folders_of_weights(place: Path) -> None:
    folder = place / "bert"
    with refused("give one with config.json and model.safetensors"):
        from_folder(folder)
    shutil.copytree(GOLDEN / "bert", folder)
    whole = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    config = json.loads(whole["config.json"])
    tensors = load_file(folder / "model.safetensors")
    encoder = from_folder(folder)

    def restored(message: str, read: Callable[[], Any], **files: bytes | None) -> None:
        """Damage files, read, restore them and read again."""
        for name, data in files.items():
            file = folder / name.replace("_", ".", 1)
            file.write_bytes(data) if data is not None else file.unlink()
        with refused(message):
            read()
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        read()

    def described(**changes: Any) -> bytes:
        return json.dumps({k: v for k, v in (config | changes).items() if v != "drop"}).encode()

    def read() -> Any:
        return load_params(from_folder(folder))

    restored("holds no config.json; restore it", read, config_json=None)
    restored("cannot be read", read, config_json=b"{")
    restored("holds no JSON object; restore it", read, config_json=b"[]")
    restored("it must be 'bert' or 'roberta'", read, config_json=described(model_type="gpt"))
    restored("only 'gelu' is supported: take ano", read, config_json=described(hidden_act="relu"))
    restored("lacks vocab_size; add it", read, config_json=described(vocab_size="drop"))
    restored("it must be a number", read, config_json=described(vocab_size="many"))
    restored("must be converted to safetensors first", read, model_safetensors=None)
    restored("restore it", read, model_safetensors=b"x")
    with refused("choose among output, dropout"):
        from_folder(folder, hidden=3)
    from_folder(folder, output="mean")
    with refused("change it, or take the folder that belongs to it"):
        load_params(replace(encoder, layers=1))
    with refused("names no folder to load from; set folder"):
        load_params(replace(encoder, folder=None))
    load_params(encoder)
    bare = {name: value for name, value in tensors.items() if "pooler" not in name}
    save_file(bare, folder / "model.safetensors")
    with refused("without a pooler choose output 'cls', 'mean' or 'sequence'"):
        load_params(encoder)
    load_params(from_folder(folder, output="cls"))
    save_file(dict(list(bare.items())[1:]), folder / "model.safetensors")
    with refused("take the config.json that belongs to them"):
        load_params(from_folder(folder, output="cls"))
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").unlink()
    for content, message in (
        ({}, "has no weight_map to files beside it; restore it"),
        (
            {"weight_map": {"a": "part.safetensors"}},
            "lacks part.safetensors, which",
        ),
    ):
        index.write_text(json.dumps(content))
        with refused(message, "restore it"):
            load_params(encoder)
    save_file(tensors, folder / "part.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hashlib.file_digest", _cannot_read)
        with refused("part.safetensors cannot be read: Input/output error; restore it"):
            weights_identity(folder)
    weights_identity(folder)
    load_params(encoder)


def _cannot_read(*_: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


@case
def saving_encoders(place: Path) -> None:
    encoder = replace(tiny_text.EXPERIMENT.encoder, positions=8)
    shapes = jax.eval_shape(make_model(encoder, (4,), 2).init, jax.random.key(0)).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    trained = params["encoder"]
    with refused('give params["encoder"]'):
        save_folder("out", encoder, params)
    with refused("create it or choose another folder"):
        save_folder("deep/out", encoder, trained)
    Path("deep").mkdir()
    save_folder("deep/out", encoder, trained)
    with refused("exists already; choose another folder"):
        save_folder("deep/out", encoder, trained)
    with refused("which is no folder; choose another folder"):
        save_folder("deep/out/config.json/a/b", encoder, trained)
    with refused("to copy; name a folder that does"):
        save_folder("out", encoder, trained, tokenizer="deep")
    save_folder("out", encoder, trained, tokenizer=GOLDEN / "bert")
    with files_up_to(1000), refused("cannot write full", "choose another folder"):
        save_folder("full", encoder, trained)


@case
def scores(place: Path) -> None:
    labels, logits, numbers = np.array([0, 1]), np.eye(2), np.array([0.1, 0.2])
    for arguments, message, good in (
        ((["acuracy"], labels, logits), "did you mean 'accuracy'?", ["accuracy"]),
        ((["pearson"], labels, logits), "choose metrics for classes", ["matthews"]),
        ((["accuracy"], labels, numbers), "choose metrics for numbers", None),
        ((["accuracy"], labels[:1], logits), "give one label per output", ["accuracy"]),
        ((["accuracy"], labels[:0], logits[:0]), "at least one example", ["accuracy"]),
        (
            (["accuracy"], labels, np.full((2, 2), np.inf)),
            "with a lower learning rate",
            ["accuracy"],
        ),
        ((["pearson"], np.full(2, np.nan), numbers), "takes finite numbers", None),
        ((["accuracy"], labels / 2, logits), "takes integers", ["accuracy"]),
        ((["accuracy"], labels - 1, logits), "score labelled examples only", ["accuracy"]),
        ((["f1"], labels, np.eye(3)[:2]), "use accuracy", ["accuracy"]),
    ):
        with refused(message):
            score(*arguments)
        if good is None:
            score(["pearson"], numbers, numbers)
        else:
            score(good, labels, logits)
