"""The train step: what it computes, on any devices, and what it never does."""

import functools
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CLASSES, labelled, tiny

from instahide_jax import InstaHide, NoHiding, encrypt, insecure_secret
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import Dataset, Statistics
from instahide_jax.encoders import ConvNet, Model, Variables
from instahide_jax.image_data import ClientImages, agree
from instahide_jax.image_evaluation import make_evaluate
from instahide_jax.image_step import make_hide
from instahide_jax.image_task import feeds
from instahide_jax.optimizers import (
    AdamW,
    Cosine,
    Linear,
    Schedule,
    Sgd,
    StepDecay,
    make_optimizer,
)
from instahide_jax.parallel import make_mesh
from instahide_jax.training import Examples, init_state, make_keys, make_train_step, put_keys

PARTNERS = ("dataset", "batch")


@functools.cache
def _hidden(devices, partners, device_map="shard_map"):
    run = tiny(devices, partners=partners, device_map=device_map)
    return run.hidden(range(4, 6))  # the last batch of pass 0, the first of pass 1


# One function, any devices


@pytest.mark.parametrize("partners", PARTNERS)
@pytest.mark.parametrize("device_map", ["shard_map", "pmap"])
def test_hidden_batch_has_the_same_bits_on_8_devices(partners, device_map):
    for one, eight in zip(_hidden(1, partners), _hidden(8, partners, device_map), strict=True):
        np.testing.assert_array_equal(one["image"], eight["image"])
        np.testing.assert_array_equal(one["label"], eight["label"])
        assert one["image"].shape == (8, 8, 8, 3)
        assert len(np.unique(one["image"].reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("partners", PARTNERS)
def test_8_devices_train_as_1_does(partners):
    """Over two passes, with the step traced once."""
    one, losses_one = tiny(1, partners=partners).train(10)
    eight, losses_eight = tiny(8, partners=partners).train(10)
    assert int(one.step) == int(eight.step) == 10
    assert tiny(1, partners=partners).traces == tiny(8, partners=partners).traces == 1
    chex.assert_trees_all_close(*jax.device_get((one.params, eight.params)), atol=1e-5)
    chex.assert_trees_all_close(*jax.device_get((one.stats, eight.stats)), atol=1e-5)
    np.testing.assert_allclose(losses_one, losses_eight, atol=1e-5)


def test_where_partners_come_from_matters():
    assert np.abs(_hidden(1, "dataset")[0]["image"] - _hidden(1, "batch")[0]["image"]).max() > 1


# What a step computes


@pytest.mark.parametrize("clip", [None, 0.05])
def test_step_equals_one_written_by_hand(clip):
    run = tiny(1, optimizer=Sgd(0.1, schedule=Schedule(), clip=clip))
    start, private = run.init(), run.private()
    params, stats = jax.tree.map(jnp.copy, (start.params, start.stats))  # start is donated
    rows = np.asarray(private.this_pass.order)[0, :8]
    hidden = jax.jit(partial(encrypt, scheme=run.scheme))(
        insecure_secret(5).stream("pass").fold_in(0),
        {"image": run.data.images[rows], "label": run.data.labels[rows]},
        rows=rows,
        private_pool={"image": run.data.images, "label": run.data.labels},
    )

    def loss_of(params):
        features, new = run.model.features(Variables(params, stats), hidden["image"], train=True)
        log_p = jax.nn.log_softmax(run.model.logits(params, features))
        return -(hidden["label"] * log_p).sum(axis=1).mean(), new

    (loss, new_stats), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    state, metrics = run.step(start, run.keys, private, run.pool)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
    scale = 1 if clip is None else clip / norm
    expected = jax.tree.map(lambda p, g: p - 0.1 * (scale * g + 1e-4 * p), params, gradients)
    assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-6)
    assert norm > 0.1  # so that it is clipped
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    chex.assert_trees_all_close(jax.device_get(state.params), expected, atol=1e-6)
    chex.assert_trees_all_close(state.stats, new_stats, atol=1e-6)
    assert int(state.step) == 1
    moved = jax.tree.map(lambda p, q: np.abs(p - q).max(), params, expected)
    assert min(jax.tree.leaves(moved)) > 1e-4  # the bound above tells steps apart


def test_dropout_has_new_keys_in_every_step():
    """The model outputs random numbers of a dropout key, and no parameter ever changes."""
    examples = Examples(np.zeros((8, 1), np.float32), np.zeros(8, np.float32))

    def losses(of):
        def features(variables, inputs, *, train, dropout_key):
            assert train
            noise = jax.random.uniform(dropout_key, inputs.shape)
            return (noise if of == "encoder" else inputs), variables.stats

        def logits(params, features, dropout_key):
            noise = jax.random.uniform(dropout_key, features.shape)
            return params["scale"] * (noise if of == "head" else features)

        model = Model(lambda key: Variables({"scale": jnp.ones((1, 1))}, {}), features, logits)
        optimizer = optax.set_to_zero()
        step = make_train_step(lambda *_: examples, NoHiding(), model, optimizer, mesh)
        state, made = init_state(model, optimizer, jax.random.key(0)), []
        for _ in range(5):
            state, metrics = step(state, keys, None, None)
            made.append(float(metrics["loss"]))
        return made

    mesh, seed = make_mesh(devices=jax.devices()[:1]), jax.random.key(6)
    keys = put_keys(make_keys({0: insecure_secret(5)}, seed), seed, mesh, 1)
    encoder, head = losses("encoder"), losses("head")
    assert len({*encoder, *head}) == 10  # one key serves neither two steps nor both parts
    assert losses("encoder") == encoder
    assert min(encoder + head) > 0


@pytest.mark.parametrize(
    ("scheme", "partners"),
    [
        (NoHiding(), "dataset"),
        (NoHiding(), "batch"),
        (InstaHide.cross(k=6), "dataset"),
        (InstaHide.cross(k=6, mask="abs", renormalise_labels=True), "batch"),
    ],
)
def test_every_scheme_trains(scheme, partners):
    run = tiny(8, scheme=scheme, partners=partners)
    state, metrics = run.step(run.init(), run.keys, run.private(), run.pool)
    chex.assert_tree_all_finite(jax.device_get((state.params, state.stats, metrics)))
    assert 0.2 < float(metrics["loss"]) < 5


def test_bfloat16_computes_in_it_and_keeps_parameters_in_float32():
    encoder = ConvNet(widths=(4,), strides=(4,), dtype="bfloat16")
    run = tiny(encoder=encoder, scheme=InstaHide.mixup(k=4, dtype="bfloat16"))
    hide = make_hide(run.experiment, run.scheme, run.mesh)
    made = jax.eval_shape(hide, run.keys, jnp.int32(0), run.private(), run.pool)
    assert (made["image"].dtype, made["label"].dtype) == (jnp.bfloat16, jnp.float32)
    state, metrics = run.step(run.init(), run.keys, run.private(), run.pool)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32
    assert np.isfinite(float(metrics["loss"]))


def test_loss_goes_down():
    """On two classes that their grey value tells apart."""
    data = labelled(40)
    images = np.where(data.labels[:, None, None, None] % 2, 200, 50) + data.images // 8
    data = replace(data, images=images.astype(np.uint8), labels=data.labels % 2)
    _, losses = tiny(data=data, scheme=NoHiding()).train(30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


# Hiding within a pass


def test_each_private_image_is_used_num_private_times_in_a_pass():
    """Image i is black but for its pixel i, so a mixture shows what is in it."""
    images = np.zeros((40, 64, 1), np.uint8)
    images[np.arange(40), np.arange(40)] = 255
    data = replace(labelled(40), images=images.reshape(40, 8, 8, 1))
    run = tiny(data=data, scheme=InstaHide.mixup(k=3))
    for epoch, made in enumerate(run.pass_hidden(range(2))):
        values = made["image"].reshape(40, 64)
        used = values > values.min() + 1e-3
        np.testing.assert_array_equal(used[:, :40].sum(axis=0), 3)
        np.testing.assert_array_equal(used.sum(axis=1), 3)
        assert used[np.arange(40), run.private(epoch).this_pass.order[0]].all()


def test_an_image_has_one_view_in_a_pass_and_another_in_the_next():
    """A mixture is a weighted sum of the views that its partners have as rows of their own."""
    run = tiny(scheme=InstaHide.mixup(k=4), augment=Augment(padding=2, flip=True))
    plain = NoHiding(CLASSES, run.scheme.mean, run.scheme.std)
    mixed = [made["image"].reshape(40, -1) for made in run.pass_hidden(range(2))]
    views = [made["image"].reshape(40, -1) for made in run.pass_hidden(range(2), plain)]
    for a in (0, 1):
        for b in (0, 1):
            weights, residue, *_ = np.linalg.lstsq(views[b].T, mixed[a].T)
            if a != b:
                assert residue.min() > 1
                continue
            assert residue.max() < 1e-4
            np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-4)
            np.testing.assert_array_equal((weights > 1e-4).sum(axis=0), 4)


@pytest.mark.parametrize("partners", PARTNERS)
def test_masks_are_new_in_every_row_step_and_pass(partners):
    run = tiny(partners=partners)
    signs = []
    clear = replace(run.scheme, mask="none")
    passes = run.pass_hidden(range(2)), run.pass_hidden(range(2), clear)
    for masked, mixed in zip(*passes, strict=True):
        masked, mixed = masked["image"], mixed["image"]
        np.testing.assert_allclose(np.abs(masked), np.abs(mixed), atol=1e-6)
        signs.append(np.signbit(masked) != np.signbit(mixed))
    signs = np.concatenate(signs).reshape(80, -1)
    agreement = (signs[:, None] == signs[None]).mean(axis=2)[np.triu_indices(80, 1)]
    bound = 6 * 0.5 / signs.shape[1] ** 0.5  # six standard deviations
    assert np.abs(agreement - 0.5).max() < bound


# The loop


def _feeds(run, start, total):
    sets = Dataset(run.data, run.data, run.data, Statistics((0.5,), (0.25,)), (8, 8, 3), "")
    data = {0: ClientImages(sets, None, [])}
    agreed = agree(data)
    return feeds(run.experiment, run.scheme, data, agreed, run.own_keys, run.mesh, start, total)


def test_loop_moves_no_data_and_ends_where_steps_by_hand_do():
    run = tiny(8)
    expected, _ = run.train(10)
    state, seen = run.init(), []
    with jax.transfer_guard("disallow"):
        for feed in _feeds(run, 0, 10):
            state, _ = run.step(state, run.keys, feed.private, run.pool)
            seen.append(feed.step)
        private = feed.private._replace(images=run.data.images[None])
        with pytest.raises(Exception, match=r"[Dd]isallowed"):
            run.step(state, run.keys, private, run.pool)
    assert seen == list(range(10))
    chex.assert_trees_all_equal(*jax.device_get((state.params, expected.params)))


def test_loop_gives_the_same_steps_from_any_start():
    run = tiny(1, scheme=NoHiding())

    def orders(start):
        loop = _feeds(run, start, 12)
        return {feed.step: np.asarray(feed.private.this_pass.order)[0] for feed in loop}

    whole, resumed = orders(0), orders(7)
    assert list(resumed) == [7, 8, 9, 10, 11]
    for number, order in resumed.items():
        np.testing.assert_array_equal(order, whole[number])
        np.testing.assert_array_equal(np.sort(order), np.arange(40))
    assert (whole[4] == whole[0]).all()
    assert (whole[5] != whole[0]).any()


def test_state_is_donated_and_keys_are_not():
    run = tiny(1)
    state = run.init()
    run.step(state, run.keys, run.private(), run.pool)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not run.keys.secret.key.is_deleted()


def test_compiled_step_does_not_contain_the_secret():
    run = tiny(8)
    words = np.asarray(jax.random.key_data(run.keys.secret.key)).astype(np.uint32).reshape(-1)
    spellings = {str(w) for w in words} | {str(w.astype(np.int32)) for w in words}
    spellings |= {f"{w:x}" for w in words} | {w.tobytes().hex() for w in words}

    def found(function, *arguments):
        lowered = function.lower(*arguments)
        texts = (lowered.as_text().lower(), lowered.compile().as_text().lower())
        return {s for s in spellings if any(s in text for text in texts)}

    step = run.make_step(run.model)
    assert found(step, run.init(), run.keys, run.private(), run.pool) == set()
    # The search finds a key that is closed over.
    secret = run.keys.secret.key[0]
    assert found(jax.jit(lambda: jax.random.bits(secret, (4,), "uint32")))


# The optimiser


def _rates(config, steps_per_epoch, total):
    """Learning rates: what a gradient of 1 moves."""
    optimizer = make_optimizer(config, steps_per_epoch, total)

    def step(opt_state, _):
        updates, opt_state = optimizer.update(jnp.ones(()), opt_state, jnp.zeros(()))
        return opt_state, -updates

    start = optimizer.init(jnp.zeros(()))
    return np.asarray(jax.lax.scan(step, start, length=total)[1])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), {0: 0.2, 59: 0.2}),
        (Schedule(warmup_epochs=1), {0: 0, 5: 0.1, 10: 0.2, 59: 0.2}),
        (StepDecay(boundaries=(2, 4)), {0: 0.2, 19: 0.2, 21: 0.02, 39: 0.02, 41: 0.002}),
        (StepDecay(boundaries=(2, 2.01)), {19: 0.2, 21: 0.002}),
        (
            StepDecay(warmup_epochs=0.5, boundaries=(2, 4), factor=0.5),
            {0: 0, 4: 0.16, 5: 0.2, 19: 0.2, 21: 0.1, 39: 0.1, 41: 0.05},
        ),
        (Linear(), {0: 0.2, 15: 0.15, 30: 0.1, 59: 0.2 / 60}),
        (Linear(warmup_epochs=1), {0: 0, 5: 0.1, 10: 0.2, 35: 0.1, 59: 0.2 / 50}),
        (Cosine(), {0: 0.2, 15: 0.1 * (1 + 2**-0.5), 30: 0.1, 45: 0.1 * (1 - 2**-0.5)}),
        (Cosine(warmup_epochs=2), {0: 0, 10: 0.1, 20: 0.2, 40: 0.1, 59: 0.2 * 0.00154133}),
    ],
)
def test_schedules(schedule, expected):
    config = Sgd(0.2, momentum=0, weight_decay=0, schedule=schedule)
    rates = _rates(config, 10, 60)
    assert {t: pytest.approx(rates[t], abs=1e-6) for t in expected} == expected


