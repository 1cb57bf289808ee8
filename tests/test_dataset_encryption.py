"""Data sets hidden batch by batch, in an order that only the owner can tell."""

import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from tiny import CLASSES, labelled, pixels

from instahide_jax import (
    InputError,
    InstaHide,
    NoHiding,
    SecretKey,
    dataset_encryption,
    encrypt,
    encrypt_dataset,
    encryption_order,
    insecure_key,
    insecure_secret,
)
from instahide_jax.dataset_encryption import _content_digest, _open, draw_order

SECRET = insecure_secret(11)
SCHEME = InstaHide.inside(k=4, num_classes=CLASSES, mean=(0.5,), std=(0.25,))
ARRAYS = labelled(21, (8, 8, 1))
DATA = {"image": ARRAYS.images, "label": ARRAYS.labels}
CROSS = InstaHide.cross(k=6, num_classes=CLASSES)
SOFT_NAN = np.where(np.arange(21)[:, None] == 2, np.nan, np.eye(CLASSES)[ARRAYS.labels])


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The tests of this module compile much that is alike. No secret is closed over."""
    names = ("cache_dir", "cache_max_size")
    before = {f"jax_compilation_{n}": getattr(jax.config, f"jax_compilation_{n}") for n in names}
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()  # else the folder remains in use in the tests of other modules


@pytest.fixture(scope="module", autouse=True)
def one_key_for_many_calls():
    """The calls of a pass share its key and part by row number; JAX's checker calls that reuse."""
    with jax.debug_key_reuse(False):
        yield


def _hidden(data=DATA, pool=None, scheme=SCHEME, secret=SECRET, **settings):
    batches = list(encrypt_dataset(secret, data, pool, scheme=scheme, progress=False, **settings))
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def _assert_equal(a, b):
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(a["label"], b["label"])


def _digest(data=DATA, pool=None, scheme=SCHEME):
    return _content_digest(_open(data, pool, scheme))


@pytest.fixture(scope="module")
def whole(compiled_once, one_key_for_many_calls):
    """Two passes in the order of the data, in batches of the whole set."""
    return _hidden(passes=2, batch_size=21, shuffle=False)


def test_equals_one_call_of_encrypt_per_pass(whole):
    key = SECRET.run(_digest()).stream("encrypt_dataset")
    hide = jax.jit(encrypt, static_argnames="scheme")
    rows = np.arange(21, dtype=np.uint32)
    for number in range(2):
        expected = hide(key.fold_in(number), DATA, scheme=SCHEME, rows=rows, private_pool=DATA)
        these = slice(21 * number, 21 * (number + 1))
        _assert_equal({name: values[these] for name, values in whole.items()}, expected)


@pytest.mark.parametrize("batch_size", [8, 41, None])
def test_batch_size_changes_nothing(whole, batch_size):
    """With 41, the last batch is a single row, and its partners fewer than k."""
    _assert_equal(_hidden(passes=2, batch_size=batch_size, shuffle=False), whole)
    order = encryption_order(SECRET, DATA, scheme=SCHEME, passes=2)
    shuffled = {name: values[order] for name, values in whole.items()}
    _assert_equal(_hidden(passes=2, batch_size=batch_size), shuffled)


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
    kept = _hidden(DATA, pool, shuffle=False, **settings)
    shuffled = _hidden(DATA, pool, batch_size=10, **settings)
    order = encryption_order(SECRET, DATA, pool, **settings)
    np.testing.assert_array_equal(np.sort(order), np.arange(63))
    assert (order != np.arange(63)).sum() > 50
    _assert_equal({name: values[np.argsort(order)] for name, values in shuffled.items()}, kept)


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
    in_order = _hidden(data, shuffle=False, **settings)["label"]
    released = _hidden(data, shuffle=shuffle, **settings)["label"]
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
    _assert_equal(_hidden(maps, passes=2, batch_size=21, shuffle=False), whole)


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
    made = _hidden(data, scheme=scheme, passes=3, shuffle=False)["image"].reshape(3, 21, 64)
    used = made > made.min() + 1e-3
    np.testing.assert_array_equal(used[:, :, :21].sum(axis=1), 3)
    np.testing.assert_array_equal(used.sum(axis=2), 3)
    assert used[:, np.arange(21), np.arange(21)].all()


def test_public_pool_and_soft_labels():
    soft = np.eye(CLASSES, dtype=np.float32)[ARRAYS.labels]
    pool = pixels(9, 8, 8, 1, seed=5)
    hard = _hidden(DATA, pool, CROSS, batch_size=21, shuffle=False)
    as_soft = _hidden(DATA | {"label": soft}, pool, CROSS, batch_size=21, shuffle=False)
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
        "pool": _digest(pool=pool),
        "another pool": _digest(pool=pool[::-1]),
        "scheme": _digest(scheme=other),
    }


