"""GLUE's tasks and files against TFDS' own builder, whose code is read but never imported."""

import ast
import csv
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_glue import MSR, TINY, write

from instahide_jax.data import glue
from instahide_jax.data.glue import GLUE
from instahide_jax.data.glue_files import FILES, read_glue

# TFDS' own builder, which cannot be imported without TensorFlow.
BUILDER = (Path(tfds.__file__).parent / "text" / "glue.py").read_text()


def configurations() -> dict[str, dict[str, Any]]:
    """The arguments of TFDS' own configurations of GLUE."""
    shared: dict[str, Any] = {}
    configs = {}
    for node in ast.walk(ast.parse(BUILDER)):
        if not isinstance(node, ast.Call):
            continue
        found = {
            keyword.arg: ast.literal_eval(keyword.value)
            for keyword in node.keywords
            if keyword.arg in ("name", "text_features", "label_classes", "label_column", "data_dir")
            and not isinstance(keyword.value, ast.Name | ast.Attribute | ast.Call)
        }
        if ast.unparse(node.func) == "GlueConfig":
            configs[found["name"]] = found
        elif ast.unparse(node.func) == "dict" and "text_features" in found:
            shared = found  # _MNLI_BASE_KWARGS
    return {
        name: found if "text_features" in found else shared | found
        for name, found in configs.items()
    }


def test_tasks_are_tfds_own() -> None:
    official = configurations()
    assert f'version=tfds.core.Version("{glue.VERSION}")' in BUILDER
    assert list(GLUE) == ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
    assert next(iter(official)) == next(iter(GLUE))  # TFDS' default configuration
    for name, task in GLUE.items():
        config = official[name]
        assert task.texts == tuple(config["text_features"])
        assert task.class_names == tuple(config.get("label_classes", ()))
        assert (task.label_column, task.folder) == (config["label_column"], config["data_dir"])
        if name != "mrpc":  # whose columns are in the code
            assert task.columns == tuple(config["text_features"].values())


def read_by_tfds(name: str, files: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """What the generators of TFDS' own builder make of files."""
    builder = next(n for n in ast.parse(BUILDER).body if getattr(n, "name", None) == "Glue")
    assert isinstance(builder, ast.ClassDef)
    builder.body = [n for n in builder.body if getattr(n, "name", "").startswith("_generate")]
    builder.bases = []
    items = types.SimpleNamespace(iteritems=dict.items, itervalues=dict.values)
    space: dict[str, Any] = {"csv": csv, "np": np, "six": items}
    space["epath"] = types.SimpleNamespace(Path=Path)
    exec(compile(ast.Module([builder], []), "glue.py", "exec"), space)
    config = {"label_classes": None} | configurations()[name]
    reader = space["Glue"]()
    process = (lambda label: label) if config["label_classes"] else np.float32
    reader.builder_config = types.SimpleNamespace(**config, process_label=process)
    name = split.replace("validation", "dev").partition("_")[0]
    examples = reader._generate_examples(files.get(split), name, files)
    return [example for _, example in examples]


def as_numbers(name: str, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Examples with the number of their class, or with float32."""
    names = GLUE[name].class_names

    def number(label: Any) -> Any:
        if not names:
            return np.float32(label)
        return names.index(label) if label in names else label

    return [example | {"label": number(example["label"])} for example in examples]


@pytest.mark.parametrize("name", [name for name in GLUE if name != "mrpc"])
def test_files_are_read_as_tfds_reads_them(name: str, tmp_path: Path) -> None:
    write(tmp_path, TINY[name])
    splits, _ = read_glue(GLUE[name], tmp_path)
    files = {split: tmp_path / FILES[split] for split in splits}
    for split, examples in splits.items():
        official = as_numbers(name, read_by_tfds(name, files, split))
        assert as_numbers(name, examples) == official


def test_microsofts_files_are_read_as_tfds_reads_them(tmp_path: Path) -> None:
    write(tmp_path, MSR)
    splits, _ = read_glue(GLUE["mrpc"], tmp_path)
    files = {"dev_ids": "mrpc_dev_ids.tsv"}
    files |= {split: f"msr_paraphrase_{split}.txt" for split in ("train", "test")}
    paths = {kind: tmp_path / file for kind, file in files.items()}
    for split, examples in splits.items():
        assert examples == read_by_tfds("mrpc", paths, split)


def test_odd_rows_are_read_as_tfds_reads_them(tmp_path: Path) -> None:
    rows = [
        "a \"quote\t'b\t1",
        "line\u2028ends \x85 \x0b\x1c\tthat are none\t0",
        "more\tcells\t1\tthan the header\thas",
        "",
        "too few\t",
        "no label\tb\t",
        "\t\t0",
        " spaces \t kept \tentailment",
    ]
    table = "\n".join(["sentence1\tsentence2\tlabel", *rows])
    for ends in ("\n", "\r\n", "\r"):
        write(tmp_path, {"train.tsv": table.replace("\n", ends)})
        splits, notes = read_glue(GLUE["rte"], tmp_path)
        official = read_by_tfds("rte", {"train": tmp_path / "train.tsv"}, "train")
        assert splits["train"] == as_numbers("rte", official)
        assert [example["idx"] for example in splits["train"]] == [0, 1, 2, 5, 6]
        assert notes[0] == "left out 2 rows of train.tsv without text or label"
