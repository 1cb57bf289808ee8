"""Texts as configurations: what they load, hold out, tokenize and refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest

from instahide_jax.data.text_sources import (
    SyntheticText,
    TableText,
    TextData,
    TextSource,
    TfdsText,
    tokenize,
)
from instahide_jax.data.texts import make_texts, read_table
from instahide_jax.data.tokenize import encode, word_tokenizer
from instahide_jax.encoders import Bert
from instahide_jax.errors import InputError
from instahide_jax.folders import local_folder

ENCODER = Bert(vocab_size=30, hidden=8, layers=1, heads=2, intermediate=8, positions=16)
SYNTHETIC = TextData(
    train=SyntheticText(count=60, seed=1),
    test=SyntheticText(count=20, seed=2),
    validation=12,
    length=12,
    buckets=(8,),
)


# The synthetic task


def _says(texts, source):
    """What the best rule says of every text: 0, 1, or 0.5 for a tie."""
    votes = np.array([t.count("good") - t.count("bad") for t in texts])
    return (np.sign(votes) + 1) / 2


@pytest.mark.parametrize(
    "source",
    [
        SyntheticText(count=20_000),
        SyntheticText(count=20_000, share=0.2, truth=0.7, shortest=1, longest=5),
        SyntheticText(count=2_000, truth=1.0, share=1.0),
    ],
)
def test_best_rule_reaches_the_accuracy_that_is_stated(source):
    texts = source.read()
    right = 1 - np.abs(_says(texts.first, source) - texts.labels)
    error = max(right.std() / source.count**0.5, 1e-9)
    assert abs(right.mean() - source.bayes_accuracy) < 5 * error
    assert abs(right.mean() - source.bayes_accuracy - 0.03) > 5 * error  # it would be noticed
    if source.truth == 1:
        assert source.bayes_accuracy == 1


def test_synthetic_sentences_follow_their_law():
    source = SyntheticText(count=5_000, shortest=3, longest=7)
    texts = source.read()
    lengths = np.array([len(t.split()) for t in texts.first])
    assert set(lengths) == {3, 4, 5, 6, 7}
    words = [word for text in texts.first for word in text.split()]
    assert len(set(words)) == 200
    share = np.mean([not word.startswith("word") for word in words])
    assert abs(share - source.share) < 0.015
    assert texts.class_names == ("bad", "good")
    assert abs(texts.labels.mean() - 0.5) < 0.04
    again, other = source.read(), replace(source, seed=1).read()
    assert again.identity == texts.identity != other.identity


# Loading


def test_load_holds_out_and_tokenizes_with_the_words_of_training():
    dataset = SYNTHETIC.load(ENCODER, SyntheticText(count=9, seed=3))
    train, validation, tests, public, _ = dataset
    assert [len(s.labels) for s in (train, validation, tests["test"], public)] == [48, 12, 20, 9]
    assert set(train.texts.first).isdisjoint(validation.texts.first)
    assert set(train.texts.first) | set(validation.texts.first) == set(SYNTHETIC.train.read().first)
    assert np.bincount(validation.labels).min() >= 5  # of both classes
    words = word_tokenizer([*SYNTHETIC.train.read().first], ENCODER.vocab_size)
    for part in (train, public):
        expected = encode(words, part.texts.first, 12)
        for name, array in part.tokens.items():
            np.testing.assert_array_equal(array, expected[name])
        assert {n: a.dtype.name for n, a in part.tokens.items()} == {
            "ids": "uint16",
            "types": "uint8",
            "mask": "uint8",
        }
    assert train.num_classes == 2
    assert SYNTHETIC.lengths == (8, 12)
    assert SYNTHETIC.load(ENCODER).public is None


def test_identity_changes_with_texts_labels_and_tokens():
    words = word_tokenizer(["a b c"], 30)
    texts = make_texts(("a b", "c"), None, np.array([0, 1]), ("x", "y"))
    marks = {tokenize(texts, words, 6).identity, tokenize(texts, words, 5).identity}
    marks.add(tokenize(texts, word_tokenizer(["b c d"], 30), 6).identity)
    others = [(("a b", "a"), [0, 1]), (("a b", "c"), [1, 1]), (("a b", "C"), [0, 1])]
    for first, labels in others:
        other = make_texts(first, None, np.array(labels), ("x", "y"))
        marks.add(tokenize(other, words, 6).identity)
    assert len(marks) == 6
    assert tokenize(texts, words, 6).identity in marks


def _table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_with_numbers_from_a_table(tmp_path):
    rows = [{"a": f"one {i}", "b": f"two {i} x", "y": i / 4} for i in range(20)]
    source = TableText(_table(tmp_path / "t.jsonl", rows), "a", "b", "y", regression=True)
    data = TextData(train=source, test=source, validation=4, length=14, buckets=())
    train, validation, *_ = data.load(ENCODER)
    assert train.num_classes is None
    assert train.labels.dtype == np.float32
    held = sorted(validation.labels)
    np.testing.assert_allclose(held, [0, 1.25, 2.5, 3.75])  # spread over the range
    row = int(np.flatnonzero(train.labels == 0.25)[0])
    assert train.tokens["types"][row].sum() == 4  # two, 1, x and [SEP]
    unlabelled = TableText(source.path, "a", label=None)
    assert len(data.load(ENCODER, unlabelled).public.labels) == 20


def test_word_tokenizer_knows_the_most_frequent_words():
    tokenizer = word_tokenizer(["b a, B c b", "a [SEP] d"], 8)
    numbers = tokenizer.get_vocab()
    assert sorted(numbers, key=numbers.get) == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        ",",
        "[",
        "a",
        "b",
    ]
    ids = encode(tokenizer, ["A b zebra"], 6)["ids"][0]
    assert ids.tolist() == [2, 6, 7, 1, 3, 0]
    with pytest.raises(InputError, match="vocab_size is 4; it must be above 4"):
        word_tokenizer(["a"], 4)


def test_the_order_of_words_does_not_tell_how_often_they_occur():
    rare = word_tokenizer(["x y y y", "z"], 8)
    assert rare.to_str() == word_tokenizer(["z z z z", "y", "x"], 8).to_str()
    assert sorted(rare.get_vocab(), key=rare.get_vocab().get)[4:] == ["x", "y", "z"]


def test_integers_name_classes(tmp_path):
    path = _table(tmp_path / "t.jsonl", [{"text": "a", "label": name} for name in (1, "0", "-")])
    source = TableText(path, class_names=(0, np.int64(1)), drop_unlabelled=True)
    assert source == TableText(path, class_names=("0", "1"), drop_unlabelled=True)
    texts = source.read()
    assert (texts.class_names, texts.labels.tolist()) == (("0", "1"), [1, 0])
    other = read_table(path, text="text", label="label", class_names=[1, "-", 0])
    assert (other.class_names, other.labels.tolist()) == (("1", "-", "0"), [0, 2, 1])
    for wrong in ((True, False), (0.5, 1), "ab", {"a", "b"}, 3):
        with pytest.raises(InputError, match=r"class_names (hold .* in quotes|are .* in order)$"):
            TableText(path, class_names=wrong)


# Refusals


def test_what_does_not_fit_is_refused(tmp_path):
    three = [{"text": "a", "label": name} for name in "xyz"]
    table = TableText(_table(tmp_path / "t.jsonl", three))
    with pytest.raises(InputError, match=r"training texts have classes \('bad', 'good'\), those"):
        replace(SYNTHETIC, test=table).load(ENCODER)
    with pytest.raises(InputError, match=r"60 examples are to be held out of 60; .* at most 59"):
        replace(SYNTHETIC, validation=60).load(ENCODER)
    with pytest.raises(InputError, match="holds no vocabulary"):
        replace(SYNTHETIC, tokenizer=str(tmp_path)).load(ENCODER)
    with pytest.raises(InputError, match="is not prepared in"):
        replace(SYNTHETIC, train=TfdsText("glue/sst2", data_dir=str(tmp_path))).load(ENCODER)
    with pytest.raises(TypeError, match="TextSource does not define read"):
        TextSource().read()


def test_a_folder_inside_a_package_is_found_without_a_path(tmp_path):
    assert local_folder("package:tokenizers/models").is_dir()
    assert local_folder(tmp_path) == tmp_path
    assert local_folder("models/bert") == local_folder("models/bert")
    with pytest.raises(InputError, match=r"no_such_thing is not installed; .*no-such-thing"):
        local_folder("package:no_such_thing/model")
    with pytest.raises(InputError, match="package: names no package; write package:NAME/FOLDER"):
        local_folder("package:")