def test_accumulation_averages_gradients_and_schedules_count_updates():
    config = Sgd(0.2, momentum=0, weight_decay=0, schedule=Cosine(), accumulate=2)
    rates = _rates(config, 10, 60)
    np.testing.assert_array_equal(rates[::2], 0)
    single = _rates(replace(config, accumulate=1), 5, 30)
    np.testing.assert_allclose(rates[1::2], single, atol=1e-6)
    optimizer = make_optimizer(config, 10, 60)
    state = optimizer.init(jnp.zeros(()))
    for gradient in (1.0, 5.0):
        updates, state = optimizer.update(jnp.asarray(gradient), state, jnp.zeros(()))
    assert float(updates) == pytest.approx(-0.2 * 3.0)


def test_accumulation_in_the_step():
    run = tiny(scheme=NoHiding(), optimizer=Sgd(0.1, schedule=Schedule(), accumulate=2))
    start, first, second = (jax.device_get(run.train(n)[0].params) for n in range(3))
    chex.assert_trees_all_equal(start, first)
    assert np.abs(second["head"]["kernel"] - first["head"]["kernel"]).max() > 1e-4


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_and_coupled_weight_decay(nesterov):
    config = Sgd(0.1, 0.9, nesterov, weight_decay=0.5, schedule=Schedule())
    optimizer = make_optimizer(config, 10, 60)
    value, velocity = 2.0, 0.0
    parameter = jnp.asarray(value)
    state = optimizer.init(parameter)
    for gradient in (1.0, -3.0, 0.5):
        updates, state = optimizer.update(jnp.asarray(gradient), state, parameter)
        parameter = optax.apply_updates(parameter, updates)
        decayed = gradient + 0.5 * value
        velocity = 0.9 * velocity + decayed
        value -= 0.1 * (decayed + 0.9 * velocity if nesterov else velocity)
    assert float(parameter) == pytest.approx(value, abs=1e-6)


