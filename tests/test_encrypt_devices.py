"""`encrypt` gives the same bits on one device and on eight, however it is spread over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instahide_jax import InstaHide, encrypt, insecure_key, prng

NUM_DEVICES = 8
NUM_ROWS = 64
SHAPE = (9, 7, 3)  # 189 values: no multiple of a vector's width, nor of the signs of a word
STATISTICS = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26), "num_classes": 10}
Tree = dict[str, Any]
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective", "psum")


def mesh() -> Mesh:
    return jax.make_mesh((NUM_DEVICES,), ("data",), axis_types=(AxisType.Auto,))


class Case:
    """A scheme, its data, and `encrypt` of chosen rows as a function (shared, split)."""

    def __init__(self, scheme: InstaHide, dtype: str):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (NUM_ROWS + 20, *SHAPE)).astype(np.uint8)
        if dtype == "float32":
            images = (images / 255).astype(np.float32)
        labels = rng.integers(0, 10, NUM_ROWS).astype(np.int32)
        self.pool = {"image": images[:NUM_ROWS], "label": labels}
        # Key words, not a key: the key-reuse check would object to several runs of one key.
        words = np.asarray(jax.random.key_data(insecure_key(0)))
        self.shared = {"words": words, "pool": self.pool, "public": images[NUM_ROWS:]}
        self.scheme = scheme

    def split(self, rows: np.ndarray) -> Tree:
        return jax.tree.map(lambda x: x[rows], self.pool) | {"rows": rows.astype(np.int32)}

    def hide(self, shared: Tree, split: Tree) -> Tree:
        return encrypt(
            jax.random.wrap_key_data(shared["words"], impl=prng.chacha20_insecure),
            {"image": split["image"], "label": split["label"]},
            shared["public"],
            scheme=self.scheme,
            rows=split["rows"],
            private_pool=shared["pool"],
        )


CASES = {
    "inside, uint8": Case(InstaHide.inside(4, **STATISTICS), "uint8"),
    "cross, float32": Case(InstaHide.cross(6, **STATISTICS), "float32"),
}


@pytest.fixture(scope="module")
def on_one_device() -> dict[str, Tree]:
    """The encryption of all rows. Smaller batches are its first rows: no row knows the others."""
    rows = np.arange(NUM_ROWS)
    return {
        name: jax.tree.map(np.asarray, jax.jit(case.hide)(case.shared, case.split(rows)))
        for name, case in CASES.items()
    }


def under_jit(case: Case, shared: Tree, split: Tree) -> Tree:
    shared = jax.device_put(shared, NamedSharding(mesh(), P()))
    split = jax.device_put(split, NamedSharding(mesh(), P("data")))
    hidden = jax.jit(case.hide)(shared, split)
    assert len(hidden["image"].sharding.device_set) == NUM_DEVICES
    return hidden


def sharded(hide: Callable[[Tree, Tree], Tree]) -> Callable[..., Tree]:
    return jax.jit(jax.shard_map(hide, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P("data")))


def under_shard_map(case: Case, shared: Tree, split: Tree) -> Tree:
    compiled = sharded(case.hide).lower(shared, split).compile()
    assert not collectives(compiled.as_text())  # no device waits for another
    return compiled(shared, split)


def under_pmap(case: Case, shared: Tree, split: Tree) -> Tree:
    mapped = jax.pmap(case.hide, axis_name="data", in_axes=(None, 0))
    parts = jax.tree.map(lambda x: x.reshape(NUM_DEVICES, -1, *x.shape[1:]), split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped(shared, parts))


def collectives(program: str) -> set[str]:
    return {name for name in COLLECTIVES if name in program}


@pytest.mark.parametrize(
    ("name", "spread", "num_rows"),
    [
        ("inside, uint8", under_jit, 64),
        ("inside, uint8", under_shard_map, 56),
        ("inside, uint8", under_pmap, 8),
        ("cross, float32", under_jit, 8),
        ("cross, float32", under_shard_map, 40),
    ],
)
def test_eight_devices_give_the_bits_of_one(
    name: str, spread: Callable[..., Tree], num_rows: int, on_one_device: dict[str, Tree]
) -> None:
    case = CASES[name]
    hidden = spread(case, case.shared, case.split(np.arange(num_rows)))
    for part in ("image", "label"):
        np.testing.assert_array_equal(hidden[part], on_one_device[name][part][:num_rows])


@pytest.mark.parametrize("name", CASES)
def test_64_bit_types_change_no_bit(name: str, on_one_device: dict[str, Tree]) -> None:
    case = CASES[name]
    with jax.enable_x64(True):
        hidden = jax.jit(case.hide)(case.shared, case.split(np.arange(8)))
        assert hidden["image"].dtype == hidden["label"].dtype == np.float32
    for part in ("image", "label"):
        np.testing.assert_array_equal(hidden[part], on_one_device[name][part][:8])


def test_the_search_for_collectives_finds_them() -> None:
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, "data"), mesh=mesh(), in_specs=P("data"), out_specs=P()
    )
    assert collectives(jax.jit(summed).lower(jnp.ones(8)).compile().as_text())
    gathered = jax.jit(lambda x: x[::-1] * 2, in_shardings=NamedSharding(mesh(), P("data")))
    assert collectives(gathered.lower(jnp.ones(8)).compile().as_text())


def test_devices_that_mix_their_own_rows_share_no_plan() -> None:
    """One key, no pool: partners are drawn within a device, from its first global row on."""
    scheme = InstaHide.inside(4, num_classes=8, mean=(-1,), std=(1,))
    words = np.asarray(jax.random.key_data(insecure_key(0)))
    images = np.random.default_rng(0).random((NUM_ROWS, 3, 5, 1)).astype(np.float32)
    places = np.tile(np.arange(8, dtype=np.int32), NUM_DEVICES)  # labels: places on the device

    def hide(words: jax.Array, split: Tree) -> Tree:
        key = jax.random.wrap_key_data(words, impl=prng.chacha20_insecure)
        batch = {"image": split["image"], "label": split["label"]}
        return encrypt(key, batch, scheme=scheme, rows=split["rows"])

    compiled = sharded(hide)

    def run(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        split = {"image": images, "label": places, "rows": rows.astype(np.int32)}
        hidden = compiled(words, split)
        plans = np.asarray(hidden["label"]).reshape(NUM_DEVICES, 8, 8)
        return plans, np.sign(hidden["image"]).reshape(NUM_ROWS, -1)

    def assert_distinct(plans: np.ndarray, masks: np.ndarray) -> None:
        for device in plans > 0:
            assert device.diagonal().all()
            assert (device.sum(axis=0) == 4).all()
            assert (device.sum(axis=1) == 4).all()
        assert len({(device > 0).tobytes() for device in plans}) == NUM_DEVICES
        assert len(np.unique(np.sort(plans.reshape(NUM_ROWS, 8)), axis=0)) == NUM_ROWS
        assert len(np.unique(masks, axis=0)) > NUM_ROWS - 3  # of 2**15

    assert_distinct(*run(np.arange(NUM_ROWS)))
    with pytest.raises(AssertionError):
        assert_distinct(*run(places))  # the numbers of a device's own rows are not enough
