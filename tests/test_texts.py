"""instahide_jax.data.texts: texts of tables and TFDS splits, their identity, what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import write_rows

from instahide_jax.data import texts as texts_module
from instahide_jax.data.texts import Texts, make_texts, read_table, texts_from_tfds
from instahide_jax.errors import InputError

UNICODE = ["naïve café", "日本語 テスト", "🎬👍🏽", "e\u0301 \u2028 \x85 \xa0", ""]
NAMES = ("no", "yes")


def two(**changes: Any) -> Texts:
    """Two texts, or what differs from them."""
    parts: dict[str, Any] = {"first": ["a", "b"], "second": None, "labels": np.array([0, 1])}
    parts |= {"class_names": NAMES} | changes
    return make_texts(**parts)


# make_texts


def test_classes() -> None:
    texts = make_texts(UNICODE, None, np.array([0, 1, 1, 0, 1], np.int64), list(NAMES))
    assert (texts.first, texts.second) == (tuple(UNICODE), None)
    assert (texts.class_names, texts.num_classes) == (NAMES, 2)
    assert (texts.labels.dtype, texts.labels.tolist()) == (np.int32, [0, 1, 1, 0, 1])
    assert len(texts.identity) == 64


def test_pairs_and_numbers() -> None:
    texts = two(second=("c", "d"), labels=[0.5, 4], class_names=())
    assert (texts.second, texts.class_names, texts.num_classes) == (("c", "d"), (), None)
    assert (texts.labels.dtype, texts.labels.tolist()) == (np.float32, [0.5, 4.0])
    assert two(labels=np.array([3, 5]), class_names=()).labels.dtype == np.float32


def test_identity_covers_content_and_order() -> None:
    changed = [
        two(),
        two(first=["b", "a"]),
        two(first=["ab", ""]),
        two(first=["", "ab"]),
        two(first=["a1 b", ""]),
        two(labels=np.array([1, 1])),
        two(labels=np.array([0, 0])),
        two(labels=np.array([0.0, 0.0]), class_names=()),
        two(second=["a", "b"]),
        two(second=["", ""]),
        two(first=["a", "b", "", ""], labels=np.array([0, 1, 0, 1])),
        two(first=["a", "b", "a", "b"], labels=np.array([0, 1, 0, 1])),
    ]
    assert len({texts.identity for texts in changed}) == len(changed)
    assert two().identity == two(class_names=("other", "names")).identity
    assert two().identity == two(labels=np.array([0, 1], np.int8)).identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": [], "labels": np.zeros(0, int)}, "^there is no text: give at least one"),
        ({"labels": np.array([0])}, r"^2 texts but labels of shape \(1,\): need one label per"),
        ({"labels": np.zeros((2, 1), int)}, r"^2 texts but labels of shape \(2, 1\): need one"),
        ({"second": ["c"]}, r"^2 first texts and 1 second but labels of shape \(2,\)"),
        ({"first": "ab"}, "^texts are the single string 'ab': give a list of strings"),
        ({"first": ["a", b"b"]}, "^texts: number 1 is b'b', no string: convert it"),
        ({"second": ["a", None]}, "^second: number 1 is None, no string: convert it"),
        ({"first": ["a", "x\ud800"]}, r"^texts: number 1 holds '\\ud800' at 1, which is no Uni"),
        ({"class_names": ("a", 1)}, "^class names: number 1 is 1, no string"),
        ({"class_names": "ab"}, "^class names are the single string 'ab'"),
        ({"class_names": ("a", "b", "a")}, "^class 'a' is named twice: name every class once"),
        ({"labels": np.array([0.0, 1.0])}, "^labels have dtype float64: convert to integers"),
        ({"labels": np.array([True, False])}, "^labels have dtype bool: convert to integers"),
        ({"labels": np.array([0, 2])}, r"^label 1 is 2: must be in \[0, 2\) for 2 classes; corr"),
        ({"labels": np.array([-2, 0])}, r"^label 0 is -2: must be in \[0, 2\)"),
        ({"labels": np.array([0, -1])}, "^label 1 is -1, which means hidden: leave the text out"),
        ({"labels": ["0", "1"], "class_names": ()}, "^labels have dtype <U1: convert to numbers"),
        ({"labels": [0.0, np.nan], "class_names": ()}, "^label 1 is nan: must be finite"),
        ({"labels": [1e39, 0.0], "class_names": ()}, r"^label 0 is 1e\+39: must be finite"),
        ({"labels": [-1.0, -1.0], "class_names": ()}, "^all labels are -1, which means hidden"),
    ],
)
def test_make_texts_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        two(**changes)
    assert "\n" not in str(caught.value)


def test_hidden_labels_are_accepted_on_request_only() -> None:
    assert two(labels=np.array([-1, 1]), unlabelled=True).labels.tolist() == [-1, 1]
    assert two(labels=[-1.0, -1.0], class_names=(), unlabelled=True).labels.tolist() == [-1, -1]
    assert two(labels=[-1.0, 2.0], class_names=()).labels.tolist() == [-1, 2]  # a number like any
    with pytest.raises(InputError, match="label 0 is -2"):
        two(labels=np.array([-2, 0]), unlabelled=True)


# read_table


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", '\ufeffs\tid\ty\r\n"odd\t1\tyes\r\n\r\nsaid "x"\t2\tno\r\n')
    texts = read_table(path, text="s", label="y")
    assert texts.first == ('"odd', 'said "x"')
    assert (texts.class_names, texts.labels.tolist()) == (("no", "yes"), [1, 0])


def test_csv_has_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'a,b,y\r\n"x, ""y""","two\r\nlines",1.5\r\nz,,-2\r\n')
    texts = read_table(path, text="a", second="b", label="y", regression=True)
    assert (texts.first, texts.second) == (('x, "y"', "z"), ("two\r\nlines", ""))
    assert (texts.labels.tolist(), texts.num_classes) == ([1.5, -2.0], None)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_unicode(tmp_path: Path, suffix: str) -> None:
    rows = [(text, str(number % 2)) for number, text in enumerate(UNICODE)]
    separator = "\t" if suffix == ".tsv" else ","
    lines = (
        [json.dumps({"s": text, "y": int(label)}, ensure_ascii=False) for text, label in rows]
        if suffix == ".jsonl"
        else [separator.join(row) for row in [("s", "y"), *rows]]
    )
    path = write(tmp_path / f"t{suffix}", "\n".join(lines) + "\n")
    texts = read_table(path, text="s", label="y")
    assert texts.first == tuple(UNICODE)
    assert (texts.class_names, texts.labels.tolist()) == (("0", "1"), [0, 1, 0, 1, 0])


