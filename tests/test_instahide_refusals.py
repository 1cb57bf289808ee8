"""instahide_jax.instahide: wrong parameters and inputs end in one line naming value and bound."""

import math
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instahide_jax import InputError, InstaHide, encrypt, insecure_key, insecure_secret
from instahide_jax.coefficients import CoefficientLaw


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, "k is 1, so nothing is mixed; it must be at least 2"),
        ({"k": 0}, "k is 0"),
        ({"num_private": 0}, "num_private is 0; it must lie in [1, k=4]"),
        ({"num_private": 5}, "num_private is 5; it must lie in [1, k=4]"),
        ({"max_coefficient": 0.249}, "max_coefficient is 0.249; 4 coefficients"),
        ({"k": 3, "max_coefficient": 0.3}, "bound in [1/k=0.3333, 1]"),
        ({"max_coefficient": 1.001}, "max_coefficient is 1.001"),
        ({"max_coefficient": math.nan}, "max_coefficient is nan"),
        ({"min_private_mass": 1.0}, "min_private_mass is 1.0; it must lie in [0, 1)"),
        ({"min_private_mass": -0.1}, "min_private_mass is -0.1; it must lie in [0, 1)"),
        ({"min_private_mass": math.nan}, "min_private_mass is nan"),
        (
            {"num_private": 1, "min_private_mass": 0.7},
            "min_private_mass is 0.7, more than 1 coefficients of at most 0.65 can sum to",
        ),
        ({"min_own_coefficient": 0.66}, "is 0.66; it must lie in [0, max_coefficient=0.65]"),
        ({"min_own_coefficient": -0.1}, "min_own_coefficient is -0.1"),
        ({"mask": "random"}, "mask is 'random'; choose 'sign', 'abs' or 'none'"),
        ({"dtype": "float16"}, "dtype is 'float16'; it must be 'float32' or 'bfloat16'"),
        ({"mean": (0.5,)}, "mean is (0.5,) and std is None; give both or neither"),
        ({"std": (0.5,)}, "give both or neither"),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "give as many of each"),
        ({"mean": (0.5,), "std": (0.0,)}, "std is (0.0,); every entry must be at least 1e-30"),
        (
            {"mean": (0.5,), "std": (math.nan,)},
            "std is (nan,); give a tuple of numbers up to 1e+30",
        ),
        ({"mean": (), "std": ()}, "every entry must be at least 1e-30"),
        ({"mean": (0.5,), "std": (1e-45,)}, "every entry must be at least 1e-30"),
        ({"mean": 0.5, "std": 0.25}, "mean is 0.5; give a tuple of numbers up to 1e+30"),
        ({"num_classes": 0}, "num_classes is 0; it must be an integer of at least 1"),
        ({"num_classes": "2"}, "num_classes is '2'; it must be an integer of at least 1"),
    ],
)
def test_wrong_parameters(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        InstaHide(**settings)
    assert "\n" not in str(error.value)


def test_parameters_at_their_bounds() -> None:
    for settings in (
        {"max_coefficient": 0.25},
        {"max_coefficient": 1.0},
        {"num_private": 1, "min_private_mass": 0.65},
        {"min_own_coefficient": 0.65},
        {"k": 2, "max_coefficient": 0.5},
        {"k": 3, "max_coefficient": 1 / 3},
    ):
        InstaHide(**settings)


def test_k_alone_can_be_overridden() -> None:
    """As a command line does; inside schemes stay inside, cross schemes keep two private images."""
    for k in (2, 3, 7):
        assert replace(InstaHide.inside(4), k=k) == InstaHide.inside(k)
        assert InstaHide.inside(k).num_partners == k - 1
        assert InstaHide.inside(k).num_public == 0
        assert replace(InstaHide.cross(6), k=k).num_public == k - 2


def test_published_settings() -> None:
    inside, cross = InstaHide.inside(), InstaHide.cross()
    assert inside.law == CoefficientLaw(4, 4, 0.65, 0.0, 0.0)
    assert cross.law == CoefficientLaw(6, 2, 0.65, 0.3, 0.0)
    assert (inside.num_partners, inside.num_public) == (3, 0)
    assert (cross.num_partners, cross.num_public) == (1, 4)
    assert (inside.mask, cross.mask, InstaHide.mixup(3).mask) == ("sign", "sign", "none")
    assert InstaHide.mixup(3).law == InstaHide.inside(3).law
    assert InstaHide.inside(2).law == CoefficientLaw(2, 2, 0.65)
    assert InstaHide.cross(3, min_private_mass=0.5).law == CoefficientLaw(3, 2, 0.65, 0.5)
    assert hash(inside) == hash(InstaHide.inside(4))  # a static argument of jit
    with pytest.raises(AttributeError):
        inside.k = 5  # type: ignore[misc]


def test_the_statistics_of_the_data_fill_gaps_only() -> None:
    scheme = InstaHide.cross(6).for_data(10, (0.4,), (0.2,))
    assert (scheme.num_classes, scheme.mean, scheme.std) == (10, (0.4,), (0.2,))
    assert scheme.law == InstaHide.cross(6).law
    own = InstaHide.inside(4, num_classes=10, mean=(0.5,), std=(0.5,))
    assert own.for_data(10, (0.4,), (0.2,)) == own
    with pytest.raises(InputError, match="num_classes is 7 but the data set has 10"):
        InstaHide.inside(4, num_classes=7).for_data(10, (0.4,), (0.2,))


def images(count: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros((count, *(shape or (4, 5, 3))), dtype)


def labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32) % 3


GOOD = {"image": images(8), "label": labels(8)}
INSIDE = {"scheme": InstaHide.inside(num_classes=3)}
CROSS = {"scheme": InstaHide.cross(num_classes=3)}


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"id": np.arange(8)}, INSIDE, "batch has entries ['id', 'image', 'label']"),
        ({"image": images(8, 4, 5)}, INSIDE, "images have shape (8, 4, 5)"),
        ({"image": images(8, dtype=np.int32)}, INSIDE, "dtype int32; give uint8 or a float type"),
        ({"image": images(8, dtype=bool)}, INSIDE, "dtype bool"),
        ({"label": labels(1)}, INSIDE, "batch has 8 images but labels of shape (1,)"),
        ({"label": np.zeros((1, 3), np.float32)}, INSIDE, "8 images but labels of shape (1, 3)"),
        ({"label": np.zeros((8, 3), np.int32)}, INSIDE, "labels have shape (8, 3) and dtype int32"),
        ({"label": np.zeros(8, np.float32)}, INSIDE, "labels have shape (8,) and dtype float32"),
        ({}, {"scheme": InstaHide.inside()}, "integer labels need the scheme's num_classes"),
        ({"image": images(3), "label": labels(3)}, INSIDE, "4 private images are to be mixed but"),
        ({}, CROSS, "k=6 with 2 private images needs a public pool of at least 4 images"),
        ({}, CROSS | {"public_pool": images(3)}, "public_pool has 3 images; every mixture needs 4"),
        ({}, CROSS | {"public_pool": images(9, 4, 4, 3)}, "images of shape (4, 4, 3), the batch"),
        ({}, CROSS | {"public_pool": images(9, dtype=np.uint8)}, "public_pool holds uint8 images"),
        ({}, INSIDE | {"private_pool": {"image": images(9)}}, "private_pool has entries ['image']"),
        (
            {},
            INSIDE | {"private_pool": {"image": images(9, 4, 5, 1), "label": labels(9)}},
            "private_pool holds float32 images of shape (4, 5, 1)",
        ),
        (
            {},
            INSIDE | {"private_pool": {"image": images(3), "label": labels(3)}},
            "there are 3 candidates; lower k",
        ),
        (
            {},
            INSIDE | {"private_pool": {"image": images(9), "label": labels(8)}},
            "private_pool has 9 images but labels of shape (8,)",
        ),
        (
            {},
            INSIDE | {"private_pool": {"image": images(9), "label": np.zeros((9, 4), np.float32)}},
            "labels of private_pool have 4 classes, the scheme num_classes=3",
        ),
        ({}, INSIDE | {"rows": np.arange(7)}, "rows has shape (7,) and dtype int"),
        ({}, INSIDE | {"rows": np.arange(8.0)}, "rows has shape (8,) and dtype float"),
        ({}, INSIDE | {"partners": np.zeros((8, 2), int)}, "give integers of shape (8, 3)"),
        ({}, INSIDE | {"partners": np.zeros((8, 4), int)}, "give integers of shape (8, 3)"),
        (
            {},
            {"scheme": InstaHide.inside(num_classes=3, mean=(0.5, 0.5), std=(0.5, 0.5))},
            "mean has 2 entries and the images 3 channels",
        ),
    ],
)
def test_wrong_inputs(changes: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    """Traced, because shapes and dtypes tell; with concrete arrays the line is the same."""
    arguments = dict(arguments)
    scheme = arguments.pop("scheme")

    def hide(secret: Any, batch: Any, arguments: Any) -> Any:
        return encrypt(secret, batch, scheme=scheme, **arguments)

    with pytest.raises(InputError, match=re.escape(message)) as error:
        jax.eval_shape(hide, insecure_secret(0), GOOD | changes, arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("first", [-1, 2**32, 2**32 - 4])
def test_row_numbers_that_would_wrap_around(first: int) -> None:
    rows = np.arange(first, first + 8)
    with pytest.raises(InputError, match=rf"rows go from {first} to {first + 7}; give numbers in"):
        encrypt(insecure_secret(0), GOOD, rows=rows, **INSIDE)


def test_wrong_inputs_outside_of_jit() -> None:
    with pytest.raises(InputError, match=r"batch has entries \['id', 'image', 'label'\]"):
        encrypt(insecure_key(0), GOOD | {"id": ["a patient's name"] * 8}, **INSIDE)
    with pytest.raises(InputError, match="k=6 with 2 private images needs a public pool"):
        encrypt(insecure_key(0), GOOD)


@pytest.mark.parametrize(
    "key",
    [
        0,
        12345,
        np.uint32(7),
        jax.random.PRNGKey(0),
        jax.random.key(0),
        jax.random.key(0, impl="rbg"),
    ],
    ids=["int", "int", "uint32", "PRNGKey", "threefry", "rbg"],
)
def test_wrong_keys(key: Any) -> None:
    with pytest.raises(InputError, match=r"use secret_key\(\), or insecure_key\(seed\)"):
        encrypt(key, GOOD, **INSIDE)
    with pytest.raises(InputError, match=r"secret_key\(\)"):
        INSIDE["scheme"].hide_inputs(key, GOOD)


def test_an_array_of_keys_is_refused() -> None:
    with pytest.raises(InputError, match=r"not an array of shape \(2,\)"):
        encrypt(jax.random.split(insecure_key(0)), GOOD, **INSIDE)


def test_good_inputs_pass() -> None:
    """So that the refusals above are due to what was changed."""
    for arguments in (INSIDE, CROSS | {"public_pool": images(4)}):
        hidden = jax.eval_shape(lambda key, a=arguments: encrypt(key, GOOD, **a), insecure_key(0))
        assert hidden["image"].shape == (8, 4, 5, 3)
    pool = {"image": images(4), "label": jnp.zeros((4, 3))}
    arguments = INSIDE | {"private_pool": pool, "rows": np.arange(8, dtype=np.uint8)}
    partners = np.zeros((8, 3), np.int64)
    jax.eval_shape(lambda key: encrypt(key, GOOD, partners=partners, **arguments), insecure_key(0))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"label": np.arange(8)}, {}, "labels of batch go from 0 to 7; the scheme has 3 classes"),
        ({"label": np.arange(8) - 8}, {}, "labels of batch go from -8 to -1"),
        ({"label": np.ones((8, 4), np.float32)}, {}, "labels of batch have 4 classes, the scheme"),
        ({"image": images(0), "label": labels(0)}, {}, "the batch holds no image"),
        (
            {},
            {"private_pool": {"image": images(5), "label": labels(5)}},
            "row 7 has no candidate of its own among the 5 of private_pool",
        ),
        (
            {},
            {"private_pool": {"image": images(9), "label": labels(9)}, "rows": np.arange(2, 10)},
            "row 9 has no candidate of its own among the 9 of private_pool",
        ),
    ],
)
def test_wrong_values(changes: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        encrypt(insecure_secret(0), GOOD | changes, **INSIDE, **arguments)
