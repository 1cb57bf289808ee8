"""Which texts a step takes: each once, alike in length, the same on every start."""

import jax
import numpy as np
import pytest

from instahide_jax.parallel import make_mesh
from instahide_jax.text_step import WINDOW, PrivateTexts, buckets_of, make_take, plan_pass

LENGTHS = (8, 16, 32)
BATCH = 8
SIZES = np.random.default_rng(0).integers(2, 33, 4_005)
MASK = (np.arange(32)[None, :] < SIZES[:, None]).astype(np.uint8)
BUCKETS = buckets_of(MASK, LENGTHS)
PUBLIC = BUCKETS[:101]


def _plan(epoch=0, seed=1, public=None):
    return plan_pass(jax.random.key(seed), epoch, BATCH, BUCKETS, public)


def test_bucket_is_the_first_that_holds_the_text():
    mask = np.arange(32)[None, :] < np.array([1, 8, 9, 16, 17, 32])[:, None]
    assert buckets_of(mask, LENGTHS).tolist() == [0, 0, 1, 1, 2, 2]


def test_every_text_occurs_once_and_who_is_left_over_is_random():
    left = []
    for epoch in range(4):
        plan = _plan(epoch)
        assert plan.order.shape == (len(SIZES) // BATCH, BATCH)
        rows = plan.order.ravel()
        assert len(np.unique(rows)) == len(rows) == 4_000
        left.append(tuple(sorted(set(range(4_005)) - set(rows.tolist()))))
    assert len(set(left)) == 4


def test_a_step_is_as_long_as_its_longest_text():
    for plan in (_plan(), _plan(public=PUBLIC)):
        longest = SIZES[plan.order].max(axis=1)
        if plan.public is not None:
            longest = np.maximum(longest, SIZES[plan.public].max(axis=1))
        assert (np.array(LENGTHS)[plan.buckets] >= longest).all()
        shorter = np.array((0, *LENGTHS))[plan.buckets]
        assert (shorter < longest).all()


def test_texts_of_like_length_stand_together():
    plan = _plan()
    computed = np.array(LENGTHS)[plan.buckets].mean()
    each_alone = np.array(LENGTHS)[BUCKETS].mean()
    shuffled = BUCKETS[np.random.default_rng(1).permutation(4_000)].reshape(-1, BATCH)
    at_random = np.array(LENGTHS)[shuffled.max(axis=1)].mean()
    assert computed < 1.05 * each_alone < 0.75 * at_random
    # Batches are in random order: lengths of neighbours are unrelated.
    assert abs(np.corrcoef(plan.buckets[:-1], plan.buckets[1:])[0, 1]) < 0.2
    assert 1 < WINDOW < len(plan.order)


def test_a_pass_is_a_function_of_seed_and_epoch():
    first = _plan(public=PUBLIC)
    for again in (_plan(public=PUBLIC), jax.device_get(_plan(public=PUBLIC))):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    for other in (_plan(1, public=PUBLIC), _plan(0, 2, PUBLIC)):
        assert (first.order != other.order).mean() > 0.9
        assert (first.public != other.public).mean() > 0.9
    np.testing.assert_array_equal(np.sort(_plan().order), np.sort(_plan().order))


def test_public_texts_of_a_step_are_distinct_all_used_and_alike_in_length():
    plan = _plan(public=PUBLIC)
    assert plan.public.shape == plan.order.shape
    assert all(len(set(row)) == BATCH for row in plan.public.tolist())
    used = np.bincount(plan.public.ravel(), minlength=101)
    per_turn = 101 // BATCH * BATCH
    assert used.max() <= -(-len(plan.order) * BATCH // per_turn)
    assert used.min() > 20
    private = BUCKETS[plan.order].max(axis=1)
    public = PUBLIC[plan.public].max(axis=1)
    assert np.corrcoef(private, public)[0, 1] > 0.5


@pytest.mark.parametrize("devices", [1, 8])
def test_take_cuts_the_rows_of_the_step(devices):
    rng = np.random.default_rng(3)
    tokens = {name: rng.integers(0, 9, (40, 32), np.uint8) for name in ("ids", "types", "mask")}
    others = {name: array[::-1].copy() for name, array in tokens.items()}
    labels = np.arange(40, dtype=np.int32)
    order = rng.permutation(40).astype(np.int32).reshape(5, 8)
    public_order = rng.permutation(40).astype(np.int32).reshape(5, 8)
    take = jax.jit(make_take(make_mesh(devices=jax.devices()[:devices])), static_argnums=4)
    own = jax.tree.map(lambda x: x[None], PrivateTexts(tokens, labels, order, public_order))
    public = {name: array[None] for name, array in others.items()}
    for step, length in ((0, 16), (7, 32)):
        examples = take(None, np.int32(step), own, public, length)
        rows, public_rows = order[step % 5], public_order[step % 5]
        np.testing.assert_array_equal(examples.labels, labels[rows])
        for name in tokens:
            # Private and public rows alternate, so that both of a mixture lie on one device.
            expected = np.empty((16, length), np.uint8)
            expected[0::2] = tokens[name][rows, :length]
            expected[1::2] = others[name][public_rows, :length]
            np.testing.assert_array_equal(examples.inputs[name], expected)
        alone = take(None, np.int32(step), own._replace(public=None), None, length)
        np.testing.assert_array_equal(alone.labels, labels[rows])
        for name in tokens:
            np.testing.assert_array_equal(alone.inputs[name], tokens[name][rows, :length])