def test_adamw_with_decoupled_decay_and_clipped_gradients():
    config = AdamW(0.1, weight_decay=0.5, clip=2.0, schedule=Schedule())
    optimizer = make_optimizer(config, 10, 60)
    value = np.array([2.0, -1.0])
    mean, square = np.zeros(2), np.zeros(2)
    parameter = jnp.asarray(value)
    state = optimizer.init(parameter)
    for t, gradient in enumerate(([3.0, 4.0], [0.5, 0.0], [-6.0, 8.0]), 1):
        updates, state = optimizer.update(jnp.asarray(gradient), state, parameter)
        parameter = optax.apply_updates(parameter, updates)
        clipped = np.array(gradient) * min(1.0, 2.0 / np.linalg.norm(gradient))
        mean = 0.9 * mean + 0.1 * clipped
        square = 0.999 * square + 0.001 * clipped**2
        step = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        value = value - 0.1 * (step + 0.5 * value)
        np.testing.assert_allclose(parameter, value, atol=1e-5)


# Evaluation


def test_evaluation_counts_valid_rows_only():
    run = tiny(1)
    state = run.init()
    evaluate = make_evaluate(run.experiment, run.scheme, run.model)
    images, labels = run.data.images[:8], run.data.labels[:8]
    all_rows = evaluate(state.params, state.stats, images, labels, np.ones(8, bool))
    half = np.arange(8) < 4
    first = evaluate(state.params, state.stats, images, labels, half)
    other = evaluate(state.params, state.stats, images, labels, ~half)
    assert (float(all_rows["count"]), float(first["count"])) == (8, 4)
    for name in ("loss", "right"):
        total = float(first[name]) + float(other[name])
        assert float(all_rows[name]) == pytest.approx(total, abs=1e-5)
    variables = Variables(state.params, state.stats)
    standardised = (images / 255 - 0.5).astype(np.float32) / 0.25
    features, _ = run.model.features(variables, standardised, train=False)
    logits = np.asarray(run.model.logits(state.params, features))
    assert float(all_rows["right"]) == (logits.argmax(axis=1) == labels).sum()
    loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(8), labels].sum()
    assert float(all_rows["loss"]) == pytest.approx(loss, abs=1e-4)
