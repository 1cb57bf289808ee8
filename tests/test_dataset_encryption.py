"""Data sets hidden batch by batch, in an order that only the owner can tell."""

import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hidden_sets import (
    ARRAYS,
    CROSS,
    DATA,
    SCHEME,
    SECRET,
    assert_equal,
    hidden,
    one_key_for_many_calls,
)
from tiny import CLASSES, pixels

from instahide_jax import (
    InstaHide,
    SecretKey,
    dataset_encryption,
    encrypt,
    encrypt_dataset,
    encryption_order,
    insecure_key,
    insecure_secret,
)
from instahide_jax.dataset_encryption import _content_digest, _open, draw_order

__all__ = ["one_key_for_many_calls"]  # a fixture
pytestmark = pytest.mark.usefixtures("compiled_once", "one_key_for_many_calls")


def _digest(data=DATA, pool=None, scheme=SCHEME):
    return _content_digest(_open(data, pool, scheme))


@pytest.fixture(scope="module")
def whole(compiled_once, one_key_for_many_calls):
    """Two passes in the order of the data, in batches of the whole set."""
    return hidden(passes=2, batch_size=21, shuffle=False)


def test_equals_one_call_of_encrypt_per_pass(whole):
    key = SECRET.run(_digest()).stream("encrypt_dataset")
    hide = jax.jit(encrypt, static_argnames="scheme")
    rows = np.arange(21, dtype=np.uint32)
    for number in range(2):
        expected = hide(key.fold_in(number), DATA, scheme=SCHEME, rows=rows, private_pool=DATA)
        these = slice(21 * number, 21 * (number + 1))
        assert_equal({name: values[these] for name, values in whole.items()}, expected)


@pytest.mark.parametrize("batch_size", [8, 41, None])
def test_batch_size_changes_nothing(whole, batch_size):
    """With 41, the last batch is a single row, and its partners fewer than k."""
    assert_equal(hidden(passes=2, batch_size=batch_size, shuffle=False), whole)
    order = encryption_order(SECRET, DATA, scheme=SCHEME, passes=2)
    shuffled = {name: values[order] for name, values in whole.items()}
    assert_equal(hidden(passes=2, batch_size=batch_size), shuffled)


def test_batches_are_as_large_as_16_megabytes():
    def first(shape):
        data = {"image": np.zeros((1100, *shape), np.uint8), "label": np.zeros(1100, int)}
        mixup = InstaHide.mixup(k=2, num_classes=1)
        return len(next(encrypt_dataset(SECRET, data, scheme=mixup, progress=False))["label"])

    assert [first((2, 2, 1)), first((64, 64, 4))] == [1024, 256]


# The order


@pytest.mark.parametrize(
    ("scheme", "pool"),
    [
        (SCHEME, None),
        (InstaHide.cross(k=6, num_classes=CLASSES), pixels(9, 8, 8, 1, seed=5)),
        (InstaHide.cross(k=3, num_private=1, num_classes=CLASSES), pixels(9, 8, 8, 1, seed=5)),
    ],
)
def test_the_owner_undoes_the_order(scheme, pool):
    """The encryptions are the same ones, only elsewhere."""
    settings = {"scheme": scheme, "passes": 3}
    kept = hidden(DATA, pool, shuffle=False, **settings)
    shuffled = hidden(DATA, pool, batch_size=10, **settings)
    order = encryption_order(SECRET, DATA, pool, **settings)
    np.testing.assert_array_equal(np.sort(order), np.arange(63))
    assert (order != np.arange(63)).sum() > 50
    assert_equal({name: values[np.argsort(order)] for name, values in shuffled.items()}, kept)


def test_the_order_is_of_secret_content_scheme_and_passes():
    def order(secret=SECRET, data=DATA, scheme=SCHEME, passes=4):
        return encryption_order(secret, data, scheme=scheme, passes=passes)

    first = order()
    np.testing.assert_array_equal(first, order())
    changed = DATA["image"].copy()
    changed[3, 0, 0, 0] ^= 1
    for other in (
        order(secret=insecure_secret(12)),
        order(data=DATA | {"image": changed}),
        order(scheme=InstaHide.inside(k=3, num_classes=CLASSES)),
        order(passes=5),
        order(passes=3),
    ):
        shared = min(len(first), len(other))  # in which order are those that both have
        assert (other[other < shared] != first[first < shared]).mean() > 0.8


