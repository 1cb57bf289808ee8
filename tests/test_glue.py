"""GLUE: the tasks are TFDS' own, its files are read as TFDS reads them, and become its data set."""

import hashlib
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_glue import MSR, TINY, TRAIN_LABELS, write, zipped

from instahide_jax.data import prepare as prepare_module
from instahide_jax.data.glue import GLUE, glue_task
from instahide_jax.data.glue_files import FILES, read_glue
from instahide_jax.data.prepare import prepare
from instahide_jax.data.texts import texts_from_tfds
from instahide_jax.errors import InputError
from instahide_jax.scores import METRICS

# The tasks


def test_metrics_and_splits() -> None:
    assert {name: task.metrics for name, task in GLUE.items() if task.metrics != ("accuracy",)} == {
        "cola": ("matthews",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
    }
    assert {metric for task in GLUE.values() for metric in task.metrics} == set(METRICS)
    assert glue_task("sst2").validation == ("validation",)
    assert glue_task("mnli").validation == ("validation_matched", "validation_mismatched")
    assert glue_task("mnli").test == ("test_matched", "test_mismatched")
    assert {split for task in GLUE.values() for split in task.sizes} == set(FILES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sst-2", r"did you mean 'sst2'\?"),
        ("CoLA", r"did you mean 'cola'\?"),
        ("x", "choose from cola, sst2, mrpc"),
    ],
)
def test_unknown_tasks(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"^GLUE has no task '{name}'; {hint}"):
        glue_task(name)


# Files to data sets


@pytest.mark.parametrize("name", GLUE)
def test_round_trip(name: str, tmp_path: Path) -> None:
    task, root = GLUE[name], tmp_path / "tfds"
    source = write(tmp_path / "source", TINY[name])
    result = prepare(f"glue/{name}", source, root)
    path = root / "glue" / name / "2.0.0"
    assert (result.name, result.version, result.path) == (f"glue/{name}", "2.0.0", path)
    assert set(result.sizes) == set(task.sizes)
    assert str(result).startswith(f"wrote glue/{name} 2.0.0 (train {len(TRAIN_LABELS[name])}, ")

    info = tfds.builder_from_directory(path).info
    assert info.full_name == f"glue/{name}/2.0.0"
    assert set(info.features) == {*task.texts, "label", "idx"}
    assert info.features["idx"].np_dtype == np.int32
    splits, _ = read_glue(task, source)
    for split, examples in splits.items():
        texts = texts_from_tfds(
            f"glue/{name}",
            split,
            text=task.text,
            second=task.second,
            label="label",
            data_dir=str(root),
            unlabelled=split in task.test,
        )
        assert texts.class_names == task.class_names
        seconds = [None] * len(texts.first) if texts.second is None else texts.second
        found = sorted(zip(texts.first, seconds, texts.labels, strict=True))
        assert found == sorted(
            (e[task.text], e.get(task.second or ""), np.float32(e["label"])) for e in examples
        )
    by_index = sorted(splits["train"], key=lambda example: example["idx"])
    assert [example["label"] for example in by_index] == TRAIN_LABELS[name]
    for split in task.test:
        assert {example["label"] for example in splits[split]} == {-1}


def test_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    def first(name: str, split: str = "train") -> list[Any]:
        splits, _ = read_glue(GLUE[name], write(tmp_path / name, TINY[name]))
        return [example[GLUE[name].text] for example in splits[split]]

    assert first("cola") == ['"The sailors rode the breeze clear.', "He éat", "Yes."]
    assert first("sst2") == ["hide new secretions ", "日本 🎬"]
    assert first("sst2", "test") == ["uneasy mishmash", ""]
    assert first("mrpc") == ['"A x.', "C"]


def test_rows_that_tfds_leaves_out(tmp_path: Path) -> None:
    splits, notes = read_glue(GLUE["qqp"], write(tmp_path, TINY["qqp"]))
    assert splits["train"] == [
        {"question1": "A?", "question2": "B?", "label": 1, "idx": 0},
        {"question1": "", "question2": "F?", "label": 0, "idx": 3},
    ]
    assert notes[0] == "left out 2 rows of train.tsv without text or label"
    splits, notes = read_glue(GLUE["mrpc"], write(tmp_path / "mrpc", TINY["mrpc"]))
    assert [example["idx"] for example in splits["train"]] == [0, 2]
    assert notes[0] == "left out 1 row of train.tsv without text or label"


def test_labels_as_others_write_them(tmp_path: Path) -> None:
    """A dash, MNLI's own form where annotators disagree, and integers as decimals."""
    header = "sentence1\tsentence2\tgold_label\n"
    rows = "a\tb\t-\nc\td\tneutral\ne\tf\t2.0\ng\th\t1e0\ni\tj\t\n"
    splits, notes = read_glue(GLUE["mnli"], write(tmp_path / "m", {"train.tsv": header + rows}))
    assert [(e["premise"], e["label"]) for e in splits["train"]] == [("c", 1), ("e", 2), ("g", 1)]
    assert "left out 2 rows of train.tsv without text or label" in notes