def test_jsonl_labels_of_any_kind(tmp_path: Path) -> None:
    rows = [{"s": "a", "y": "cat"}, {"y": "eel", "s": "b", "more": [1]}]
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_table(path, text="s", label="y").class_names == ("cat", "eel")
    numbers = write(tmp_path / "n.jsonl", '{"s": "a", "y": 1}\n\n{"s": "b", "y": 2.5}\n')
    texts = read_table(numbers, text="s", label="y", regression=True)
    assert texts.labels.tolist() == [1.0, 2.5]


def table(tmp_path: Path, labels: list[str], **options: Any) -> Texts:
    lines = [f"text {number}\t{label}" for number, label in enumerate(labels)]
    path = write(tmp_path / "t.tsv", "\n".join(["s\ty", *lines]))
    return read_table(path, text="s", label="y", **options)


@pytest.mark.parametrize(
    ("labels", "given", "names", "numbers"),
    [
        (["10", "2", "10", "-1"], None, ("-1", "2", "10"), [2, 1, 2, 0]),
        (["b", "10", "a"], None, ("10", "a", "b"), [2, 0, 1]),
        (["b", "a"], ("a", "b", "c"), ("a", "b", "c"), [1, 0]),
        (["1", "b", "0"], ("a", "b"), ("a", "b"), [1, 1, 0]),
        (["2", "1"], ("1", "2"), ("1", "2"), [1, 0]),  # names, not numbers
    ],
)
def test_classes_of_tables(
    tmp_path: Path,
    labels: list[str],
    given: tuple[str, ...] | None,
    names: tuple[str, ...],
    numbers: list[int],
) -> None:
    texts = table(tmp_path, labels, class_names=given)
    assert (texts.class_names, texts.labels.tolist()) == (names, numbers)