def test_every_order_is_as_likely_as_any_other(monkeypatch):
    draws = 960
    seen = dict.fromkeys(itertools.permutations(range(4)), 0)
    monkeypatch.setattr(dataset_encryption, "_WORDS", 4)  # fewer words that nobody looks at
    key = insecure_secret(3)
    for number in range(draws):
        seen[tuple(draw_order(key.fold_in(number), 4).tolist())] += 1
    expected = draws / 24
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < 23 + 6 * (2 * 23) ** 0.5


def test_an_order_with_two_words_alike_is_drawn_anew(monkeypatch):
    drawn = []

    def words(key, number, count):
        """The first time alike, then falling; two 32-bit words make one."""
        drawn.append(int(number))
        values = np.zeros(8, np.uint64) if len(drawn) == 1 else np.arange(8, 0, -1, dtype=np.uint64)
        return jnp.asarray(values.astype("<u8").view("<u4"))

    monkeypatch.setattr(dataset_encryption, "_WORDS", 8)
    monkeypatch.setattr(dataset_encryption, "_draw_words", words)
    np.testing.assert_array_equal(draw_order(SECRET, 8), np.arange(8)[::-1])
    assert drawn == [0, 0]


def test_an_order_longer_than_one_draw_of_words(monkeypatch):
    monkeypatch.setattr(dataset_encryption, "_WORDS", 16)
    order = draw_order(SECRET, 100)
    np.testing.assert_array_equal(np.sort(order), np.arange(100))


def _places(secret, shuffle, size=300, passes=12):
    """Where the encryption of image i in pass t comes out, int [passes, size].

    Seen in the results: every image is a class of its own with more than half of its mixture. Of
    which pass they are, the same encryptions in the order of the data tell.
    """
    scheme = InstaHide.mixup(k=2, num_classes=size, max_coefficient=1.0, min_own_coefficient=0.6)
    data = {"image": pixels(size, 2, 2, 1), "label": np.arange(size)}
    settings = {"scheme": scheme, "secret": secret, "passes": passes}
    in_order = hidden(data, shuffle=False, **settings)["label"]
    released = hidden(data, shuffle=shuffle, **settings)["label"]
    number_of = {row.tobytes(): number for number, row in enumerate(in_order)}
    numbers = np.array([number_of[row.tobytes()] for row in released])
    np.testing.assert_array_equal(numbers % size, released.argmax(axis=1))
    return np.argsort(numbers).reshape(passes, size)


def _traces(place):
    """What places tell about images and passes; standard normal numbers where they tell nothing."""
    passes, size = place.shape
    variance = place.size * (place.size + 1) / 12  # of a place that is drawn without replacement

    def follows(weights):
        return (place * weights).sum() / (variance * (weights**2).sum()) ** 0.5

    def more_often(count):
        return (count - (passes - 1)) / (passes - 1) ** 0.5  # so many by chance, in both cases

    image, number = np.meshgrid(np.arange(size), np.arange(passes))
    image_at = np.empty(place.size, int)
    image_at[place] = image
    scatter = place.mean(axis=0).var() / (variance / passes)
    return {
        "image": follows(image - image.mean()),
        "pass": follows(number - number.mean()),
        "encryptions of an image are near": (scatter - 1) * (size / 2) ** 0.5,
        "encryptions of an image are neighbours": more_often((np.diff(image_at) == 0).sum()),
        "they repeat after N": more_often((np.diff(place % size, axis=0) == 0).sum()),
    }


def test_places_tell_nothing():
    """Neither which encryptions are of one image, nor of which one, nor of which pass."""
    for seed in range(3):
        traces = _traces(_places(insecure_secret(seed), shuffle=True))
        assert all(abs(value) < 4.5 for value in traces.values()), traces
    traces = _traces(_places(SECRET, shuffle=False))
    assert all(abs(traces[name]) > 9 for name in ("pass", "they repeat after N")), traces


# What is used


def test_memory_maps_are_taken(whole, tmp_path):
    for name, values in DATA.items():
        np.save(tmp_path / f"{name}.npy", values)
    maps = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in DATA}
    assert_equal(hidden(maps, passes=2, batch_size=21, shuffle=False), whole)