def test_long_cells(tmp_path: Path) -> None:
    text = "a" * 200_000
    source = write(tmp_path / "source", {"train.tsv": f"sentence\tlabel\n{text}\t1\n"})
    splits, _ = read_glue(GLUE["sst2"], source)
    assert splits["train"] == [{"sentence": text, "label": 1, "idx": 0}]
    cola = write(tmp_path / "cola", {"train.tsv": f"gj\t1\t\t{text}\n"})
    splits, _ = read_glue(GLUE["cola"], cola)
    assert splits["train"][0]["sentence"] == text


@pytest.mark.parametrize("inner", ["", "SST-2", "glue_data/SST-2"])
@pytest.mark.parametrize("is_zip", [False, True])
def test_folders_and_zips(inner: str, is_zip: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if is_zip:
        source = zipped(tmp_path / "s.zip", TINY["sst2"], inner) if inner else tmp_path / "s.zip"
        if not inner:
            with zipfile.ZipFile(source, "w") as archive:
                for name, content in TINY["sst2"].items():
                    archive.writestr(name, content)
    else:
        write(source / inner, TINY["sst2"])
    splits, _ = read_glue(GLUE["sst2"], source)
    assert {split: len(examples) for split, examples in splits.items()} == (
        {"train": 2, "validation": 1, "test": 2}
    )


def test_sst2_without_header(tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": "first one\t0\nfirst two\t1\n", "test.tsv": "hidden\t1\n"})
    splits, notes = read_glue(GLUE["sst2"], tmp_path)
    assert [e["sentence"] for e in splits["train"]] == ["first one", "first two"]
    assert [(e["label"], e["idx"]) for e in splits["train"]] == [(0, 0), (1, 1)]
    assert [e["label"] for e in splits["test"]] == [1]
    assert notes == (
        "no dev.tsv, so no split validation",
        "train has 2 examples, GLUE's 67349",
        "test has 1 examples, GLUE's 1821",
    )


def test_published_sizes_are_noted(tmp_path: Path) -> None:
    task = replace(GLUE["sst2"], sizes={"train": 2, "validation": 1, "test": 2})
    _, notes = read_glue(task, write(tmp_path, TINY["sst2"]))
    assert notes == ("as many examples as GLUE publishes",)


def test_microsofts_files(tmp_path: Path) -> None:
    splits, _ = read_glue(GLUE["mrpc"], write(tmp_path / "MRPC", MSR).parent)
    assert [(e["sentence1"], e["label"], e["idx"]) for e in splits["train"]] == (
        [("A", 1, 0), ("E", 1, 2)]
    )
    assert splits["validation"] == [{"sentence1": "C", "sentence2": "D", "label": 0, "idx": 1}]
    assert splits["test"] == [{"sentence1": "G", "sentence2": "H", "label": -1, "idx": 0}]
    (tmp_path / "MRPC" / "msr_paraphrase_test.txt").unlink()
    splits, notes = read_glue(GLUE["mrpc"], tmp_path)
    assert list(splits) == ["train", "validation"]
    assert notes[0] == "no msr_paraphrase_test.txt, so no split test"


# What is refused


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("sst2", {}, r"holds no train\.tsv, nor does SST-2 in it; give the folder or zip file of"),
        ("sst2", {"dev.tsv": TINY["sst2"]["dev.tsv"]}, r"holds no train\.tsv, nor"),
        ("mrpc", {}, r"holds no train\.tsv or msr_paraphrase_train\.txt, nor"),
        ("sst2", {"train.tsv": "sentence\tlabel\n"}, "split train of sst2 has no example; restore"),
        ("sst2", {"train.tsv": "sentence\tlabels\na\t1\n"}, r"no column 'label'; did you mean 'la"),
        ("sst2", {"train.tsv": "sentences\tx\na\t1\n"}, r"no column 'sentence'; did you mean 'sen"),
        ("rte", {"train.tsv": "sentence\t0\na\t1\n"}, r"has no column 'sentence1'; did you mean"),
        ("sst2", {"train.tsv": "sentence\tlabel\tlabel\na\t1\t0\n"}, r"2 columns 'label': rename"),
        ("sst2", {"train.tsv": "a\t0\nb\t2\n"}, r"line 2: the label '2' is no class of sst2; cho"),
        (
            "wnli",
            {"train.tsv": "sentence1\tsentence2\tlabel\na\tb\t-1\n"},
            "label '-1' is no class",
        ),
        (
            "rte",
            {"train.tsv": "sentence1\tsentence2\tlabel\na\tb\tentailments\n"},
            r"line 2: the label 'entailments' is no class of rte; did you mean 'entailment'\?",
        ),
        (
            "stsb",
            {"train.tsv": "sentence1\tsentence2\tscore\na\tb\tnan\n"},
            "line 2: the label 'nan' is no finite number",
        ),
        (
            "stsb",
            {"train.tsv": "sentence1\tsentence2\tscore\na\tb\tx\n"},
            "line 2: the label 'x' is no finite number",
        ),
        ("cola", {"train.tsv": "gj\t1\t\tYes\n\n"}, r"train\.tsv, line 2 has 0 cells, expected 4"),
        (
            "mrpc",
            {"msr_paraphrase_train.txt": MSR["msr_paraphrase_train.txt"]},
            "needs mrpc_dev_ids.tsv beside it, GLUE's list of the pairs to validate on; add it",
        ),
        (
            "mrpc",
            MSR | {"msr_paraphrase_train.txt": "Quality\t#1 String\t#2 String\n1\ta\tb\n"},
            "has no column '#1 ID'; ",
        ),
    ],
)
def test_refusals(name: str, files: dict[str, str], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", files)
    with pytest.raises(InputError, match=message) as caught:
        prepare(f"glue/{name}", source, tmp_path / "tfds")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tfds").exists()


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(InputError, match=r"train\.tsv cannot be decoded .*: restore the file"):
        read_glue(GLUE["sst2"], tmp_path)
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"x\.zip cannot be decoded .*: give GLUE's folder or zip"):
        read_glue(GLUE["sst2"], tmp_path / "x.zip")
    with pytest.raises(InputError, match=r"^--source .*nowhere does not exist; give GLUE's fold"):
        read_glue(GLUE["sst2"], tmp_path / "nowhere")
    whole = zipped(tmp_path / "y.zip", TINY["sst2"], "SST-2").read_bytes()
    content = TINY["sst2"]["train.tsv"].encode()
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("train.tsv", content)
    stored = (tmp_path / "z.zip").read_bytes().replace(content, content.upper())
    (tmp_path / "z.zip").write_bytes(stored)
    with pytest.raises(InputError, match=r"z\.zip/train\.tsv cannot be decoded \(Bad CRC-32"):
        read_glue(GLUE["sst2"], tmp_path / "z.zip")
    (tmp_path / "y.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"y\.zip cannot be decoded"):
        read_glue(GLUE["sst2"], tmp_path / "y.zip")


def test_a_bug_is_no_damage_of_a_zip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("instahide_jax.data.glue_files._find", bug)
    with pytest.raises(KeyError, match="a bug"):
        read_glue(GLUE["sst2"], zipped(tmp_path / "s.zip", TINY["sst2"], "SST-2"))


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_has_tensorflow", lambda: False)
    source = write(tmp_path / "source", TINY["sst2"])
    for name, options, message in [
        ("glue", [source], "^glue has several tasks; name one of cola, sst2, .*: glue/sst2"),
        ("glue/sst", [source], r"^GLUE has no task 'sst'; did you mean 'sst2'\?"),
        ("glue/sst2", [None], r"^glue/sst2 needs --source FOLDER_OR_ZIP .* '\.\[tfds\]'$"),
    ]:
        with pytest.raises(InputError, match=message):
            prepare(name, *options, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


# On the disk


def digests(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in root.rglob("*.array_record*")
    }


def test_equal_files_give_equal_records(tmp_path: Path) -> None:
    write(tmp_path / "folder", TINY["stsb"])
    prepare("glue/stsb", tmp_path / "folder", tmp_path / "a")
    prepare("glue/stsb", zipped(tmp_path / "s.zip", TINY["stsb"], "STS-B"), tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 3


def test_a_prepared_task_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_has_tensorflow", lambda: False)
    root = tmp_path / "tfds"
    source = write(tmp_path / "source", TINY["sst2"])
    prepare("glue/sst2", source, root)
    before = digests(root)
    for same in (source, zipped(tmp_path / "s.zip", TINY["sst2"], "SST-2"), None):
        again = prepare("glue/sst2", same, root)
        assert not again.built
        assert str(again).startswith("already prepared: glue/sst2 2.0.0 (train 2, validation 1, ")
    assert digests(root) == before
    with pytest.raises(
        InputError,
        match=r"^glue/rte is not prepared in .*: name one of glue/sst2 or run `instahide prepare "
        r"glue/rte --source FOLDER_OR_ZIP",
    ):
        texts_from_tfds("glue/rte", "train", text="x", label="y", data_dir=str(root))


_KILLED = """
import os, signal, sys
from pathlib import Path
import instahide_jax.data.prepare_text as module

def die_in_the_last_split(examples, description, *_):
    if description == "test":
        os.kill(os.getpid(), signal.SIGKILL)
    return examples

module.progress = die_in_the_last_split
module.prepare_glue("glue/sst2", Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    source, root = write(tmp_path / "source", TINY["sst2"]), tmp_path / "tfds"
    command = [sys.executable, "-c", _KILLED, str(source), str(root)]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert any(root.rglob("*incomplete*"))  # it was in the middle of it
    assert not (root / "glue" / "sst2" / "2.0.0").exists()
    with pytest.raises(InputError, match=r"^glue/sst2 is not prepared in"):
        texts_from_tfds("glue/sst2", "train", text="sentence", label="label", data_dir=str(root))
    assert prepare("glue/sst2", source, root).built
    texts = texts_from_tfds(
        "glue/sst2", "train", text="sentence", label="label", data_dir=str(root)
    )
    assert len(texts.first) == 2
    assert "tensorflow" not in sys.modules
