"""Tables as people and programs write them: missing labels, long cells, integers as decimals."""

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import write_rows

from instahide_jax.data.labels import as_integer, as_number
from instahide_jax.data.text_sources import TableText, TextData, TfdsText
from instahide_jax.data.texts import Texts, read_table, texts_from_tfds
from instahide_jax.encoders import Bert
from instahide_jax.errors import InputError

NOTHING = [
    *("", " ", "\t", "\u00a0", "nan", "NaN", "NAN", "-nan", "NULL", "null", "Null", "N/A", "n/a"),
    *("NA", "na", "-", "--", "?", "None", "none", "<NA>", "#N/A", "\\N", "n.a.", ".", "–"),
    *("#N/A N/A", "#NV", "#DIV/0!", "#SPILL!", "#NAME?", "1.#QNAN", "-1.#IND", "-nan(ind)"),
    *("<NULL>", "[NULL]", "(none)", "{}", "[]", "n.a", "n.d.", "_", "*", "―", "\u2212"),
    *("NA_character_", "missing", "unlabeled", "N/A\u200b", "Not available", "“N/A”", "…", "‐"),
    *("[#N/A]", "'1.#IND00'", "N/D", "#N/D", "n\\a", "np.nan", "pd.NA", "\\\\N", "Ｎ／Ａ", "~"),
    *("#GETTING_DATA", "#ÜBERLAUF!", "Err:502", "not_a_number", "no label", "\u00ad"),
    *("missing value", "not applicable", "(blank)", "[empty]", "No Data", "nodata", "undef", "TBD"),
    *("N / A", "n /a", "not labeled", "Not labelled", "no_annotation", "no labels", "unannotated"),
]
SOMETHING = [
    *("0", "+", "none of these", "n", "value", "name", "#1", "nano", "no", "unknown", "#wow"),
    *(":)", ";-)", "+/-", "n a", "not given", "error", "#top10!", "1.#", "ND", "void", "(a)"),
]
ENCODER = Bert(vocab_size=30, hidden=8, layers=1, heads=2, intermediate=8, positions=16)


def write(path: Path, labels: list[Any], texts: list[str] | None = None) -> Path:
    """A table of texts t0, t1, ... with labels, in the format that the suffix names."""
    texts = [f"t{i}" for i in range(len(labels))] if texts is None else texts
    rows = list(zip(texts, labels, strict=True))
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([("text", "label"), *rows])
        else:
            lines = ["\t".join(map(str, row)) for row in [("text", "label"), *rows]]
            file.write("\n".join(lines))
    return path


def read(path: Path, **options: Any) -> Texts:
    return read_table(path, text="text", label="label", **options)


# 10: no label


@pytest.mark.parametrize("label", SOMETHING)
def test_what_is_a_label(tmp_path: Path, label: str) -> None:
    texts = read(write(tmp_path / "t.csv", ["positive", label]))
    assert set(texts.class_names or ()) == {"positive", label}


