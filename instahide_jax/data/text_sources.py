"""Where texts come from, and how they become tokens: configurations; `load` gives arrays."""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from instahide_jax.data.glue import glue_task
from instahide_jax.data.labels import UNLABELLED, as_names
from instahide_jax.data.sources import held_out_rows
from instahide_jax.data.texts import Texts, make_texts, read_table, texts_from_tfds
from instahide_jax.data.tokenize import Tokenizer, encode, load_tokenizer, word_tokenizer
from instahide_jax.errors import InputError
from instahide_jax.folders import local_folder, user_path


@dataclass(frozen=True)
class TextSource:
    """Base of all sources of texts."""

    def read(self) -> Texts:
        """Read the texts.

        Raises:
          InputError: if they are not there, not prepared, or damaged.
        """
        raise TypeError(f"{type(self).__name__} does not define read")


@dataclass(frozen=True)
class TfdsText(TextSource):
    """A split of a prepared TFDS data set.

    Attributes:
      name: TFDS name, such as "glue/sst2".
      split: in TFDS' notation.
      text: the feature with the text, or with the first one of a pair.
      second: the feature with the second one.
      label: a feature of classes, or of numbers for regression.
      unlabelled: accept labels of -1, which mean that there is none; does for public texts.
      data_dir: folder of prepared data sets; None is TFDS' own default.
      drop_unlabelled: leave out texts without a label (-1, or NaN for regression), such as those of
        SNLI on which the annotators did not agree, and say how many.
    """

    name: str
    split: str = "train"
    text: str = "sentence"
    second: str | None = None
    label: str = "label"
    unlabelled: bool = False
    data_dir: str | None = None
    drop_unlabelled: bool = False

    def __post_init__(self) -> None:
        if self.unlabelled and self.drop_unlabelled:
            raise InputError(
                "unlabelled and drop_unlabelled are both set; leave one out: the one keeps texts "
                "without a label, the other drops them"
            )
        if self.name.startswith("glue/"):
            glue_task(self.name.removeprefix("glue/").partition(":")[0])  # refuses unknown ones

    def read(self) -> Texts:
        return texts_from_tfds(
            self.name,
            self.split,
            text=self.text,
            label=self.label,
            second=self.second,
            data_dir=self.data_dir,
            unlabelled=self.unlabelled,
            drop_unlabelled=self.drop_unlabelled,
        )


@dataclass(frozen=True)
class TableText(TextSource):
    """A .tsv, .csv or .jsonl file with named columns.

    Attributes:
      path: the file.
      text: the column with the text, or with the first one of a pair.
      second: the column with the second one.
      label: the column with classes, or with numbers for regression; None reads no labels, which
        does for public texts.
      class_names: the classes, integers as texts; () are those that occur, sorted.
      regression: labels are numbers.
      drop_unlabelled: leave out rows without a label (an empty cell, -, ?, nan, NULL, N/A and the
        like; beside class_names also -1, which without them is a class), such as those of SNLI and
        MNLI on which the annotators did not agree, and say how many. Otherwise such a row is an
        error.
    """

    path: str
    text: str = "text"
    second: str | None = None
    label: str | None = "label"
    class_names: tuple[str, ...] = ()
    regression: bool = False
    drop_unlabelled: bool = False

    def __post_init__(self) -> None:
        if self.label is None and self.drop_unlabelled:
            raise InputError(
                "drop_unlabelled is set, but label is None, so no label is read; leave one of the "
                "two out"
            )
        object.__setattr__(self, "class_names", as_names(self.class_names))

    def read(self) -> Texts:
        return read_table(
            user_path(self.path, "the path of the texts"),
            text=self.text,
            label=self.label,
            second=self.second,
            class_names=self.class_names or None,
            regression=self.regression,
            drop_unlabelled=self.drop_unlabelled,
        )


