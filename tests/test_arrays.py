"""Arrays of users: `encrypt`, `hide`, `make_arrays` take them for what they hold, or say why not.

`encrypt_dataset` has the same in test_dataset_encryption.py.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instahide_jax import InputError, InstaHide, TextHide, encrypt, hide, insecure_secret
from instahide_jax.arrays import as_array, for_jax
from instahide_jax.data.embedded import check_arrays, make_arrays

LABELS = np.arange(8, dtype=np.int32) % 3
IMAGES = np.random.default_rng(0).random((8, 4, 5, 1)).astype(np.float32)
FEATURES = IMAGES.reshape(8, 20)
BIG = IMAGES.astype(">f4"), LABELS.astype(">i8")
LONG = IMAGES.astype(np.longdouble), LABELS.astype(np.uint64)
LISTS = IMAGES.tolist(), LABELS.tolist()
SCHEME = InstaHide.cross(k=4, num_classes=3)
TEXTS = TextHide.inter(k=4, num_masks=4, num_classes=3)


def test_what_is_an_array_is_not_copied():
    for array in (IMAGES, IMAGES[::2], jnp.ones(3)):
        assert np.shares_memory(as_array(array, "images"), array)
        assert np.shares_memory(for_jax(array, "images"), array)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.ones(2, ">f4"), np.float32),
        (np.ones(2, ">i8"), np.int64),
        (np.ones(2, np.longdouble), np.float64),
        (np.ones(2, ">f2"), np.float16),
        (np.ones(2, bool), bool),
        ([1, 2], np.int64),
        ((1.5, 2), np.float64),
        (range(3), np.int64),
        (np.ones((2, 2)).view(np.matrix), np.float64),
        (jnp.ones(2, "bfloat16"), jnp.bfloat16),
        (np.asarray(jnp.ones(2, "bfloat16")), jnp.bfloat16),
        (np.asarray(jnp.ones(2, "int4")), jnp.int4),
    ],
)
def test_numbers_become_what_jax_takes(given, dtype):
    array = for_jax(given, "images")
    assert type(array) is np.ndarray or isinstance(array, jax.Array)
    assert array.dtype == dtype
    assert jnp.asarray(array).shape == np.shape(given)


WRONG = {
    "object": (np.ones(8, object), "have dtype object: convert to"),
    "text": (["a"] * 8, "have dtype <U1: convert to"),
    "bytes": (np.array([b"a"] * 8), "have dtype |S1: convert to"),
    "dates": (np.zeros(8, "M8[s]"), "have dtype datetime64[s]: convert to"),
    "times": (np.zeros(8, "m8[s]"), "have dtype timedelta64[s]: convert to"),
    "raw": (np.zeros(8, "V4"), "have dtype |V4: convert to"),
    "complex": (np.ones(8, np.clongdouble), "have dtype complex256: convert to"),
    "None": ([None] * 8, "have dtype object: convert to"),
    "ragged": ([[1], [2, 3]], "are a list that is no array (setting an array element"),
    "masked": (np.ma.array(LABELS), "are a masked array, and what the mask hides would be used"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_holds_no_numbers_is_refused_everywhere(name):
    wrong, message = WRONG[name]
    batch = {"image": IMAGES, "label": LABELS}
    key = insecure_secret(0)

    def hidden(features=FEATURES, labels=LABELS, masks=None, **settings):
        masks = np.ones((4, 20)) if masks is None else masks
        return hide(key, features, labels, masks, scheme=TEXTS, **settings)

    calls = [
        *(lambda n=n: encrypt(key, batch | {n: wrong}, IMAGES, scheme=SCHEME) for n in batch),
        *(
            lambda n=n: encrypt(key, batch, IMAGES, scheme=SCHEME, private_pool=batch | {n: wrong})
            for n in batch
        ),
        lambda: encrypt(key, batch, wrong, scheme=SCHEME),
        lambda: encrypt(key, batch, IMAGES, scheme=SCHEME, rows=wrong),
        lambda: encrypt(key, batch, IMAGES, scheme=SCHEME, partners=wrong),
        lambda: hidden(wrong),
        lambda: hidden(labels=wrong),
        lambda: hidden(masks=wrong),
        lambda: hidden(public_features=wrong),
        lambda: hidden(public_features=FEATURES, private_pool=(FEATURES, wrong)),
        lambda: hidden(public_features=FEATURES, rows=wrong),
        lambda: check_arrays(wrong, LABELS, 3),
        lambda: check_arrays(IMAGES, wrong, 3),
        lambda: make_arrays(IMAGES, wrong, 3, "abc"),
    ]
    with jax.debug_key_reuse(False):
        for call in calls:
            with pytest.raises(InputError, match=re.escape(message)) as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("images", "labels"), [BIG, LONG, LISTS], ids=["big", "long", "lists"])
def test_encrypt_and_hide_take_other_arrays(images, labels):
    """As the plain ones: native, of 32 bits."""

    def encrypted(images, labels, rows):
        batch = {"image": images, "label": labels}
        return encrypt(
            insecure_secret(1), batch, images, scheme=SCHEME, rows=rows, private_pool=batch
        )

    def hidden(features, labels, rows):
        masks = np.where(np.arange(80).reshape(4, 20) % 3, 1, -1).astype(features.dtype)
        return hide(
            insecure_secret(2),
            features,
            labels,
            masks,
            scheme=TEXTS,
            public_features=features[:4],
            rows=rows,
            private_pool=(features, labels),
        )

    rows = np.arange(8, dtype=">u8")
    with jax.debug_key_reuse(False):
        expected = encrypted(IMAGES, LABELS, rows.astype(np.int32))
        jax.tree.map(np.testing.assert_array_equal, encrypted(images, labels, rows), expected)
        features = np.asarray(images).reshape(8, 20)
        expected = hidden(FEATURES, LABELS, rows.astype(np.int32))
        jax.tree.map(np.testing.assert_array_equal, hidden(features, labels, rows), expected)


def test_under_jit_a_list_of_traced_numbers_is_one_line():
    def hidden(images):
        batch = {"image": images, "label": [image.sum() for image in images]}
        return encrypt(insecure_secret(0), batch, scheme=InstaHide.inside(num_classes=3))

    with pytest.raises(InputError, match="labels of batch are a list that is no array") as caught:
        jax.eval_shape(hidden, IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, "batch is a NoneType; give a dict of 'image' and 'label'"),
        ((IMAGES, LABELS), "batch is a tuple; give a dict"),
        ({"image": 1.5, "label": LABELS}, "images have shape () in batch; give [batch, height"),
        ({"image": IMAGES, "label": 1}, "batch has 8 images but labels of shape ()"),
        ({"image": IMAGES, "label": LABELS, 3: 4}, "batch has entries ['3', 'image', 'label']"),
    ],
)
def test_a_batch_of_another_form(batch, message):
    with pytest.raises(InputError, match=re.escape(message)):
        encrypt(insecure_secret(0), batch, scheme=SCHEME)


def test_sets_in_memory_take_other_arrays():
    plain = make_arrays(IMAGES, LABELS, 3, "abc")
    for images, labels in (BIG, (jnp.asarray(IMAGES), jnp.asarray(LABELS)), (IMAGES, LISTS[1])):
        made = make_arrays(images, labels, 3, "abc")
        assert made.identity == plain.identity
        assert type(made.images) is type(made.labels) is np.ndarray
        assert made.images.dtype.isnative
        assert made.labels.dtype == np.int32
