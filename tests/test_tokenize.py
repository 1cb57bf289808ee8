"""Tokenization: the numbers that BERT's own tokenizer gives, truncation, padding, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from instahide_jax.data.tokenize import encode, load_tokenizer
from instahide_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
FOLDER = GOLDEN / "bert"
EXPECTED = json.loads((GOLDEN / "tokens.json").read_text())
WORDS = (FOLDER / "vocab.txt").read_text().splitlines()
NUMBER = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture
def folder(tmp_path):
    shutil.copy(FOLDER / "vocab.txt", tmp_path)
    return tmp_path


def configure(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


# Numbers


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_equal_to_the_original(folder, lower, form):
    tokenizer = configure(folder, do_lower_case=lower)
    if form == "tokenizer.json":
        tokenizer.save(str(folder / form))
        (folder / "vocab.txt").unlink()
        tokenizer = load_tokenizer(folder)
    for case in (c for c in EXPECTED["cases"] if c["lower"] == lower):
        texts, length = EXPECTED[case["kind"]], case["length"]
        pairs = case["kind"] == "pairs"
        first, second = zip(*texts, strict=True) if pairs else (texts, None)
        made = encode(tokenizer, first, length, second)
        for i, row in enumerate(case["rows"]):
            count = len(row["ids"])
            padded = {
                "ids": row["ids"] + [0] * (length - count),
                "types": row["types"] + [0] * (length - count),
                "mask": [1] * count + [0] * (length - count),
            }
            assert {n: made[n][i].tolist() for n in made} == padded, texts[i]


def test_the_golden_numbers_are_of_words():
    """Guards the file: cases differ between the settings, and [UNK] is not all there is."""
    lower, cased = (
        next(c["rows"] for c in EXPECTED["cases"] if c["lower"] == b and c["length"] == 64)
        for b in (True, False)
    )
    assert lower != cased
    assert [WORDS[i] for i in lower[0]["ids"]][1:7] == [
        "the",
        "film",
        "is",
        "un",
        "##believ",
        "##able",
    ]
    assert [WORDS[i] for i in cased[0]["ids"]][1] == "The"


def test_arrays(folder):
    made = encode(load_tokenizer(folder), ["the film", "good"], 6)
    assert list(made) == ["ids", "types", "mask"]
    assert {(a.shape, a.dtype) for a in made.values()} == {((2, 6), np.dtype("int32"))}
    the, film, cls, sep = (NUMBER[w] for w in ("the", "film", "[CLS]", "[SEP]"))
    np.testing.assert_array_equal(made["ids"][0], [cls, the, film, sep, 0, 0])
    np.testing.assert_array_equal(made["mask"][0], [1, 1, 1, 1, 0, 0])


@pytest.mark.parametrize("second", [None, []])
def test_no_texts(folder, second):
    made = encode(load_tokenizer(folder), [], 6, second)
    assert {a.shape for a in made.values()} == {(0, 6)}


def test_settings_of_the_folder(folder):
    def words(text):
        ids = encode(load_tokenizer(folder), [text], 8)["ids"][0]
        return [WORDS[i] for i in ids if i > 3]

    assert words("The É") == ["the", "e"]
    configure(folder, do_lower_case=False)
    assert words("The É") == ["The", "É"]
    configure(folder, do_lower_case=True, strip_accents=False)
    assert words("The É") == ["the", "é"]
    assert words("中国") == ["中", "国"]
    configure(folder, tokenize_chinese_chars=False)
    assert words("中国") == []  # one word, which is unknown


def test_tokenizer_json_comes_first(folder):
    configure(folder, do_lower_case=False).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    ids = encode(load_tokenizer(folder), ["The"], 3)["ids"]
    assert ids[0, 1] == NUMBER["The"]


# Truncation and padding


def test_saved_truncation_and_padding_are_dropped(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    loaded = load_tokenizer(folder)
    assert loaded.truncation is None
    assert loaded.padding is None
    made = encode(loaded, ["the film is good"], 8)
    assert made["mask"][0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_calls_do_not_depend_on_those_before(folder):
    tokenizer = load_tokenizer(folder)
    encode(tokenizer, ["good " * 9], 4)
    assert (tokenizer.truncation, tokenizer.padding) == (None, None)
    assert encode(tokenizer, ["good " * 9], 16)["mask"].sum() == 11
    with pytest.raises(InputError):
        encode(tokenizer, [None], 4)
    assert len(tokenizer.encode("good " * 9).ids) == 11


@pytest.mark.parametrize("counts", [(9, 2), (2, 9), (9, 9), (6, 4), (0, 9)])
def test_the_longer_text_of_a_pair_is_cut_first(folder, counts):
    first, second = "good " * counts[0], "bad " * counts[1]
    ids = encode(load_tokenizer(folder), [first], 11, [second])["ids"][0]
    kept = [int((ids == NUMBER[w]).sum()) for w in ("good", "bad")]
    assert sum(kept) == min(8, sum(counts))
    for i in (0, 1):
        if kept[i] < counts[i]:
            assert kept[i] >= kept[1 - i]


def test_pairs_have_two_types(folder):
    made = encode(load_tokenizer(folder), ["the film"], 9, ["good"])
    assert made["types"][0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0]


def test_other_padding(tmp_path):
    """A tokenizer of RoBERTa's kind: padding is number 1, and pairs have one type."""
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "b": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = encode(load_tokenizer(tmp_path, vocab_size=5), ["ab"], 8, ["a"])
    assert made["ids"][0].tolist() == [0, 3, 4, 2, 2, 3, 2, 1]
    assert made["types"].sum() == 0
    assert made["mask"].sum() == 7


# What is refused


def test_no_vocabulary(tmp_path):
    with pytest.raises(InputError, match=r"holds no vocabulary: neither tokenizer\.json nor vocab"):
        load_tokenizer(tmp_path)


def test_vocabulary_larger_than_the_model(folder):
    load_tokenizer(folder, vocab_size=len(WORDS))
    with pytest.raises(InputError, match=rf"up to {len(WORDS) - 1} and the model knows 100; take"):
        load_tokenizer(folder, vocab_size=100)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[3]"),
        ("tokenizer_config.json", '{"do_lower_case": "no"}'),
    ],
)
def test_damaged_files(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        load_tokenizer(folder)


def test_vocabulary_of_something_else(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n[PAD]\n[UNK]\n")
    with pytest.raises(InputError, match=r"vocab.txt lacks \[CLS\], \[SEP\]; take"):
        load_tokenizer(tmp_path)


def test_no_padding_token(tmp_path):
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"none of the tokens \[PAD\], <pad>"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("texts", "length", "second", "message"),
    [
        (["a"], 2, None, "length is 2; it must be above 2"),
        (["a"], 3, ["b"], "length is 3; it must be above 3"),
        (["a"], 8, [], "1 first texts and 0 second"),
        (["a", 3], 8, None, "text 1 is 3; give a string"),
        (["a"], 8, [b"b"], "second text 0 is b'b'; give a string"),
    ],
)
def test_wrong_arguments(folder, texts, length, second, message):
    with pytest.raises(InputError, match=message):
        encode(load_tokenizer(folder), texts, length, second)
