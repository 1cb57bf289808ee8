"""Texts as arrays of token numbers, by the `tokenizers` library."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from instahide_jax.errors import InputError
from instahide_jax.metrics import progress

_PADDING = ("[PAD]", "<pad>")
_PART = 1000  # texts


def load_tokenizer(folder: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a folder, without the truncation and padding that may be saved with it.

    tokenizer.json is taken as it stands; without one, vocab.txt becomes BERT's WordPiece, with
    do_lower_case (default true), strip_accents (default: as do_lower_case) and
    tokenize_chinese_chars (default true) of tokenizer_config.json. A vocabulary with capitals in
    more than a tenth of its words, as that of bert-base-cased, needs the first of these to be said.

    Args:
      folder: a folder of Hugging Face's layout.
      vocab_size: words that the model knows; None does not check.

    Raises:
      InputError: if the folder holds neither file, one cannot be read, a token that BERT needs is
        not in vocab.txt, there is no token for padding, or a token's number is not below
        `vocab_size`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one with a vocabulary")
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    if whole.is_file():
        source, tokenizer = whole, _read(whole, lambda: Tokenizer.from_file(str(whole)))
    elif words.is_file():
        source, tokenizer = words, _wordpiece(words, folder / "tokenizer_config.json")
    else:
        raise InputError(
            f"{folder} holds no vocabulary: neither {whole.name} nor {words.name}; name a folder "
            "that does"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    _padding_id(tokenizer)
    largest = max(tokenizer.get_vocab().values())
    if vocab_size is not None and largest >= vocab_size:
        raise InputError(
            f"the vocabulary in {source} numbers its tokens up to {largest} and the model knows "
            f"{vocab_size}; take the vocabulary that belongs to the model, or a larger vocab_size"
        )
    return tokenizer


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    length: int,
    second: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Texts, or pairs of texts, as int32 arrays [N, length].

    "ids" are padded on the right with the tokenizer's token for it, "types" with 0; "mask" is 1 for
    tokens, [CLS] and [SEP] among them. What is too long is cut at its end; of a pair the longer
    text is cut first, and both alike once they are as long as one another.

    Args:
      tokenizer: of `load_tokenizer`. Its truncation and padding are set during the call, so one
        tokenizer serves one thread.
      texts: the texts, or first texts of the pairs.
      length: tokens per row.
      second: the second texts, as many.

    Raises:
      InputError: if `second` has another length, something is no text, or `length` leaves no room
        for a token beside the special ones.
    """
    if second is not None and len(second) != len(texts):
        raise InputError(f"there are {len(texts)} first texts and {len(second)} second; give pairs")
    for name, part in (("text", texts), ("second text", second or ())):
        for i, text in enumerate(part):
            if not isinstance(text, str):
                raise InputError(f"{name} {i} is {text!r}; give a string")
    special = tokenizer.num_special_tokens_to_add(second is not None)
    if length <= special:
        raise InputError(
            f"length is {length}; it must be above {special}, the special tokens of a row"
        )
    padding = _padding_id(tokenizer)
    inputs: Any = list(texts) if second is None else list(zip(texts, second, strict=True))
    columns = {name: np.zeros((len(inputs), length), np.int32) for name in ("ids", "types", "mask")}
    tokenizer.enable_truncation(length, strategy="longest_first")
    tokenizer.enable_padding(length=length, pad_id=padding)
    try:
        # In parts: as Python's integers, the tokens take ten times the memory of the arrays.
        starts = range(0, len(inputs), _PART)
        for start in progress(starts, "tokenize", len(starts), " thousand"):
            place = slice(start, start + _PART)
            rows = tokenizer.encode_batch(inputs[place])
            columns["ids"][place] = [row.ids for row in rows]
            columns["types"][place] = [row.type_ids for row in rows]
            columns["mask"][place] = [row.attention_mask for row in rows]
    finally:
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return columns


def word_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of whole words for encoders that start from nothing, with BERT's special tokens.

    Texts are split at spaces and punctuation, in lower case. The most frequent words are known, of
    equally frequent ones the first in the alphabet; the others are [UNK]. Known words are numbered
    in alphabetical order, which does not tell how often each occurs in texts that are private.

    Args:
      texts: the training texts.
      vocab_size: words known to the model, above 4, the number of the special tokens.

    Raises:
      InputError: if `vocab_size` leaves no room for a word.
    """
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    if vocab_size <= len(special):
        raise InputError(
            f"vocab_size is {vocab_size}; it must be above {len(special)}, the special tokens"
        )
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        pieces = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in pieces)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    known = [word for word in frequent if word not in special][: vocab_size - len(special)]
    numbers = {word: number for number, word in enumerate([*special, *sorted(known)])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    _add_special(tokenizer, special)
    return tokenizer


def _add_special(tokenizer: Tokenizer, special: Sequence[str]) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(special))


def _wordpiece(words: Path, settings_file: Path) -> Tokenizer:
    """The tokenizer of Google's BERT."""
    settings: Any = {}
    if settings_file.is_file():
        settings = _read(settings_file, lambda: dict(json.loads(settings_file.read_text("utf-8"))))
    model = _read(words, lambda: models.WordPiece.from_file(str(words), unk_token="[UNK]"))
    tokenizer = Tokenizer(model)
    numbers = {name: tokenizer.token_to_id(name) for name in ("[UNK]", "[CLS]", "[SEP]", "[PAD]")}
    absent = [name for name, number in numbers.items() if number is None]
    if absent:
        raise InputError(f"{words} lacks {', '.join(absent)}; take the vocabulary of a BERT")
    vocabulary = tokenizer.get_vocab()
    capitals = sum(word != word.lower() and not word.startswith("[") for word in vocabulary)
    if "do_lower_case" not in settings and capitals > len(vocabulary) // 10:
        raise InputError(
            f"{capitals} words of {words} have capitals, and nothing says that texts keep theirs; "
            f'write {{"do_lower_case": false}} to {settings_file}'
        )
    tokenizer.normalizer = _read(
        settings_file,
        lambda: normalizers.BertNormalizer(
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        ),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    known = [n for n in (*numbers, "[MASK]") if tokenizer.token_to_id(n) is not None]
    _add_special(tokenizer, known)
    return tokenizer


def _padding_id(tokenizer: Tokenizer) -> int:
    for name in _PADDING:
        number = tokenizer.token_to_id(name)
        if number is not None:
            return number
    raise InputError(f"the vocabulary has none of the tokens {', '.join(_PADDING)}; add one")


def _read(file: Path, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # tokenizers raises bare Exceptions
        raise InputError(f"{file} cannot be read: {error}; restore it") from None
