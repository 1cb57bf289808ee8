"""Several data owners on one mesh: what each has, what goes between them, on any devices."""

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from tiny import labelled, tiny
from tiny_text import tiny_text

from instahide_jax import InstaHide, TextHide, insecure_secret
from instahide_jax.boundary import check_boundary, within_boundary
from instahide_jax.compiled import collectives, crossing
from instahide_jax.encoders import ConvNet, ResNet
from instahide_jax.errors import InputError
from instahide_jax.image_step import make_hide
from instahide_jax.optimizers import AdamW, Schedule
from instahide_jax.parallel import (
    FAST_COMPILE,
    check_batch_size,
    check_device_map,
    device_map,
    make_mesh,
)
from instahide_jax.placement import state_sharding
from instahide_jax.training import make_keys, put_keys

# Sizes that no parameter has, so that a batch cannot be taken for one.
DATA = labelled(200)
SETTINGS = {"data": DATA, "batch_size": 48}
PARTNERS = ("dataset", "batch")
# Adam divides gradients by their size, and so multiplies the differences of small ones.
GENTLE = {"optimizer": AdamW(learning_rate=1e-3, schedule=Schedule())}


# Layouts


@pytest.mark.parametrize(
    ("clients", "devices", "shape"),
    [
        (1, 8, (1, 8)),
        (2, 8, (2, 4)),
        (8, 8, (8, 1)),
        (8, 4, (4, 1)),
        (6, 3, (3, 1)),
        (5, 1, (1, 1)),
    ],
)
def test_mesh_has_clients_and_their_devices(clients, devices, shape):
    mesh = make_mesh(clients, jax.devices()[:devices])
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("client", "data")
    assert [d.id for d in mesh.devices.flat] == list(range(devices))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_mesh(3), "3 clients of a process cannot share its 8 devices evenly"),
        (lambda: check_batch_size(20, make_mesh(2), 2), "20, which 8 devices of 2 clients"),
        (lambda: check_batch_size(20, make_mesh(2), 2), "use 16 or 24"),
        (lambda: check_batch_size(30, make_mesh()), "use 24 or 32"),
        (lambda: check_batch_size(48, make_mesh(), 1, 5), "partner_group is 5"),
        (lambda: check_batch_size(48, make_mesh(), 1, 5), "6 on each device"),
        (lambda: check_batch_size(48, make_mesh(), 1, 5), "groups of 2, 3, 6, 12, 24, 48"),
        (lambda: check_device_map("pmap", 2), "one client in one process, not 2 in 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_client_has_its_own_key_and_data_on_its_own_devices():
    run = tiny(8, clients=2, **SETTINGS)
    words = jax.random.key_data(run.keys.secret.key)
    for array in (words, run.private().images, run.private().this_pass.partners, run.pool):
        for shard in array.addressable_shards:
            client = shard.device.id // 4
            assert shard.index[0] == slice(client, client + 1)
            np.testing.assert_array_equal(shard.data[0], np.asarray(array)[client])
    assert len(np.unique(np.asarray(words), axis=0)) == 2


# What goes from client to client


def _compiled_hide(run):
    hide = jax.jit(make_hide(run.experiment, run.scheme, run.mesh))
    step = jax.device_put(np.int32(0), run.whole)
    return hide.lower(run.keys, step, run.private(), run.pool).compile(FAST_COMPILE)


@pytest.mark.parametrize("partners", PARTNERS)
def test_images_stay_with_their_client(partners):
    """Of hiding nothing goes between clients; of the whole step sums of what is trained."""
    run = tiny(8, clients=2, partners=partners, **SETTINGS)
    hidden = _compiled_hide(run)
    lowered = run.step.lower(run.init(), run.keys, run.private(), run.pool)
    trained = lowered.compile(FAST_COMPILE)
    within = {c.op for c in collectives(hidden)}
    assert within == ({"all-gather"} if partners == "batch" else set())
    assert not crossing(collectives(hidden), run.mesh, "client")
    between = crossing(collectives(trained), run.mesh, "client")
    assert {c.op for c in between} == {"all-reduce"}  # the search finds what there is
    known = {leaf.shape for leaf in jax.tree.leaves((run.init().params, run.init().stats))}
    assert {shape for c in between for _, shape in c.shapes} <= known | {()}
    check_boundary(trained, run.mesh, run.init())


@pytest.mark.parametrize(
    "scheme", [TextHide.intra(k=4), TextHide.inter(k=4)], ids=["intra", "inter"]
)
def test_texts_and_features_stay_with_their_client(scheme):
    run = tiny_text(8, clients=2, scheme=scheme, batch_size=24)
    feed = run.feeds(0, 1)[0]
    program = run.step.lower(run.init(), run.keys, feed.private, run.public, feed.length).compile()
    check_boundary(program, run.mesh, run.init())
    every, between = collectives(program), crossing(collectives(program), run.mesh, "client")
    assert {c.op for c in between} == {"all-reduce"}
    features = [c for c in every if c.op == "all-gather" and ("f32", (12, 16)) in c.shapes]
    assert len(features) == (2 if scheme.num_public else 1)  # within a client they are gathered


def test_short_texts_may_sum_the_gradients_of_their_positions():
    data = replace(tiny_text().experiment.data, buckets=(8,))
    run = tiny_text(8, clients=2, batch_size=24, data=data)
    feed = run.feeds(0, 1)[0]
    lowered = run.step.lower(run.init(), run.keys, feed.private, run.public, 8)
    program = lowered.compile(FAST_COMPILE)
    with pytest.raises(InputError, match=r"all-reduce of f32\[8, 16\]"):
        check_boundary(program, run.mesh, run.init())
    check_boundary(program, run.mesh, run.init(), length=8)


def test_a_step_that_gathers_from_all_clients_is_refused():
    run = tiny(8, clients=2, **SETTINGS)
    state = jax.eval_shape(run.init)

    def leak(common, own, rows):
        return lax.all_gather(rows, ("client", "data"), tiled=True)[: len(rows)]

    rows = jax.device_put(DATA.images[:48], jax.NamedSharding(run.mesh, P(("client", "data"))))
    leaking = jax.jit(lambda x: device_map(leak, run.mesh)(None, None, x)).lower(rows).compile()
    with pytest.raises(InputError, match=r"all-gather of u8\[48, 8, 8, 3\] between clients"):
        check_boundary(leaking, run.mesh, state)

    def hidden_in_a_sum(common, own, rows):
        return lax.psum(rows, ("client", "data"))

    summed = jax.jit(lambda x: device_map(hidden_in_a_sum, run.mesh)(None, None, x))
    with pytest.raises(InputError, match="all-reduce of"):
        check_boundary(summed.lower(rows).compile(), run.mesh, state)


def test_of_what_has_the_size_of_a_parameter_only_sums_may_cross():
    mesh = make_mesh(2)
    rows = jax.device_put(np.zeros((8, 6), np.float32), jax.NamedSharding(mesh, P("client")))
    state = {"summed": jax.ShapeDtypeStruct((6,), "f4"), "whole": jax.ShapeDtypeStruct((48,), "f4")}

    def compiled(function):
        return jax.jit(function, out_shardings=jax.NamedSharding(mesh, P())).lower(rows).compile()

    check_boundary(compiled(lambda x: x.sum(axis=0)), mesh, state)
    with pytest.raises(InputError, match=r"all-gather of f32\[8, ?6\] between clients"):
        check_boundary(compiled(lambda x: x), mesh, state)


def test_sharded_parameters_do_not_make_activations_cross():
    """Without the constraint in the step, XLA gathers the activations of both clients."""
    encoder = ResNet(blocks=(1, 1), width=16)
    run = tiny(8, clients=2, partners="batch", encoder=encoder, **SETTINGS)
    sharding = state_sharding(jax.eval_shape(run.init), run.mesh, shard=True)
    state = jax.device_put(run.init(), sharding)
    step = within_boundary(run.make_step(run.model, sharding), run.mesh)
    step(state, run.keys, run.private(), run.pool, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lax, "with_sharding_constraint", lambda tree, _: tree)
        unbound = within_boundary(run.make_step(run.model, sharding), run.mesh)
        with pytest.raises(InputError, match="between clients"):
            unbound(jax.device_put(run.init(), sharding), run.keys, run.private(), run.pool, None)


# What a client gets


@functools.cache
def _hidden(devices, clients, partners, **changes):
    run = tiny(devices, clients=clients, partners=partners, **SETTINGS, **changes)
    return run.hidden(range(3, 5))  # the last batch of pass 0, the first of pass 1


@pytest.mark.parametrize("partners", PARTNERS)
def test_hidden_rows_of_four_clients_have_the_same_bits_on_8_devices(partners):
    for one, many in zip(_hidden(1, 4, partners), _hidden(8, 4, partners), strict=True):
        np.testing.assert_array_equal(one["image"], many["image"])
        np.testing.assert_array_equal(one["label"], many["label"])
        assert len(np.unique(one["image"].reshape(48, -1), axis=0)) == 48


def test_a_client_hides_as_if_alone_and_under_its_own_secret():
    settings = {"partners": "batch", "scheme": InstaHide.cross(k=6)}
    run = tiny(8, clients=2, **settings, **SETTINGS)
    alone = tiny(1, data=run.sets[0], batch_size=24, **settings)
    together, by_itself = run.hidden(range(1)), alone.hidden(range(1))
    np.testing.assert_array_equal(together[0]["image"][:24], by_itself[0]["image"])
    np.testing.assert_array_equal(together[0]["label"][:24], by_itself[0]["label"])
    seed = jax.random.key(6)
    swapped = make_keys({0: insecure_secret(5), 1: insecure_secret(5)}, seed)  # 5 and 6 in `run`
    hide = jax.jit(make_hide(run.experiment, run.scheme, run.mesh))
    other = hide(
        put_keys(swapped, seed, run.mesh, 2),
        jax.device_put(np.int32(0), run.whole),
        run.private(),
        run.pool,
    )["image"]
    np.testing.assert_array_equal(other[:24], together[0]["image"][:24])
    assert (np.asarray(other)[24:] != together[0]["image"][24:]).mean() > 0.4


@pytest.mark.parametrize(("clients", "devices"), [(1, 8), (4, 8)])
def test_any_devices_train_alike_over_50_steps(clients, devices):
    one, losses_one = _trained(1, clients)
    many, losses_many = _trained(devices, clients)
    chex.assert_trees_all_close(one.params, many.params, atol=1e-5)
    chex.assert_trees_all_close(one.stats, many.stats, atol=1e-5)
    np.testing.assert_allclose(losses_one, losses_many, atol=1e-5)
    assert np.mean(losses_one[-10:]) < np.mean(losses_one[:10])


@functools.cache
def _trained(devices, clients):
    state, losses = tiny(devices, clients=clients, **SETTINGS).train(50)
    return jax.device_get(state), losses


@pytest.mark.parametrize(
    ("scheme", "clients"), [(TextHide.intra(k=4), 1), (TextHide.inter(k=4), 2)]
)
def test_texts_train_alike_on_8_devices(scheme, clients):
    settings = {"clients": clients, "scheme": scheme, "batch_size": 16} | GENTLE
    one, logged_one = tiny_text(1, **settings).train(6)
    eight, logged_eight = tiny_text(8, **settings).train(6)
    chex.assert_trees_all_close(one.params, eight.params, atol=1e-5)
    for a, b in zip(logged_one, logged_eight, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


# Groups of partners


def _plans(devices, group, clients=1):
    """Who is in the mixtures of a step: bool [row, row], by classes that no two rows share."""
    images = DATA.images[:48]
    data = labelled(48)
    every_row_a_class = type(data)(
        images, np.arange(48, dtype=np.int32), 48, tuple(map(str, range(48))), "x"
    )
    run = tiny(
        devices,
        data=every_row_a_class,
        partners="batch",
        partner_group=group,
        clients=clients,
        batch_size=48,
    )
    (hidden,) = run.hidden(range(1))
    order = np.asarray(run.private().this_pass.order)
    rows = np.concatenate([order[c] * clients + c for c in range(clients)])
    return hidden, hidden["label"][:, rows] > 0


@pytest.mark.parametrize("group", [6, 12])
def test_partners_are_of_the_group_on_any_devices(group):
    hidden, plan = _plans(1, group)
    for start in range(0, 48, group):
        inside = plan[start : start + group]
        assert inside.sum() == inside[:, start : start + group].sum() == 4 * group
        assert (inside[:, start : start + group].sum(axis=0) == 4).all()
        assert (inside[:, start : start + group].sum(axis=1) == 4).all()
    blocks = {
        plan[start : start + group, start : start + group].tobytes()
        for start in range(0, 48, group)
    }
    assert len(blocks) > 48 // group / 2  # every group draws for itself
    for devices in (4, 8):
        if group % (48 // devices) and 48 // devices % group:
            continue
        spread, _ = _plans(devices, group)
        np.testing.assert_array_equal(hidden["image"], spread["image"])
        np.testing.assert_array_equal(hidden["label"], spread["label"])


def test_groups_stay_within_a_client():
    _, plan = _plans(8, 12, clients=2)
    for start in range(0, 48, 12):
        assert plan[start : start + 12].sum() == plan[start : start + 12, start : start + 12].sum()


@pytest.mark.parametrize(("group", "gathered"), [(2, None), (6, None), (12, 12), (None, 48)])
def test_a_group_moves_no_more_images_than_it_has(group, gathered):
    scheme = InstaHide.inside(k=2)
    run = tiny(8, partners="batch", partner_group=group, scheme=scheme, **SETTINGS)
    moved = collectives(_compiled_hide(run))
    images = [c for c in moved if c.shapes[0][0] == "u8"]
    assert [c.shapes[0][1][0] for c in images] == ([] if gathered is None else [gathered])


def test_groups_of_texts_train_alike_on_any_devices():
    settings = {"scheme": TextHide.inter(k=4), "batch_size": 16, "partner_group": 8} | GENTLE
    one, _ = tiny_text(1, **settings).train(6)
    four, _ = tiny_text(4, **settings).train(6)
    whole, _ = tiny_text(1, **(settings | {"partner_group": None})).train(6)
    chex.assert_trees_all_close(one.params, four.params, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, whole.params)
    assert max(jax.tree.leaves(moved)) > 1e-3  # the group matters


# Sharded state


def test_a_sharded_state_trains_alike_and_is_cut():
    encoder = ConvNet(widths=(64, 64), strides=(2, 2))
    whole = tiny(8, encoder=encoder, **SETTINGS)
    abstract = jax.eval_shape(whole.init)
    sharding = state_sharding(abstract, whole.mesh, shard=True)
    step = whole.make_step(whole.model, sharding)
    state = jax.device_put(whole.init(), sharding)
    for i in range(6):
        state, _ = step(state, whole.keys, whole.private(i // whole.steps_per_epoch), whole.pool)
    expected, _ = whole.train(6)
    chex.assert_trees_all_close(
        jax.device_get(state.params), jax.device_get(expected.params), atol=1e-5
    )
    held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held < 1.2 * total / 8
    cut = [leaf for leaf in jax.tree.leaves(state.params) if leaf.size >= 1024]
    assert cut
    assert all(leaf.addressable_data(0).size == leaf.size // 8 for leaf in cut)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