@dataclass(frozen=True)
class SyntheticText(TextSource):
    """Made-up sentences of two classes: no language, but a task whose best accuracy is known.

    The class is a fair coin, the number of words uniform. Each word is neutral or, with probability
    `share`, says a class: the right one with probability `truth`. All words of a kind are equally
    frequent, so the best rule counts (`bayes_accuracy`).

    Attributes:
      count: sentences.
      seed: of the sentences; sources that differ in it are independent.
      shortest: words.
      longest: words.
      share: in [0, 1].
      truth: in [0.5, 1].
    """

    count: int = 4000
    seed: int = 0
    shortest: int = 6
    longest: int = 24
    share: float = 0.4
    truth: float = 0.8

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"count is {self.count}; it must be at least 1")
        if not 1 <= self.shortest <= self.longest:
            raise InputError(
                f"shortest is {self.shortest}; it must lie in [1, longest={self.longest}]"
            )
        for name, low in (("share", 0.0), ("truth", 0.5)):
            if not low <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie in [{low:g}, 1]")

    @property
    def bayes_accuracy(self) -> float:
        """Accuracy of the best rule: the class that more words say, or a coin where they tie."""
        lengths = range(self.shortest, self.longest + 1)
        return sum(self._accuracy(length) for length in lengths) / len(lengths)

    def _accuracy(self, length: int) -> float:
        right = 0.0
        for said in range(length + 1):
            weight = (
                math.comb(length, said) * self.share**said * (1 - self.share) ** (length - said)
            )
            for truths in range(said + 1):
                chance = float(math.comb(said, truths))
                chance *= self.truth**truths * (1 - self.truth) ** (said - truths)
                right += weight * chance * (0.5 if 2 * truths == said else float(2 * truths > said))
        return right

    def read(self) -> Texts:
        rng = np.random.default_rng(self.seed)
        labels = rng.integers(0, 2, self.count)
        texts = []
        for label in labels:
            length = int(rng.integers(self.shortest, self.longest + 1))
            says = rng.random(length) < self.share
            kinds = np.where(rng.random(length) < self.truth, label, 1 - label)
            numbers = rng.integers(0, (150, 25), (length, 2))
            texts.append(
                " ".join(
                    f"{('bad', 'good')[kind]}{said}" if tells else f"word{plain}"
                    for tells, kind, (plain, said) in zip(says, kinds, numbers, strict=True)
                )
            )
        return make_texts(tuple(texts), None, labels.astype(np.int32), ("bad", "good"))