def test_passes_differ_in_partners_coefficients_and_masks(whole):
    image, label = whole["image"].reshape(2, 21, -1), whole["label"].reshape(2, 21, -1)
    assert (np.abs(np.abs(image[0]) - np.abs(image[1])).max(axis=1) > 0.1).all()
    assert (np.abs(label[0] - label[1]).max(axis=1) > 1e-3).all()
    agreement = (np.sign(image[0]) == np.sign(image[1])).mean()
    assert abs(agreement - 0.5) < 6 * 0.5 / image[0].size ** 0.5


def test_each_image_is_used_num_private_times_in_a_pass():
    """Image i is black but for its pixel i, so a mixture shows what is in it."""
    images = np.zeros((21, 64, 1), np.uint8)
    images[np.arange(21), np.arange(21)] = 255
    data = {"image": images.reshape(21, 8, 8, 1), "label": ARRAYS.labels}
    scheme = InstaHide.mixup(k=3, num_classes=CLASSES)
    made = hidden(data, scheme=scheme, passes=3, shuffle=False)["image"].reshape(3, 21, 64)
    used = made > made.min() + 1e-3
    np.testing.assert_array_equal(used[:, :, :21].sum(axis=1), 3)
    np.testing.assert_array_equal(used.sum(axis=2), 3)
    assert used[:, np.arange(21), np.arange(21)].all()


def test_public_pool_and_soft_labels():
    soft = np.eye(CLASSES, dtype=np.float32)[ARRAYS.labels]
    pool = pixels(9, 8, 8, 1, seed=5)
    hard = hidden(DATA, pool, CROSS, batch_size=21, shuffle=False)
    as_soft = hidden(DATA | {"label": soft}, pool, CROSS, batch_size=21, shuffle=False)
    mass = hard["label"].sum(axis=1)
    assert ((mass >= 0.3) & (mass < 1)).all()
    assert np.abs(hard["image"] - as_soft["image"]).max() > 0.1  # other data, other keys
    assert as_soft["label"].shape == (21, CLASSES)


def _digests():
    """One per thing that must not share a one-time key with another."""
    flipped = DATA["image"].copy()
    flipped[20, 7, 7, 0] ^= 1
    labels = np.roll(DATA["label"], 1)
    pool = pixels(9, 8, 8, 1, seed=5)
    other = InstaHide.inside(k=4, num_classes=CLASSES, mean=(0.5,), std=(0.5,))
    return {
        "same": _digest(),
        "one bit": _digest(DATA | {"image": flipped}),
        "order": _digest({n: v[::-1] for n, v in DATA.items()}),
        "labels": _digest(DATA | {"label": labels}),
        "soft": _digest(DATA | {"label": np.eye(CLASSES)[labels]}),
        "floats": _digest(DATA | {"image": DATA["image"].astype(np.float32)}),
        "shape": _digest(DATA | {"image": flipped.reshape(21, 4, 16, 1)}),
        "scheme": _digest(scheme=other),
        "pool": _digest(pool=pool, scheme=CROSS),
        "another pool": _digest(pool=pool[::-1], scheme=CROSS),
    }


def test_any_change_of_content_gives_other_keys(whole):
    digests = _digests()
    assert len(set(digests.values())) == len(digests)
    changed = DATA | {"image": DATA["image"] ^ np.uint8(1)}
    made = hidden(changed, shuffle=False)["image"]
    agreement = (np.sign(made) == np.sign(whole["image"][:21])).mean()
    assert abs(agreement - 0.5) < 6 * 0.5 / made.size**0.5
    other_secret = hidden(secret=insecure_secret(12), shuffle=False)["image"]
    assert np.abs(other_secret - whole["image"][:21]).max(axis=(1, 2, 3)).min() > 0.1


def test_progress_is_shown(capsys):
    next(encrypt_dataset(SECRET, DATA, scheme=SCHEME, batch_size=21)).keys()
    assert re.search(r"encrypt: +0%.*0/21", capsys.readouterr().err)


def test_a_typed_key_will_do():
    key = insecure_key(3)
    chex.assert_trees_all_equal(hidden(secret=key), hidden(secret=SecretKey(key)))


def test_another_algorithm_has_other_keys(monkeypatch):
    before = _digest()
    monkeypatch.setattr(dataset_encryption, "ALGORITHM", dataset_encryption.ALGORITHM + 1)
    assert _digest() != before