def test_tables_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"s": "x"}\n{"s": "y"}')
    texts = read_table(path, text="s", label=None)
    assert (texts.num_classes, texts.labels.dtype) == (None, np.float32)
    assert texts.labels.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.txt", "s\ty\na\t0", {}, r"t\.txt must end in \.tsv, \.csv, \.jsonl: rename or conv"),
        ("t.tsv", None, {}, r"^cannot read .*t\.tsv: No such file"),
        ("t.tsv", "s\ty\n", {}, r"t\.tsv holds no row: give at least one"),
        ("t.tsv", "", {}, r"t\.tsv is empty: it needs a line with the names"),
        ("t.tsv", "s\tlabel\na\t0", {}, r"t\.tsv has no column 'y'; choose from s, label"),
        ("t.tsv", "s\tyy\na\t0", {}, r"t\.tsv has no column 'y'; did you mean 'yy'\?"),
        ("t.tsv", "s\ty\ts\na\t0\tb", {}, r"t\.tsv has 2 columns 's': rename one"),
        ("t.tsv", "s\ty\na\t0\n\nb", {}, "line 4 has 1 cells, the header 2: correct the line"),
        (
            "t.tsv",
            "s\ty\na\t0\n\ns\ty\nb\t1",
            {},
            "line 4 is the header again, .*: remove the line$",
        ),
        ("t.csv", "\ufeffs,y\na,0\n\ufeffs,y\nb,1", {}, "line 3 is the header again"),
        ("t.csv", "s,y\na,b,0\n", {}, "line 2 has 3 cells, the header 2: correct the line"),
        ("t.csv", 's,y\na,0\n"b,1\n', {}, "line 3: unexpected end of data: correct the line"),
        ("t.tsv", "s\ty\na\t0\nb\t", {}, "line 3: y is empty: fill it in, or set drop_unlabelled"),
        ("t.tsv", "s\ty\na\t0\nb\t ", {}, "line 3: y is empty"),
        ("t.jsonl", '{"s": "a", "y": null}', {}, "line 1: y is 'null', which is no label: fill"),
        (
            "t.jsonl",
            '{"s": "a", "y": 1}\n{"s": "a"}',
            {},
            "line 2 has no column 'y'; choose from s",
        ),
        ("t.jsonl", '{"s": 3, "y": 1}', {}, "line 1: s is 3: expected a string"),
        ("t.jsonl", '{"s": "a", "y": true}', {}, "line 1: y is True: expected a number or a class"),
        ("t.jsonl", '{"s": "a", "y": [1]}', {}, r"line 1: y is \[1\]: expected a number or a cl"),
        ("t.jsonl", '{"s": "a", "y": 1}\n{', {}, "line 2 is not JSON: .*; correct the line"),
        ("t.jsonl", "[1]", {}, r"line 1 is \[1\]: expected an object; correct the line"),
        ("t.jsonl", '{"s": "\\ud800", "y": 1}', {}, "number 0 holds .* which is no Unicode char"),
        (
            "t.tsv",
            "s\ty\na\tyes\nb\tyess",
            {"class_names": NAMES},
            "line 3: the label 'yess' is no class; did you mean 'yes'",
        ),
        ("t.tsv", "s\ty\na\t2", {"class_names": NAMES}, "'2' is no class; choose from no, yes"),
        (
            "t.tsv",
            "s\ty\na\t0",
            {"class_names": ("1", "2")},
            "line 2: the label '0' is no class; choose from 1, 2",
        ),
        ("t.tsv", "s\ty\na\tx", {"regression": True}, "line 2: the label 'x' is no finite number"),
        ("t.tsv", "s\ty\na\tinf", {"regression": True}, "the label 'inf' is no finite number: co"),
        (
            "t.tsv",
            "s\ty\na\t0",
            {"regression": True, "class_names": NAMES},
            r"^class_names are \('no', 'yes'\) but labels are numbers: leave out class_names",
        ),
    ],
)
def test_read_table_refuses(
    tmp_path: Path, name: str, content: str | None, options: dict[str, Any], message: str
) -> None:
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(tmp_path / name, text="s", label="y", **options)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(b"s\ty\ncaf\xe9\t0\n")
    with pytest.raises(InputError, match=r"t\.tsv cannot be decoded \('utf-8' .*\): save it as U"):
        read_table(tmp_path / "t.tsv", text="s", label="y")


# texts_from_tfds