def test_any_change_of_content_gives_other_keys(whole):
    digests = _digests()
    assert len(set(digests.values())) == len(digests)
    changed = DATA | {"image": DATA["image"] ^ np.uint8(1)}
    made = _hidden(changed, shuffle=False)["image"]
    agreement = (np.sign(made) == np.sign(whole["image"][:21])).mean()
    assert abs(agreement - 0.5) < 6 * 0.5 / made.size**0.5
    other_secret = _hidden(secret=insecure_secret(12), shuffle=False)["image"]
    assert np.abs(other_secret - whole["image"][:21]).max(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": 0}, "passes is 0; it must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
        ({"scheme": InstaHide.inside(k=22, num_classes=4)}, "22 private images .* there are 21"),
        ({"scheme": InstaHide.cross(k=6, num_classes=4)}, "needs a public pool"),
        ({"scheme": InstaHide.inside(k=4)}, "num_classes"),
        ({"data": DATA | {"name": ARRAYS.labels}}, "released in clear"),
        ({"data": DATA | {"label": ARRAYS.labels[:20]}}, "21 images.* 20 labels"),
        ({"data": DATA | {"label": ARRAYS.labels + 1}}, "label 3 is 4: must be in"),
        ({"data": DATA | {"label": SOFT_NAN}}, "soft label 2 holds NaN, infinity or a negative"),
        ({"scheme": CROSS, "public_pool": DATA["image"][:, :4]}, "public_pool holds uint8 images"),
        ({"public_pool": np.full((9, 8, 8, 1), np.inf)}, "image 0 holds NaN or infinite"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(settings, message):
    with pytest.raises(InputError, match=message):
        encrypt_dataset(SECRET, **{"data": DATA, "scheme": SCHEME} | settings)


def test_nan_pixels_are_refused():
    images = np.ones((21, 8, 8, 1), np.float32)
    images[5, 1, 2, 0] = np.nan
    with pytest.raises(InputError, match="image 5 holds NaN or infinite pixels"):
        _hidden(DATA | {"image": images})


def test_progress_is_shown(capsys):
    next(encrypt_dataset(SECRET, DATA, scheme=SCHEME, batch_size=21)).keys()
    assert re.search(r"encrypt: +0%.*0/21", capsys.readouterr().err)


def test_what_is_no_secret_is_refused_at_the_call():
    for wrong in (0, jax.random.key(0), b"0" * 32):
        with pytest.raises(InputError, match="secret_key"):
            encrypt_dataset(wrong, DATA, scheme=SCHEME)


def test_a_typed_key_will_do():
    key = insecure_key(3)
    chex.assert_trees_all_equal(_hidden(secret=key), _hidden(secret=SecretKey(key)))


def test_negative_soft_labels_are_refused():
    soft = -np.eye(len(DATA["image"]), dtype=np.float32)
    with pytest.raises(InputError, match="soft label 0 holds NaN, infinity or a negative number"):
        encrypt_dataset(insecure_secret(0), {**DATA, "label": soft}, scheme=SCHEME)


def test_another_algorithm_has_other_keys(monkeypatch):
    before = _digest()
    monkeypatch.setattr(dataset_encryption, "ALGORITHM", dataset_encryption.ALGORITHM + 1)
    assert _digest() != before


# What users give: each is taken as what it is, or refused in one line

FLOATS = DATA["image"] / np.float64(255)
AS_GIVEN = {
    "lists": {"image": FLOATS.tolist(), "label": ARRAYS.labels.tolist()},
    "list of arrays": {"image": list(FLOATS), "label": list(ARRAYS.labels)},
    "JAX": {"image": jnp.asarray(DATA["image"]), "label": jnp.asarray(ARRAYS.labels)},
    "Fortran": {"image": np.asfortranarray(DATA["image"]), "label": ARRAYS.labels},
    "big-endian labels": {"label": ARRAYS.labels.astype(">i8")},
    "int64": {"label": ARRAYS.labels.astype(np.int64)},
    "uint64": {"label": ARRAYS.labels.astype(np.uint64)},
    "uint8": {"label": ARRAYS.labels.astype(np.uint8)},
    "big-endian images": {"image": FLOATS.astype(">f4")},
    "float64": {"image": FLOATS},
    "long double": {"image": FLOATS.astype(np.longdouble)},
    "soft, long double": {"label": np.eye(CLASSES, dtype=np.longdouble)[ARRAYS.labels]},
    "soft, big-endian": {"label": np.eye(CLASSES, dtype=">f8")[ARRAYS.labels]},
    "soft, bfloat16": {"label": jnp.eye(CLASSES, dtype="bfloat16")[ARRAYS.labels]},
}


@pytest.mark.parametrize("name", AS_GIVEN)
def test_arrays_are_taken_for_what_they_hold(name):
    """The same encryptions as of uint8 or float32 images with int32 or float32 labels."""
    given = DATA | AS_GIVEN[name]
    image = np.asarray(given["image"])
    image = image if image.dtype.kind in "iu" else image.astype(np.float32)
    label = np.asarray(given["label"])
    plain = {
        "image": image.astype(np.uint8) if image.dtype.kind == "i" else image,
        "label": label.astype(np.int32 if label.ndim == 1 else np.float32),
    }
    _assert_equal(_hidden(given), _hidden(plain))


def test_float16_is_taken():
    _hidden(DATA | {"image": FLOATS.astype(np.float16)})


def test_a_pool_may_have_another_width_than_the_images():
    pool = FLOATS[::-1]
    images = DATA | {"image": FLOATS.astype(np.float32)}
    as_given = _hidden(images, pool.astype(">f8"), CROSS)
    _assert_equal(as_given, _hidden(images, pool.astype(np.float32), CROSS))


def test_numbers_of_numpy_in_a_scheme_are_taken():
    mean = FLOATS.mean(axis=(0, 1, 2), dtype=np.float32)
    scheme = InstaHide.inside(4, num_classes=np.int64(4), mean=tuple(mean), std=(np.float32(0.5),))
    assert _hidden(scheme=scheme)["image"].shape == (21, 8, 8, 1)


NO_ARRAYS = {
    "masked images": ({"image": np.ma.array(DATA["image"])}, "images are a masked array"),
    "masked labels": (
        {"label": np.ma.array(ARRAYS.labels, mask=ARRAYS.labels == 2)},
        "labels are a masked array, and what the mask hides would be used; give integers",
    ),
    "objects": ({"image": DATA["image"].astype(object)}, "images have dtype object: convert to"),
    "object labels": ({"label": ARRAYS.labels.astype(object)}, "labels have dtype object: convert"),
    "texts": ({"label": ARRAYS.labels.astype(str)}, "labels have dtype <U"),
    "bool": ({"label": ARRAYS.labels > 1}, "labels have dtype bool: convert to integers"),
    "bool images": ({"image": DATA["image"] > 1}, "images have dtype bool: convert to uint8 or"),
    "complex": ({"image": DATA["image"] * 1j}, "images have dtype complex128: convert to uint8"),
    "times": ({"label": ARRAYS.labels.astype("m8[s]")}, r"labels have dtype timedelta64\[s\]:"),
    "records": ({"label": np.zeros(21, [("a", "i4")])}, r"labels have dtype \[\('a', '<i4'\)\]"),
    "int64 images": ({"image": DATA["image"].astype(int)}, "images have dtype int64: convert to"),
    "lists of integers": ({"image": DATA["image"].tolist()}, "images have dtype int64: convert to"),
    "ragged": ({"label": [0, [1, 2]]}, "labels are a list that is no array"),
    "different sizes": (
        {"image": [np.zeros((8, 8, 1)), np.zeros((8, 9, 1))]},
        "images are a list that is no array",
    ),
    "None": ({"label": None}, "labels have dtype object"),
    "a number": ({"label": 3}, r"labels have shape \(\): expected one integer per image"),
    "an image": ({"image": 3}, r"images have shape \(\): expected 4 dimensions"),
    "matrix": ({"label": ARRAYS.labels[None].view(np.matrix)}, "21 images but 1 labels"),
    "floats": ({"label": ARRAYS.labels * 1.0}, "labels have dtype float64: convert to integers"),
    "NaN": ({"label": np.full(21, np.nan)}, "labels have dtype float64: convert to integers"),
    "negative": ({"label": -1 - ARRAYS.labels}, r"label 0 is -1: must be in \[0, "),
    "no labels": ({"label": []}, "21 images but 0 labels"),
    "beyond float32": ({"image": FLOATS * 1e300}, "image 0 holds NaN or infinite pixels"),
    "beyond float32, soft": (
        {"label": np.full((21, CLASSES), 1e300)},
        "soft label 0 holds NaN, infinity",
    ),
}


@pytest.mark.parametrize("name", NO_ARRAYS)
@pytest.mark.parametrize("scheme", [SCHEME, InstaHide.inside(4)])
def test_what_is_no_data_is_refused_in_one_line(name, scheme):
    changes, message = NO_ARRAYS[name]
    with pytest.raises(InputError, match=message) as caught:
        encrypt_dataset(SECRET, DATA | changes, scheme=scheme)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "data is a NoneType; give a dict of 'image' and 'label'"),
        ({"data": tuple(DATA.values())}, "data is a tuple; give a dict"),
        ({"data": DATA | {3: 0}}, "data has entries .*'3'.*released in clear"),
        ({"public_pool": DATA["image"].astype(object)}, "images of public_pool have dtype object"),
        ({"public_pool": 3}, r"public_pool: images have shape \(\)"),
        ({"public_pool": np.ma.array(DATA["image"])}, "images of public_pool are a masked array"),
        ({"passes": 2.0}, "passes is 2.0; it must be an integer of at least 1"),
        ({"passes": "2"}, "passes is '2'; it must be an integer"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be an integer"),
        ({"scheme": None}, "scheme is None; give an InstaHide"),
        ({"scheme": NoHiding(num_classes=4)}, "scheme is NoHiding.*; give an InstaHide"),
    ],
)
def test_other_arguments_are_refused_in_one_line(settings, message):
    for call in (encrypt_dataset, encryption_order):
        arguments = {"data": DATA, "scheme": SCHEME} | settings
        if call is encryption_order and arguments.pop("batch_size", None):
            continue
        with pytest.raises(InputError, match=message):
            call(SECRET, **arguments)
