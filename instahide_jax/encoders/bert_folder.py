"""Folders of Hugging Face's layout as `Bert` encoders and back: config.json and safetensors."""

import functools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from instahide_jax.encoders.base import EncoderConfig, Tree, make_model
from instahide_jax.encoders.bert import Bert
from instahide_jax.encoders.tensor_files import (
    Tensor,
    list_tensors,
    read_json,
    read_tensors,
    shorten,
    weight_files,
)
from instahide_jax.errors import InputError
from instahide_jax.files import file_above, private_file
from instahide_jax.folders import local_folder

SETTINGS = ("output", "dropout", "attention_dropout", "remat", "dtype")
TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)

# Fields of `Bert` and their names in config.json; the first ones determine the shapes.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
}
_RATES = {
    "norm_epsilon": "layer_norm_eps",
    "init_std": "initializer_range",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
# What this encoder computes; a folder that asks for anything else is refused.
_FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_MODULES = {
    "embeddings.words": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.types": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
    "pooler": "pooler.dense",
}
_HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_FLOATS = ("F16", "BF16", "F32", "F64")


def from_folder(path: str | Path, **settings: Any) -> Bert:
    """The encoder that a local folder describes, set to start from its weights.

    Where config.json does not give them, the dropout rates, `norm_epsilon`, `init_std` and, for
    RoBERTa, pad_token_id are the defaults of `Bert`; sizes must be given.

    Args:
      path: a folder with config.json and model.safetensors, or the shards that
        model.safetensors.index.json lists; see `folders.local_folder`.
      settings: any of `SETTINGS`; they override what config.json says.

    Raises:
      InputError: if the folder lacks one of the files, describes another architecture, or a
        setting is none of `SETTINGS`.
    """
    folder = local_folder(path)
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise InputError(
            f"{unknown[0]} cannot be set beside a folder; choose among {', '.join(SETTINGS)}"
        )
    weight_files(folder)
    file = folder / "config.json"
    content = read_json(file)
    kind = content.get("model_type")
    if kind not in ("bert", "roberta"):
        raise InputError(f"model_type in {file} is {kind!r}; it must be 'bert' or 'roberta'")
    for name, value in _FIXED.items():
        if content.get(name, value) != value:
            raise InputError(
                f"{name} in {file} is {content[name]!r}; only {value!r} is supported: take another "
                "model"
            )
    values: dict[str, Any] = {
        field: _number(file, content, name, int) for field, name in _SIZES.items()
    }
    values |= {
        field: _number(file, content, name, float)
        for field, name in _RATES.items()
        if name in content
    }
    if kind == "roberta" and content.get("pad_token_id") is not None:
        values["padding_idx"] = _number(file, content, "pad_token_id", int)
    return Bert(**{**values, "kind": kind, "folder": str(path), **settings})


def pretrained(config: EncoderConfig) -> Tree | None:
    """Weights that training of an encoder starts from; None where it starts from random ones.

    `make_model(...).init` stays a function of the key alone: weights that it read would become
    constants of every compiled program that calls it, hundreds of megabytes, and tracing would read
    them from the disk. Instead the caller replaces the encoder's part of the initial parameters:

        loaded = pretrained(config)
        if loaded is not None:
            loaded = jax.tree.map(lambda old, new: jax.device_put(new, old.sharding),
                                  params["encoder"], loaded)
            params = {**params, "encoder": loaded}

    Raises:
      InputError: as `load_params`.
    """
    if not isinstance(config, Bert) or config.folder is None:
        return None
    return load_params(config)


def _check_architecture(config: Bert, described: Bert, folder: Path) -> None:
    """Refuse an encoder that would compute something else with the weights of a folder."""
    names = ["kind", *_SIZES, "norm_epsilon"]
    if described.kind == "roberta":
        names.append("padding_idx")
    differing = [
        f"{name} is {getattr(config, name)} instead of {getattr(described, name)}"
        for name in names
        if getattr(config, name) != getattr(described, name)
    ]
    if differing:
        raise InputError(
            f"the encoder is not that of {folder / 'config.json'}: {'; '.join(differing)}; change "
            "it, or take the folder that belongs to it"
        )


def load_params(config: Bert) -> Tree:
    """The weights in `config.folder`: float32 NumPy arrays in the tree of params["encoder"].

    Names may carry the prefix "bert." or "roberta.", and the old names gamma and beta for weight
    and bias of a layer normalisation. Heads (cls, lm_head, classifier, qa_outputs) and buffers of
    numbered positions or zero token types are left out, and so is a pooler where `config.output` is
    not "pooled". Every other tensor must be one of the encoder's, in its shape.

    Raises:
      InputError: if `config.folder` is None or cannot be read, or its config.json is that of
        another architecture; or one that lists all tensors that are missing, surplus or misshapen
        (no more than 10 names of each).
    """
    if config.folder is None:
        raise InputError("the encoder names no folder to load from; set folder")
    folder = local_folder(config.folder)
    _check_architecture(config, from_folder(config.folder), folder)
    paths, abstract, treedef = _abstract(replace(config, folder=None))
    names = [_tensor_name(path) for path in paths]
    shapes = {
        name: leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape
        for name, path, leaf in zip(names, paths, abstract, strict=True)
    }
    found, surplus = _account(list_tensors(weight_files(folder)), config)
    surplus += [found[name].name for name in sorted(set(found) - set(names))]
    missing = [name for name in names if name not in found]
    misshapen = [
        f"{name} is {found[name].dtype} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in found and (found[name].shape != shape or found[name].dtype not in _FLOATS)
    ]
    if missing or surplus or misshapen:
        only_pooler = missing and all(name.startswith("pooler.") for name in missing)
        raise InputError(
            f"the weights in {folder} do not fit: "
            + "; ".join(
                f"{len(listed)} {what} ({shorten(listed)})"
                for what, listed in (
                    ("missing", missing),
                    ("surplus", surplus),
                    ("misshapen", misshapen),
                )
                if listed
            )
            + (
                "; without a pooler choose output 'cls', 'mean' or 'sequence'"
                if only_pooler
                else "; take the config.json that belongs to them"
            )
        )
    tensors = read_tensors([found[name] for name in names])
    return jax.tree.unflatten(
        treedef,
        [
            np.ascontiguousarray(tensor.T if path[-1] == "kernel" else tensor, np.float32)
            for path, tensor in zip(paths, tensors, strict=True)
        ],
    )


def save_folder(
    path: str | Path,
    config: Bert,
    params: Tree,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
) -> None:
    """Write a folder that `from_folder` and Hugging Face's transformers read.

    The folder appears whole or not at all. Its tensors carry no prefix.

    Args:
      path: must not exist yet; its parent must.
      config: the encoder. output, remat, dtype and folder have no place in config.json.
      params: of the encoder: params["encoder"] of a model.
      tokenizer: a folder whose `TOKENIZER_FILES` are copied, a tokenizer, or None. That of a
        tokenizer has mode 0600: its words may be those of private texts.

    Raises:
      InputError: if `path` exists or cannot be written, `params` are not those of `config`,
        `tokenizer` holds no vocabulary, or a tokenizer is given and the file system keeps no modes.
    """
    path = Path(path)
    copied = check_new_folder(path, None if isinstance(tokenizer, Tokenizer) else tokenizer)
    tensors = _to_tensors(config, params)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        (temporary / "config.json").write_text(
            json.dumps(_to_json(config), indent=2) + "\n", encoding="utf-8"
        )
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        for file in copied:
            shutil.copyfile(file, temporary / file.name)
        if isinstance(tokenizer, Tokenizer):
            with private_file(temporary / "tokenizer.json") as words:
                words.write(tokenizer.to_str(pretty=True).encode())
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {error}; choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(path: Path, tokenizer: str | Path | None) -> list[Path]:
    """Refuse what `save_folder` could not write; the files of the tokenizer.

    Raises:
      InputError: if `path` exists, its parent does not, or `tokenizer` holds no vocabulary.
    """
    if path.exists():
        raise InputError(f"{path} exists already; choose another folder")
    if (file := file_above(path)) is not None:
        raise InputError(f"{path} lies below {file}, which is no folder; choose another folder")
    if not path.absolute().parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist; create it or choose another folder")
    return [] if tokenizer is None else _tokenizer_files(local_folder(tokenizer))


def _to_tensors(config: Bert, params: Tree) -> dict[str, np.ndarray]:
    paths, abstract, treedef = _abstract(replace(config, folder=None))
    leaves, given = jax.tree.flatten(params)
    if given != treedef or any(a.shape != b.shape for a, b in zip(leaves, abstract, strict=True)):
        raise InputError('the parameters are not those of the encoder; give params["encoder"]')
    tensors = {}
    for path, leaf in zip(paths, jax.device_get(leaves), strict=True):
        value = np.asarray(leaf, np.float32)
        tensors[_tensor_name(path)] = np.ascontiguousarray(
            value.T if path[-1] == "kernel" else value
        )
    return tensors


def _to_json(config: Bert) -> dict[str, Any]:
    name = {"bert": "BertModel", "roberta": "RobertaModel"}[config.kind]
    return {
        "architectures": [name],
        "model_type": config.kind,
        "pad_token_id": config.padding_idx if config.kind == "roberta" else 0,
        **{name: getattr(config, field) for field, name in {**_SIZES, **_RATES}.items()},
        **_FIXED,
    }


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        raise InputError(
            f"{folder} holds no vocab.txt or tokenizer.json to copy; name a folder that does"
        )
    return files


@functools.cache  # a large encoder takes seconds to trace
def _abstract(config: Bert) -> tuple[list[tuple[str, ...]], list[Any], Any]:
    """The encoder's parameters: their paths, shapes and tree."""
    model = make_model(config, (1,), 1)
    tree = jax.eval_shape(model.init, jax.random.key(0)).params["encoder"]
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    # Variables add a key of another type below the names of modules and parameters.
    names = [
        tuple(
            jax.tree_util.keystr((part,), simple=True)
            for part in path
            if isinstance(part, jax.tree_util.DictKey)
        )
        for path, _ in leaves
    ]
    return names, [leaf for _, leaf in leaves], treedef


def _tensor_name(path: tuple[str, ...]) -> str:
    """The name of a parameter in the files, without prefix."""
    prefix = ""
    *modules, parameter = path
    if modules[0] == "layers":
        prefix = f"encoder.layer.{modules[1]}."
        modules = modules[2:]
    return f"{prefix}{_MODULES['.'.join(modules)]}.{'bias' if parameter == 'bias' else 'weight'}"


def _account(tensors: list[Tensor], config: Bert) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's tensors by their names of today, and names that occur twice."""
    found: dict[str, Tensor] = {}
    twice = []
    ignored = _HEADS if config.output == "pooled" else (*_HEADS, "pooler.")
    for tensor in tensors:
        name = tensor.name.removeprefix(f"{config.kind}.")
        name = name.replace(".LayerNorm.gamma", ".LayerNorm.weight")
        name = name.replace(".LayerNorm.beta", ".LayerNorm.bias")
        if name in _BUFFERS or name.startswith(ignored):
            continue
        if name in found:
            twice.append(tensor.name)
        found[name] = tensor
    return found, twice


def _number(file: Path, content: dict[str, Any], name: str, kind: type) -> Any:
    """An entry of config.json that must be a number."""
    if name not in content:
        raise InputError(f"{file} lacks {name}; add it")
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise InputError(f"{name} in {file} is {value!r}; it must be a number")
    return kind(value)