_FEATURES = {
    "s": tfds.features.Text(),
    "t": tfds.features.Text(),
    "y": tfds.features.ClassLabel(names=list(NAMES)),
    "score": np.float32,
    "idx": np.int32,
    "image": tfds.features.Image(shape=(1, 1, 1)),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the data set "tiny": splits train, hidden and damaged."""
    root = tmp_path_factory.mktemp("prepared")
    png = (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0:~\x9bU\0\0\0\nIDATx\x9cc`\0\0\0"
        b"\2\0\1H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82"
    )

    splits = {
        split: [
            {
                "s": b"\xff" if split == "odd" and index == 3 else text,
                "t": text[::-1],
                "y": index % 2 if split == "train" else -1,
                "score": index / 2,
                "idx": index,
                "image": png,
            }
            for index, text in enumerate(UNICODE)
        ]
        for split in ("train", "hidden", "odd")
    }
    write_rows(root, "tiny", _FEATURES, splits)
    return str(root)


def test_tfds_pairs_and_classes(prepared: str) -> None:
    texts = texts_from_tfds("tiny", "train", text="s", second="t", label="y", data_dir=prepared)
    assert texts.first == tuple(UNICODE)
    assert texts.second == tuple(text[::-1] for text in UNICODE)
    assert (texts.class_names, texts.labels.tolist()) == (NAMES, [0, 1, 0, 1, 0])
    again = make_texts(texts.first, texts.second, texts.labels, NAMES)
    assert again.identity == texts.identity
    assert "tensorflow" not in sys.modules


def test_tfds_slices_and_numbers(prepared: str) -> None:
    texts = texts_from_tfds("tiny", "train[1:4]", text="s", label="score", data_dir=prepared)
    assert texts.first == tuple(UNICODE[1:4])
    assert (texts.labels.dtype, texts.labels.tolist()) == (np.float32, [0.5, 1.0, 1.5])
    assert (texts.num_classes, texts.second) == (None, None)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_tfds_batches_are_joined(
    prepared: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "_BATCH", batch)
    texts = texts_from_tfds("tiny", "train", text="s", label="score", data_dir=prepared)
    assert texts.first == tuple(UNICODE)
    assert texts.labels.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_damaged_record_file(prepared: str, tmp_path: Path) -> None:
    copied = shutil.copytree(prepared, tmp_path / "copied")
    file = next(copied.rglob("*-train.array_record*"))
    file.write_bytes(b"x" * file.stat().st_size)
    records = rf"^{file}, tiny\[train\]: record"
    with pytest.raises(
        InputError,
        match=records + r"s 0 to 4 cannot be decoded .*: prepare the data set anew with `instahide",
    ):
        texts_from_tfds("tiny", "train", text="s", label="y", data_dir=str(copied))
    whole = next(Path(prepared).rglob("*-train.array_record*")).read_bytes()
    file.write_bytes(whole[: 1 << 16])  # cut at a block's end: all records are there, but empty
    with pytest.raises(InputError, match=records + " 0 cannot be decoded .*damaged or cut short"):
        texts_from_tfds("tiny", "train", text="s", label="y", data_dir=str(copied))


def test_tfds_texts_without_labels(prepared: str) -> None:
    def read(label: str | None, **options: Any) -> Texts:
        return texts_from_tfds(
            "tiny", "hidden", text="s", label=label, data_dir=prepared, **options
        )

    with pytest.raises(InputError, match=r"^tiny\[hidden\]: label 0 is -1, which is no label: "):
        read("y")
    hidden = read("y", unlabelled=True)
    assert (hidden.labels.tolist(), hidden.class_names) == ([-1] * 5, NAMES)
    without = read(None)
    assert (without.labels.tolist(), without.class_names) == ([-1] * 5, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "ss"}, r"^tiny has no feature 'ss'; did you mean 's'\?"),
        ({"second": "zzz"}, "^tiny has no feature 'zzz'; choose from "),
        (
            {"second": "s"},
            "^text and second are both 's': name another feature as second, or leave",
        ),
        ({"label": "labels"}, "^tiny has no feature 'labels'; choose from "),
        ({"text": "idx"}, "^'idx' of tiny is .*: expected Text"),
        ({"label": "idx"}, "^'idx' of tiny is .*: expected a ClassLabel or a float"),
        ({"label": "s"}, "^text and label are both 's': name another feature as label, or as text"),
        ({"label": "image"}, "^'image' of tiny is .*: expected a ClassLabel or a float"),
        ({"split": "test"}, "^tiny has no split 'test': available are train, hidden, odd"),
        ({"split": "odd", "label": None}, r"tiny\[odd\]: record 3 cannot be decoded .*: prepa"),
        ({"name": "tinny"}, r"^unknown data set 'tinny', .*: did you mean 'tiny'\?"),
        (
            {"name": "glue/sst2"},
            "^glue/sst2 is not prepared in .*: run `instahide prepare glue/sst2 "
            "--source FOLDER_OR_ZIP --data-dir .*`$",
        ),
        ({"name": "glue:2.0.0"}, "run `instahide prepare glue/TASK --source FOLDER_OR_ZIP"),
        (
            {"name": "movie_reviews:1.0.0"},
            "run `instahide prepare movie_reviews --source vaderSentiment-3.3.2.tar.gz --data-dir",
        ),
    ],
)
def test_texts_from_tfds_refuses(prepared: str, changes: dict[str, Any], message: str) -> None:
    options = {"name": "tiny", "split": "train", "text": "s", "label": "y"} | changes
    with pytest.raises(InputError, match=message) as caught:
        texts_from_tfds(**options, data_dir=prepared)
    assert "\n" not in str(caught.value)
