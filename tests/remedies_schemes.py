"""Cases of `remedies`: schemes, and the arguments of encrypt and hide."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from remedies import case, refused
from remedies_configs import follow

from instahide_jax import InstaHide, TextHide, encrypt, hide, insecure_secret, secret_key
from instahide_jax.hiding import affine, soft_labels
from instahide_jax.prng import chacha20, check_secret_key, insecure_key

ARRAYS = tiny.labelled(16)


@case
def bounds_of_schemes(place: Path) -> None:
    follow(
        InstaHide,
        ({"k": 1}, "it must be at least 2", {"k": 2}),
        ({"mask": "x"}, "choose 'sign', 'abs' or 'none'", {"mask": "abs"}),
        ({"num_private": 5}, "it must lie in [1, k=4]", {"num_private": 4}),
        ({"max_coefficient": 0.1}, "need a bound in [1/k=0.25, 1]", {"max_coefficient": 0.25}),
        ({"min_private_mass": 1.0}, "it must lie in [0, 1)", {"min_private_mass": 0.9}),
        (
            {"num_private": 1, "min_private_mass": 0.7},
            "lower it or raise max_coefficient",
            {"num_private": 1, "min_private_mass": 0.6},
        ),
        (
            {"num_private": 1, "min_private_mass": 0.7},
            "or raise max_coefficient",
            {"num_private": 1, "min_private_mass": 0.7, "max_coefficient": 0.8},
        ),
        (
            {"min_own_coefficient": 0.7},
            "in [0, max_coefficient=0.65]",
            {"min_own_coefficient": 0.6},
        ),
        ({"dtype": "float16"}, "it must be 'float32' or 'bfloat16'", {"dtype": "bfloat16"}),
        ({"mean": (0.5,)}, "give both or neither", {"mean": (0.5,), "std": (0.5,)}),
        (
            {"mean": (0.5,), "std": (0.5, 0.5)},
            "give as many of each",
            {"mean": (0.5, 0.5), "std": (0.5, 0.5)},
        ),
        ({"num_classes": 0}, "it must be an integer of at least 1", {"num_classes": 1}),
        (
            {"mean": (float("nan"),), "std": (1.0,)},
            "give a tuple of numbers up to 1e+30",
            {"mean": (0.0,), "std": (1.0,)},
        ),
        (
            {"mean": (0.0,), "std": (0.0,)},
            "every entry must be at least 1e-30",
            {"mean": (0.0,), "std": (1.0,)},
        ),
    )
    follow(
        TextHide,
        ({"k": 0}, "it must be an integer of at least 1", {"k": 1}),
        (
            {"num_masks": -1},
            "at least 0, or None for a fresh mask per example",
            {"num_masks": None},
        ),
    )
    with refused("but the data set has 10 classes; leave it out"):
        InstaHide(num_classes=3).for_data(10)
    InstaHide().for_data(10)
    images = jnp.zeros((1, 2, 2, 3))
    with refused("give one entry per channel, or one for all"):
        affine((0.5, 0.5), (0.5, 0.5), images)
    for entries in ((0.5,), (0.5, 0.5, 0.5)):
        affine(entries, entries, images)
    labels = jnp.array([0, 1])
    with refused("set it, or give soft labels"):
        soft_labels(labels, None)
    soft_labels(labels, 2)
    with refused("give integers [B] or soft labels [B, classes] of floats"):
        soft_labels(labels[:, None], 2)
    soft_labels(jnp.eye(2), None)


@case
def arguments_of_encrypt(place: Path) -> None:
    key, scheme = secret_key(), InstaHide.inside(k=2, num_classes=4)
    batch = {"image": ARRAYS.images, "label": ARRAYS.labels}
    few = {name: array[:3] for name, array in batch.items()}
    cross = InstaHide.cross(k=4, num_classes=4)
    pool = tiny.pixels(6, 8, 8, 3)
    rows = np.arange(16, dtype=np.uint32)

    def run(given: Any = batch, *rest: Any, scheme: InstaHide = scheme, **options: Any) -> Any:
        return jax.eval_shape(
            lambda: encrypt(insecure_secret(0), given, *rest, scheme=scheme, **options)
        )

    follow(
        lambda given=batch, pool=None, **options: run(given, pool, **options),
        ({"given": batch | {"name": rows}}, "released in clear: remove it", {}),
        (
            {"given": batch | {"label": ARRAYS.labels[:3]}},
            "give one label per image",
            {},
        ),
        ({"given": batch | {"label": ARRAYS.labels + 4}}, "give integers in [0, 4)", {}),
        ({"given": batch | {"label": np.eye(3)[rows % 3]}}, "must be alike", {}),
        (
            {
                "private_pool": batch | {"label": np.eye(5)[rows % 5]},
                "scheme": replace(scheme, num_classes=None),
                "given": batch | {"label": np.eye(4)[rows % 4]},
            },
            "those of private_pool 5; they must be alike",
            {"private_pool": batch},
        ),
        (
            {"given": {name: array[:0] for name, array in batch.items()}},
            "give at least one",
            {},
        ),
        ({"given": batch | {"image": ARRAYS.images[..., 0]}}, "[batch, height, width, chan", {}),
        (
            {"given": batch | {"image": ARRAYS.images.astype(np.int32)}},
            "give uint8 or a float type",
            {"given": batch | {"image": ARRAYS.images.astype(np.float32)}},
        ),
        ({"scheme": cross}, "pass public_pool, or use", {"scheme": cross, "pool": pool}),
        ({"scheme": cross}, "or use InstaHide.inside", {"scheme": InstaHide.inside(num_classes=4)}),
        (
            {"scheme": cross, "pool": pool[:, :4]},
            "they must be alike",
            {"scheme": cross, "pool": pool},
        ),
        (
            {"scheme": cross, "pool": pool[:1]},
            "distinct ones: give more, or lower k",
            {"scheme": InstaHide.cross(k=3, num_classes=4), "pool": pool[:1]},
        ),
        (
            {"given": few, "scheme": InstaHide.inside(k=4, num_classes=4)},
            "lower k, or give a larger batch or private_pool",
            {"given": few, "scheme": InstaHide.inside(k=3, num_classes=4)},
        ),
        (
            {"given": few, "scheme": InstaHide.inside(k=4, num_classes=4)},
            "or give a larger batch or private_pool",
            {"given": few, "scheme": InstaHide.inside(k=4, num_classes=4), "private_pool": batch},
        ),
        (
            {"rows": rows + np.uint32(9), "private_pool": dict(batch)},
            "give one for every row, or partners",
            {"rows": rows, "private_pool": dict(batch)},
        ),
        ({"rows": rows.astype(float)}, "give integers of shape (16,)", {"rows": rows}),
        ({"rows": rows.astype(np.int64) - 1}, "give numbers in [0, 2**32)", {"rows": rows}),
        (
            {"partners": rows},
            "give integers of shape (16, 1)",
            {"partners": ((rows + 1) % 16)[:, None].astype(np.int32)},
        ),
    )
    for wrong, message in (
        (7, "use secret_key(), or insecure_key(seed)"),
        (jax.random.key(0), "use secret_key()"),
        (jax.random.split(key.key, 2), "one secret key is expected"),
    ):
        with refused(message):
            check_secret_key(wrong)
    check_secret_key(secret_key().key)
    check_secret_key(insecure_key(7))
    with refused("make the key with secret_key(), or with insecure_key(seed)"):
        jax.random.key(0, impl=chacha20)
    with refused("give an integer of at least 0"):
        insecure_key(-1)
    with refused("give an integer in [0, 2**32)"):
        key.fold_in(-1)
    key.fold_in(2**32 - 1)


@case
def arguments_of_hide(place: Path) -> None:
    key, scheme = secret_key(), TextHide.intra(k=2, num_masks=4, num_classes=2)
    features, labels = jnp.ones((4, 6)), jnp.array([0, 1, 0, 1])
    masks = scheme.mask_pool(key.stream("masks"), 6)
    inter = TextHide.inter(k=4, num_masks=0, num_classes=2)

    def run(
        features: Any = features, labels: Any = labels, masks: Any = masks, **options: Any
    ) -> Any:
        options = {"scheme": scheme} | options
        return jax.eval_shape(lambda: hide(insecure_secret(0), features, labels, masks, **options))

    follow(
        run,
        ({"features": labels}, "give floats [batch, width]", {}),
        (
            {"private_pool": (features[:, :3], labels)},
            "give [N, 6]",
            {"private_pool": (features, labels)},
        ),
        ({"labels": labels[:3]}, "give one label per example", {}),
        (
            {"private_pool": (features, jnp.ones(4))},
            "they must be alike",
            {"private_pool": (features, labels)},
        ),
        (
            {"scheme": replace(scheme, k=5)},
            "lower k, or give a larger batch",
            {"scheme": replace(scheme, k=4)},
        ),
        ({"masks": None}, "make it with scheme.mask_pool(key, 6)", {}),
        (
            {"scheme": inter},
            "pass encoded public text, or use TextHide.intra",
            {"scheme": inter, "public_features": jnp.ones((2, 6))},
        ),
    )