@pytest.mark.parametrize("label", ["1e400", "-1e400", "-1.#INF00", "1e9999999999999999", "(∞)"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_numbers_that_are_not_finite_are_no_classes(
    tmp_path: Path, label: str, suffix: str
) -> None:
    with pytest.raises(InputError, match=r"line 3: the label '.*' is no finite number: correct it"):
        read(write(tmp_path / f"t{suffix}", ["0", label]))


def test_integers_of_any_length_are_classes(tmp_path: Path) -> None:
    texts = read(write(tmp_path / "t.csv", ["9" * 5000, "7", "-3"]))
    assert texts.class_names == ("-3", "7", "9" * 5000)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("nothing", NOTHING)
def test_what_is_no_label_is_an_error_that_names_the_line(
    tmp_path: Path, suffix: str, nothing: str
) -> None:
    if suffix == ".tsv" and nothing == "\t":
        nothing = "  "
    path = write(tmp_path / f"t{suffix}", ["yes", nothing, "no"])
    line = 2 if suffix == ".jsonl" else 3
    with pytest.raises(InputError, match=rf"t\{suffix}, line {line}: label is ") as caught:
        read(path)
    for remedy in ("fill it in", "drop_unlabelled=True", "list it in class_names"):
        assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=f"line {line}: label is "):
        read(path, class_names=("no", "yes"))


@pytest.mark.parametrize("value", [None, float("nan")])
def test_null_and_nan_of_json_are_no_labels(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "t.jsonl", [1, value, 0])
    with pytest.raises(InputError, match=r"t\.jsonl, line 2: label is '(null|nan)', which is no l"):
        read(path)
    texts = read(path, drop_unlabelled=True)
    assert (texts.first, texts.labels.tolist()) == (("t0", "t2"), [1, 0])


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_is_no_class(tmp_path: Path, value: float) -> None:
    for name, labels in (("t.jsonl", [1, value]), ("t.csv", ["1", str(value)])):
        path = write(tmp_path / name, labels)
        for dropping in (False, True):  # it is wrong, not absent
            with pytest.raises(InputError, match=r"line [23]: the label '-?inf' is no finite numb"):
                read(path, drop_unlabelled=dropping)
            with pytest.raises(InputError, match=r"line [23]: the label '-?inf' is no finite numb"):
                read(path, drop_unlabelled=dropping, regression=True)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_class_names_may_list_what_usually_means_nothing(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t{suffix}", ["-", "+", "None", "+"])
    names = ("+", "-", "None")
    assert read(path, class_names=names).labels.tolist() == [1, 0, 2, 0]
    dropped = read(path, class_names=names, drop_unlabelled=True)
    assert dropped.labels.tolist() == [1, 0, 2, 0]
    with pytest.raises(InputError, match=r"line \d: label is 'None', which is no label"):
        read(path, class_names=("+", "-"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_rows_without_a_label_are_dropped_and_counted(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels = ["neutral", "-", "entailment", "", "contradiction", "N/A", "neutral"]
    path = write(tmp_path / f"t{suffix}", labels)
    with caplog.at_level(logging.WARNING):
        texts = read(path, drop_unlabelled=True)
    assert texts.first == ("t0", "t2", "t4", "t6")
    assert texts.class_names == ("contradiction", "entailment", "neutral")
    assert texts.labels.tolist() == [2, 1, 0, 2]
    assert caplog.messages == [f"{path}: left out 3 of 7 rows, which have no label"]
    caplog.clear()
    read(write(tmp_path / f"u{suffix}", ["a", "b"]), drop_unlabelled=True)
    assert caplog.messages == []


def test_pairs_keep_their_halves_together(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [("a", "b", "-"), ("c", "d", "x"), (None, None, None), ("e", "f", "y")]
    path.write_text("\n".join(json.dumps(dict(zip("pqy", row, strict=True))) for row in rows))
    texts = read_table(path, text="p", second="q", label="y", drop_unlabelled=True)
    assert (texts.first, texts.second) == (("c", "e"), ("d", "f"))
    path.write_text('{"p": "a", "q": NaN, "y": 1}')
    with pytest.raises(InputError, match="line 1: q is nan: expected a string; correct the line"):
        read_table(path, text="p", second="q", label="y")


def test_objects_without_a_label(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b"}\n{"text": "c", "label": "y"}\n')
    with pytest.raises(InputError, match=r"line 2 has no column 'label'; choose from text$"):
        read(path)
    assert read(path, drop_unlabelled=True).first == ("a", "c")
    path.write_text('{"label": "x"}\n{"text": "b", "label": "y"}\n')
    with pytest.raises(InputError, match="line 1 has no column 'text'"):
        read(path, drop_unlabelled=True)


def test_texts_are_taken_as_they_stand(tmp_path: Path) -> None:
    texts = read(write(tmp_path / "t.csv", ["x", "y", "x"], ["nan", "-", "None"]))
    assert texts.first == ("nan", "-", "None")


def test_nothing_left(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["-", "nan"])
    with pytest.raises(InputError, match=r"none of 2 rows has a label; .* set label=None"):
        read(path, drop_unlabelled=True)
    assert read_table(path, text="text", label=None).labels.tolist() == [-1, -1]


@pytest.mark.parametrize("nothing", ["", "nan", "NULL", "-"])
def test_numbers_without_a_number(tmp_path: Path, nothing: str) -> None:
    path = write(tmp_path / "t.csv", ["0.5", nothing, "2"])
    with pytest.raises(InputError, match=r"line 3: label is .*drop_unlabelled=True .* a label$"):
        read(path, regression=True)
    texts = read(path, regression=True, drop_unlabelled=True)
    assert (texts.first, texts.labels.tolist()) == (("t0", "t2"), [0.5, 2.0])


def test_minus_one_beside_named_classes_is_a_hidden_label(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["0", "-1", "1"])
    with pytest.raises(InputError, match="line 3: label is '-1', which is no label"):
        read(path, class_names=("no", "yes"))
    texts = read(path, class_names=("no", "yes"), drop_unlabelled=True)
    assert texts.labels.tolist() == [0, 1]
    assert read(path).class_names == ("-1", "0", "1")  # without names: a class like any other
    assert read(path, class_names=("-1", "0", "1")).labels.tolist() == [1, 0, 2]


def _prepared(root: Path, labels: list[int], scores: list[float]) -> None:
    features = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
        "score": np.float32,
    }
    rows = [
        {"text": f"t{i}", "label": label, "score": score}
        for i, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]
    write_rows(root, "pairs", features, {"train": rows})


def test_hidden_labels_of_prepared_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _prepared(tmp_path, [1, -1, 0, -1], [0.5, float("nan"), 2.0, -1.0])
    root = str(tmp_path)
    with pytest.raises(InputError, match=r"pairs\[train\]: label 1 is -1, which is no label: .*dr"):
        texts_from_tfds("pairs", "train", text="text", label="label", data_dir=root)
    with caplog.at_level(logging.WARNING):
        source = TfdsText("pairs", text="text", data_dir=root, drop_unlabelled=True)
        texts = source.read()
    assert (texts.first, texts.labels.tolist()) == (("t0", "t2"), [1, 0])
    assert caplog.messages == ["pairs[train]: left out 2 of 4 rows, which have no label"]
    with pytest.raises(InputError, match=r"label 1 is nan, which is no label"):
        texts_from_tfds("pairs", "train", text="text", label="score", data_dir=root)
    numbers = replace(source, label="score").read()
    assert (numbers.first, numbers.labels.tolist()) == (("t0", "t2", "t3"), [0.5, 2.0, -1.0])


def test_nobody_trains_or_scores_on_hidden_labels(tmp_path: Path) -> None:
    """Though a source keeps them: as one-hot labels they would be zeros."""
    _prepared(tmp_path, [1, -1, 0, 1, 0, 1], [0.0] * 6)
    hidden = TfdsText("pairs", text="text", data_dir=str(tmp_path), unlabelled=True)
    good = replace(hidden, unlabelled=False, drop_unlabelled=True)
    public = TableText(str(write(tmp_path / "t.csv", ["-"] * 9)), label=None)

    def data(train: Any, test: Any) -> TextData:
        return TextData(train=train, test=test, validation=2, length=8, buckets=())

    for train, test, what in ((hidden, good, "1 of 6 training"), (good, hidden, "1 of 6 test")):
        with pytest.raises(InputError, match=f"{what} texts have no label, .* drop_unlabelled=T"):
            data(train, test).load(ENCODER)
    with pytest.raises(InputError, match="9 of 9 training texts have no label"):
        data(public, public).load(ENCODER)
    dataset = data(good, good).load(ENCODER, public)
    assert dataset.public is not None
    assert (len(dataset.train.labels), len(dataset.public.labels)) == (3, 9)
    assert data(good, good).load(ENCODER, hidden).public is not None
    with pytest.raises(InputError, match="unlabelled and drop_unlabelled are both set; leave one"):
        replace(hidden, drop_unlabelled=True)
    with pytest.raises(InputError, match="drop_unlabelled is set, but label is None"):
        replace(public, drop_unlabelled=True)


# 12: integers as decimals


@pytest.mark.parametrize(
    ("text", "integer"),
    [
        *(("1.0", "1"), ("0.0", "0"), ("1.", "1"), ("-0.0", "0"), ("+1", "1"), ("-1.00", "-1")),
        *(("1e0", "1"), ("1.200000000000000000e+01", "12"), ("0.000e+00", "0"), ("10", "10")),
        # Codes, numbers that are none, and names stay what they are.
        *(("01", "01"), ("007.0", "007.0"), ("1.5", "1.5"), ("1e-1", "1e-1"), ("1_0", "1_0")),
        *(("1e99", "1e99"), ("1e999999999", "1e999999999"), ("0x1", "0x1"), ("one", "one")),
        *(("True", "True"), ("1,0", "1,0"), ("", ""), ("nan", "nan"), ("v1.0", "v1.0")),
    ],
)
def test_which_texts_are_integers(text: str, integer: str) -> None:
    assert as_integer(text) == integer


def test_which_texts_are_numbers() -> None:
    texts = ["1", "1.", ".5", "-2.5e-1", "1e400", "inf", "nan", "1_0", "0x1", "", "1,5"]
    assert [as_number(text) for text in texts] == [1, 1, 0.5, -0.25, *[None] * 7]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("labels", [["1.0", "0.0"], ["1", "0.0"], ["1e0", "0"], ["+1", "-0"]])
def test_integers_as_decimals_are_classes(tmp_path: Path, suffix: str, labels: list[str]) -> None:
    path = write(tmp_path / f"t{suffix}", labels)
    for names in (None, ("0", "1"), ("0.0", "1.0")):
        texts = read(path, class_names=names)
        assert (texts.class_names, texts.labels.tolist()) == (names or ("0", "1"), [1, 0])
    assert read(path, class_names=("no", "yes")).labels.tolist() == [1, 0]


def test_json_numbers_and_texts_are_alike(tmp_path: Path) -> None:
    texts = read(write(tmp_path / "t.jsonl", [1.0, 0, "1", "0.0", 1]))
    assert (texts.class_names, texts.labels.tolist()) == (("0", "1"), [1, 0, 1, 0, 1])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_fraction_is_no_integer(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t{suffix}", ["1.0", "1.5"] if suffix == ".csv" else [1.0, 1.5])
    with pytest.raises(InputError, match=r"labels such as '1\.5' are no classes; set regression=T"):
        read(path)
    with pytest.raises(InputError, match=r"line [23]: the label '1\.5' is no class; "):
        read(path, class_names=("0", "1"))
    assert read(path, class_names=("1", "1.5")).labels.tolist() == [0, 1]
    assert read(path, regression=True).labels.tolist() == [1.0, 1.5]


def test_codes_with_zeros_in_front_are_names(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["01", "10", "02"])
    assert read(path).class_names == ("01", "02", "10")
    assert read(path, class_names=("01", "02", "10")).labels.tolist() == [0, 2, 1]
    mixed = write(tmp_path / "m.csv", ["1.0", "b", "01"])
    with pytest.raises(InputError, match="line 4: the label '01' is the number 1, which also stan"):
        read(mixed)
    assert read(mixed, class_names=("01", "1", "b")).labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize("other", ["cafe\u0301", "caf\u00e9\u200b"])
def test_labels_that_look_the_same(other: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["caf\u00e9", "b", other])
    with pytest.raises(
        InputError, match=r"line 4: the label '.*' looks like '.*', which occurs be"
    ) as e:
        read(path)
    assert ascii(other) in str(e.value)
    assert ascii("caf\u00e9") in str(e.value)
    names = ("caf\u00e9", "b", other)
    assert read(path, class_names=names).labels.tolist() == [0, 1, 2]
    with pytest.raises(
        InputError, match=r"line 4: the label '.*' looks like the class '.*', but is"
    ):
        read(path, class_names=names[:2])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"second": "text"}, "^text and second are both 'text': name another column as second, or"),
        ({"label": "text"}, "^text and label are both 'text': name another column as label, or as"),
        ({"second": "label"}, "^second and label are both 'label': .* as label, or as second$"),
    ],
)
def test_a_column_has_one_purpose(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    path = write(tmp_path / "t.csv", ["a", "b"])
    with pytest.raises(InputError, match=message):
        TableText(str(path), **columns).read()


def test_a_lone_column_may_hold_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\na\ntext\n")
    assert TableText(str(tmp_path / "t.csv"), label=None).read().first == ("a", "text")


@pytest.mark.parametrize(
    ("one", "other"), [("True", "TRUE"), ("Yes", "yes"), ("a", "A"), ("1", '"1"'), ("'x y'", "X Y")]
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_labels_that_differ_by_case_or_quotes_alone(
    one: str, other: str, suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"t{suffix}", [one, "b", other])
    with pytest.raises(
        InputError, match=f"line 4: the label {other!r} looks like {one!r}, which occurs before"
    ):
        read(path)
    assert read(path, class_names=(one, other, "b")).labels.tolist() == [0, 2, 1]  # as of EMNIST


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (["long" * 100], {"regression": True}),
        (["long" * 100], {"class_names": ("a", "b")}),
        (["x" * 100 + "\u00e9"], {"class_names": ("x" * 100 + "e\u0301", "b")}),
        (["x" * 100, "X" * 100], {}),
        (["1" * 300, "0" + "1" * 300], {}),
        (["0." + "5" * 300], {}),
        (["9" * 400 + ".0"], {}),
        (["-" * 300], {}),
    ],
)
def test_of_long_labels_the_beginning_is_quoted(
    labels: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "t.csv", labels)
    with pytest.raises(InputError, match="label") as caught:
        read(path, **options)
    assert not any(label[:41] in str(caught.value) for label in labels)


def test_words_for_true_and_false_are_names(tmp_path: Path) -> None:
    texts = read(write(tmp_path / "t.csv", ["True", "False", "True"]))
    assert (texts.class_names, texts.labels.tolist()) == (("False", "True"), [1, 0, 1])
    path = write(tmp_path / "t.jsonl", [True, False])
    with pytest.raises(InputError, match="line 1: label is True: expected a number or a class nam"):
        read(path)


def test_named_decimals_are_taken_at_their_word(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["1", "1.0"])
    assert read(path, class_names=("1", "1.0")).labels.tolist() == [0, 1]
    assert read(path).labels.tolist() == [0, 0]
