"""What users give `encrypt_dataset`: it is taken as what it is, or refused in one line."""

from dataclasses import replace

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
from tiny import CLASSES

from instahide_jax import (
    InputError,
    InstaHide,
    NoHiding,
    encrypt_dataset,
    encryption_order,
    insecure_secret,
    memory,
)

__all__ = ["one_key_for_many_calls"]  # a fixture
pytestmark = pytest.mark.usefixtures("compiled_once", "one_key_for_many_calls")
SOFT = np.eye(CLASSES)[ARRAYS.labels]
SOFT_NAN = np.where(np.arange(21)[:, None] == 2, np.nan, SOFT)
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
    assert_equal(hidden(given), hidden(plain))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool])
def test_columns_and_one_hot_labels_are_taken(kind):
    one_hot = np.eye(CLASSES)[ARRAYS.labels]
    assert_equal(hidden(DATA | {"label": one_hot.astype(kind)}), hidden(DATA | {"label": one_hot}))
    if kind is not bool:
        labels = ARRAYS.labels.astype(kind)
        assert_equal(hidden(DATA | {"label": labels[:, None]}), hidden(DATA | {"label": labels}))
    with pytest.raises(InputError, match="soft label 0 sums to 2"):
        hidden(DATA | {"label": (one_hot + np.roll(one_hot, 1, axis=1)).astype(kind)})


def test_float16_is_taken():
    hidden(DATA | {"image": FLOATS.astype(np.float16)})


def test_a_pool_may_have_another_width_than_the_images():
    pool = FLOATS[::-1]
    images = DATA | {"image": FLOATS.astype(np.float32)}
    as_given = hidden(images, pool.astype(">f8"), CROSS)
    assert_equal(as_given, hidden(images, pool.astype(np.float32), CROSS))


def test_numbers_of_numpy_in_a_scheme_are_taken():
    mean = FLOATS.mean(axis=(0, 1, 2), dtype=np.float32)
    scheme = InstaHide.inside(4, num_classes=np.int64(4), mean=tuple(mean), std=(np.float32(0.5),))
    assert hidden(scheme=scheme)["image"].shape == (21, 8, 8, 1)


NO_ARRAYS = {
    "masked images": ({"image": np.ma.array(DATA["image"])}, "images are a masked array"),
    "a list of masked images": (
        {"image": [np.ma.array(image) for image in DATA["image"]]},
        "images are a masked array",
    ),
    "keys": (
        {"label": jax.random.split(jax.random.key(0), 21)},
        "labels are a .* that is no array",
    ),
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
        (
            {"public_pool": DATA["image"]},
            "public_pool is given, but the scheme, with k=4, mixes pr",
        ),
        (
            {"public_pool": DATA["image"], "scheme": replace(CROSS, k=2)},
            "with k=2, mixes private images only; leave it out, or",
        ),
        (
            {"public_pool": DATA["image"].astype(object), "scheme": CROSS},
            "images of public_pool have dtype object",
        ),
        ({"public_pool": 3, "scheme": CROSS}, r"public_pool: images have shape \(\)"),
        (
            {"public_pool": np.ma.array(DATA["image"]), "scheme": CROSS},
            "images of public_pool are a masked array",
        ),
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
        (
            {"scheme": CROSS, "public_pool": np.full((9, 8, 8, 1), np.inf)},
            "public_pool: image 0 holds NaN or infinite",
        ),
        (
            {"data": DATA | {"label": SOFT * 7}},
            r"soft label 0 sums to 7, but must sum to 1 within 0\.0",
        ),
        (
            {"data": DATA | {"label": SOFT * 1.002}},
            r"soft label 0 sums to 1\.002, but must sum to 1",
        ),
        ({"data": DATA | {"label": SOFT * 0}}, "soft label 0 sums to 0, but"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(settings, message):
    with pytest.raises(InputError, match=message):
        encrypt_dataset(SECRET, **{"data": DATA, "scheme": SCHEME} | settings)


@pytest.mark.parametrize(
    ("settings", "message", "right"),
    [  # for an image 3 times 4 bytes of partners and 25 of its place; 8 x 8 pixels 4 + 4 times
        ({"passes": 13}, "passes is 13: order and .*; lower passes to at most 12", {"passes": 12}),
        (
            {"batch_size": 20},
            r"batch_size is 20: 20 images .* 0 GB, .*; lower batch_size to at most 19",
            {"batch_size": 19},
        ),
        ({"batch_size": 10**9}, "batch_size is 1000000000: 21 images", {"batch_size": 1}),
        ({"passes": 2**32}, "passes is 4294967296; .* at least 1 and below 4294967296", {}),
    ],
)
def test_what_the_memory_does_not_hold_is_refused_at_the_call(
    monkeypatch, settings, message, right
):
    monkeypatch.setattr(memory, "machine_memory", lambda: 10_000)
    with pytest.raises(InputError, match=message):
        encrypt_dataset(SECRET, DATA, scheme=SCHEME, **settings)
    encrypt_dataset(SECRET, DATA, scheme=SCHEME, **{"batch_size": 4} | right)
    order = {"passes": 10_000 // (21 * 25) + 1}
    with pytest.raises(InputError, match=r"passes is 20: .* to at most 19"):
        encryption_order(SECRET, DATA, scheme=SCHEME, **order)


def test_nan_pixels_are_refused():
    images = np.ones((21, 8, 8, 1), np.float32)
    images[5, 1, 2, 0] = np.nan
    with pytest.raises(InputError, match="image 5 holds NaN or infinite pixels"):
        hidden(DATA | {"image": images})


def test_what_is_no_secret_is_refused_at_the_call():
    for wrong in (0, jax.random.key(0), b"0" * 32):
        with pytest.raises(InputError, match="secret_key"):
            encrypt_dataset(wrong, DATA, scheme=SCHEME)


def test_negative_soft_labels_are_refused():
    soft = -np.eye(len(DATA["image"]), dtype=np.float32)
    with pytest.raises(InputError, match="soft label 0 holds NaN, infinity or a negative number"):
        encrypt_dataset(insecure_secret(0), {**DATA, "label": soft}, scheme=SCHEME)