class TextEncoder(Protocol):
    """What data asks of an encoder of texts.

    Attributes:
      folder: where its vocabulary may lie, see `local_folder`; None where it has none yet.
      vocab_size: tokens that it knows.
    """

    @property
    def folder(self) -> str | None: ...

    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class TextData:
    """A private data set of texts, or of pairs of texts.

    Sentences are computed at the length of the first of `buckets` that holds all of their batch, so
    short ones do not pay for long ones, and there is one compiled program per bucket. The order of
    training puts sentences of like length together (see `text_step.plan_pass`).

    Attributes:
      train: the training texts.
      test: looked at by eval.py only.
      other_test: a second test set, such as the mismatched one of MNLI.
      validation: texts held out of the training texts, from every class its share.
      length: tokens; longer texts are cut.
      buckets: lengths below `length`, ascending.
      metrics: see `scores.score`; the first chooses checkpoints.
      tokenizer: folder of the vocabulary. None: that of the encoder; where the encoder has no
        folder, the most frequent words of the training texts.
    """

    train: TextSource
    test: TextSource
    other_test: TextSource | None = None
    validation: int = 500
    length: int = 128
    buckets: tuple[int, ...] = (32, 64)
    metrics: tuple[str, ...] = ("accuracy",)
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.validation < 1:
            raise InputError(f"data.validation is {self.validation}; hold out at least 1 text")
        ends = (0, *self.buckets, self.length)
        if list(ends) != sorted(set(ends)):
            raise InputError(
                f"data.buckets are {self.buckets}; they must ascend between 0 and "
                f"data.length={self.length}"
            )
        if not self.metrics:
            raise InputError("data.metrics is empty; name at least one, such as accuracy")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths at which batches are computed."""
        return (*self.buckets, self.length)

    def load(self, encoder: TextEncoder, public: TextSource | None = None) -> "TextDataset":
        """Read and tokenize the data set, and public texts with the same vocabulary.

        Raises:
          InputError: if a source or the vocabulary is not there or damaged, or they do not fit.
        """
        texts = self.train.read()
        tests = {"test": self.test.read()}
        if self.other_test is not None:
            tests["other test"] = self.other_test.read()
        for name, labelled in {"training": texts, **tests}.items():
            _check_labelled(name, labelled)
        if texts.num_classes == 1:
            raise InputError(
                f"all training texts are of the class {texts.class_names[0]!r}; give two classes"
            )
        for name, others in tests.items():
            if others.class_names != texts.class_names:
                raise InputError(
                    f"the training texts have classes {texts.class_names}, those of the {name} set "
                    f"{others.class_names}; they must be the same in the same order: set the "
                    "class_names of tables (TableText)"
                )
            if (others.second is None) != (texts.second is None):
                raise InputError(
                    f"of the training texts and the {name} set one has pairs and one has not; name "
                    "the second column for both or for neither"
                )
        folder = self.tokenizer or encoder.folder
        if folder is not None:
            tokenizer = load_tokenizer(local_folder(folder), encoder.vocab_size)
        else:
            tokenizer = word_tokenizer([*texts.first, *(texts.second or ())], encoder.vocab_size)
        public_texts = None if public is None else public.read()
        held = held_out_rows(texts.labels, self.validation)
        train, validation = (take_texts(texts, np.flatnonzero(rows)) for rows in (~held, held))

        def tokens_of(texts: Texts) -> TokenSet:
            return tokenize(texts, tokenizer, self.length)

        return TextDataset(
            tokens_of(train),
            tokens_of(validation),
            {name: tokens_of(others) for name, others in tests.items()},
            None if public_texts is None else tokens_of(public_texts),
            tokenizer if folder is None else None,
        )


def _check_labelled(name: str, texts: Texts) -> None:
    """Refuse to train or score on texts whose labels are hidden, which a source may have kept."""
    hidden = texts.labels == UNLABELLED
    if hidden.any() if texts.class_names else hidden.all():
        raise InputError(
            f"{hidden.sum()} of {len(hidden)} {name} texts have no label, and can be public texts "
            "only: name the column or feature of the labels as label, and leave out texts without "
            "one by drop_unlabelled=True instead of unlabelled=True"
        )


class TokenSet(NamedTuple):
    """Tokenized texts in memory.

    Attributes:
      tokens: "ids" uint16 or int32, "types" and "mask" uint8, each [N, length].
      labels: int32 [N] in [0, num_classes), or float32 [N] for regression.
      texts: what was tokenized.
      identity: a string that changes with tokens or labels.
    """

    tokens: dict[str, np.ndarray]
    labels: np.ndarray
    texts: Texts
    identity: str

    @property
    def num_classes(self) -> int | None:
        """None for regression."""
        return self.texts.num_classes


class TextDataset(NamedTuple):
    """A loaded data set of texts.

    Attributes:
      train: the private training texts.
      validation: held out of them, to choose checkpoints by.
      tests: by name; looked at by `eval.py` only.
      public: public texts; their labels mean nothing.
      words: the tokenizer where it was made of the training texts, None where a folder gave it.
    """

    train: TokenSet
    validation: TokenSet
    tests: dict[str, TokenSet]
    public: TokenSet | None
    words: Tokenizer | None


def tokenize(texts: Texts, tokenizer: Tokenizer, length: int) -> TokenSet:
    """Texts as tokens, in the smallest integer types: they stay on the device as a whole."""
    wide = encode(tokenizer, texts.first, length, texts.second)
    largest = int(wide["ids"].max(initial=0))
    kinds = {"ids": np.uint16 if largest < 2**16 else np.int32, "types": np.uint8, "mask": np.uint8}
    tokens = {name: array.astype(kinds[name]) for name, array in wide.items()}
    digest = hashlib.sha256(texts.identity.encode())
    for name in sorted(tokens):
        digest.update(wide[name].tobytes())
    return TokenSet(tokens, texts.labels, texts, digest.hexdigest())


def take_texts(texts: Texts, rows: np.ndarray) -> Texts:
    first = tuple(texts.first[i] for i in rows)
    second = None if texts.second is None else tuple(texts.second[i] for i in rows)
    return make_texts(first, second, texts.labels[rows], texts.class_names)
