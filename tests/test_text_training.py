"""Training on texts: what the step computes, on any devices, and how predictions are scored."""

import json
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_text import BATCH, EXPERIMENT, tiny_text

from instahide_jax import NoHiding, TextHide, hide, insecure_secret
from instahide_jax.data.text_sources import SyntheticText, TableText, TextData
from instahide_jax.encoders import TanhHead, Variables
from instahide_jax.errors import InputError
from instahide_jax.text_evaluation import (
    has_masks,
    make_outputs,
    outputs_of_set,
    score_set,
    score_views,
)
from instahide_jax.text_task import identities, open_task, open_texts
from instahide_jax.training import example_losses, make_keys

INTER = TextHide.inter(k=4, num_masks=4)
SCHEMES = {
    "vanilla": NoHiding(),
    "mix": TextHide.intra(k=4, num_masks=0),
    "intra": EXPERIMENT.scheme,
    "fresh masks": TextHide.intra(k=4, num_masks=None),
    "inter": INTER,
}


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """Settings of an experiment with numbers as labels."""
    path = tmp_path_factory.mktemp("regression") / "numbers.jsonl"
    texts = SyntheticText(count=60, seed=1).read()
    rows = [{"text": t, "label": t.count("good") / 4} for t in texts.first]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = TableText(str(path), regression=True)
    data = TextData(source, source, validation=12, length=16, buckets=(), metrics=("pearson",))
    return {"data": data, "scheme": TextHide.intra(k=2, num_masks=3)}


# The step


def _by_hand(run, state, feed):
    """Loss and new parameters of one step, from the parts."""
    order = np.asarray(feed.private.order)[0]
    rows = order[feed.step % len(order)]

    def cut(tokens, rows):
        return {name: array[rows, : feed.length] for name, array in tokens.items()}

    own = cut(run.dataset.train.tokens, rows)
    secret = insecure_secret(5)
    key = secret.stream("features").fold_in(feed.step)
    pool = run.scheme.mask_pool(secret.stream("masks"), 16)

    def loss_of(params):
        def features(tokens):
            variables = Variables(params, state.stats)
            return run.model.features(variables, tokens, train=False)[0]

        public = None
        if run.scheme.num_public:
            others = np.asarray(feed.private.public)[0, feed.step % len(order)]
            # On their own: what they are padded to and mixed with must not matter.
            public = features(cut(run.dataset.public.tokens, others))
        labels = run.dataset.train.labels[rows]
        hidden, targets = hide(
            key, features(own), labels, pool, scheme=run.scheme, public_features=public
        )
        outputs = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
        if targets.ndim == 2:
            return -(targets * jax.nn.log_softmax(outputs)).sum(axis=1).mean()
        return ((outputs[:, 0] - targets) ** 2).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    norm = optax.tree.norm(gradients)
    gradients = jax.tree.map(lambda g: g / jnp.maximum(1.0, norm), gradients)
    # The first step of Adam: the sign of the gradient, where it is not tiny.
    moved = jax.tree.map(lambda p, g: p - 1e-2 * g / (jnp.abs(g) + 1e-8), state.params, gradients)
    return float(loss), jax.device_get((moved, gradients))


@pytest.mark.parametrize("scheme", ["intra", "inter", "numbers"])
def test_step_equals_one_written_by_hand(scheme, regression):
    encoder = replace(EXPERIMENT.encoder, dropout=0.0, attention_dropout=0.0)
    changes = regression if scheme == "numbers" else {"scheme": SCHEMES[scheme]}
    with jax.debug_key_reuse(False):  # the keys of the step are derived here once more
        run = tiny_text(1, encoder=encoder, **changes)
        feed = run.feeds(0, 1)[0]
        loss, (moved, gradients) = _by_hand(run, run.init(), feed)
        state, metrics = run.step(run.init(), run.keys, feed.private, run.public, feed.length)
    assert float(metrics["loss"]) == pytest.approx(loss, abs=1e-5)
    assert ("accuracy" in metrics) == (scheme != "numbers")
    compared = 0
    for new, expected, gradient in zip(
        jax.tree.leaves(jax.device_get(state.params)),
        jax.tree.leaves(moved),
        jax.tree.leaves(gradients),
        strict=True,
    ):
        clear = np.abs(gradient) > 1e-4
        compared += clear.sum()
        np.testing.assert_allclose(new[clear], expected[clear], atol=1e-4)
    assert compared > 500


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_trains(name):
    state, logged = tiny_text(1, scheme=SCHEMES[name]).train(18)
    assert int(state.step) == 18
    assert np.mean([m["loss"] for m in logged[-6:]]) < np.mean([m["loss"] for m in logged[:6]])


def test_there_is_one_program_per_length():
    run = tiny_text(1, data=replace(EXPERIMENT.data, buckets=(10,)))
    run.train(18)
    assert run.traces == len({feed.length for feed in run.feeds(0, 18)}) == 2
    whole = tiny_text(1)
    assert whole.train(18)[0].step == 18
    assert whole.traces == 1


@pytest.mark.parametrize("name", ["intra", "inter"])
def test_8_devices_train_as_1_does(name):
    (one, logged_one), (eight, logged_eight) = (
        tiny_text(devices, scheme=SCHEMES[name]).train(12) for devices in (1, 8)
    )
    for a, b in zip(logged_one, logged_eight, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    chex.assert_trees_all_close(one.params["head"], eight.params["head"], atol=1e-3)


def test_published_head_and_its_dropout_train():
    run = tiny_text(1, head=TanhHead(dropout=0.3))
    plain = tiny_text(1, head=TanhHead())
    assert run.train(3)[1][0]["loss"] != plain.train(3)[1][0]["loss"]
    assert set(run.train(3)[0].params["head"]) > {"shared_kernel"}


def test_steps_start_anywhere():
    run = tiny_text(1, data=replace(EXPERIMENT.data, buckets=(10,)))
    whole, resumed = run.feeds(0, 16), run.feeds(8, 16)
    assert [feed.step for feed in resumed] == list(range(8, 16))
    for a, b in zip(whole[8:], resumed, strict=True):
        assert (a.length, a.work) == (b.length, b.work)
        np.testing.assert_array_equal(a.private.order, b.private.order)
    sizes = run.dataset.train.tokens["mask"].sum(axis=1)
    rows = np.asarray(whole[7].private.order)[0, 7 % 6]
    assert whole[7].work == sizes[rows].sum()
    assert sizes[rows].max() <= whole[7].length


def test_compiled_step_does_not_contain_the_secret():
    run = tiny_text()
    words = np.asarray(jax.random.key_data(run.keys.secret.key)).astype(np.uint32).reshape(-1)
    spellings = {str(w) for w in words} | {str(w.astype(np.int32)) for w in words}
    spellings |= {f"{w:x}" for w in words} | {w.tobytes().hex() for w in words}
    feed = run.feeds(0, 1)[0]
    lowered = run.step.lower(run.init(), run.keys, feed.private, run.public, length=feed.length)
    for text in (lowered.as_text().lower(), lowered.compile().as_text().lower()):
        assert not [s for s in spellings if s in text]


def test_losses():
    outputs = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    soft = jnp.array([[0.5, 0.25], [0.0, 1.0]])
    expected = -(soft * jax.nn.log_softmax(outputs)).sum(axis=1)
    np.testing.assert_allclose(example_losses(outputs, soft), expected, atol=1e-6)
    numbers = example_losses(jnp.array([[3.0], [1.0]]), jnp.array([1.0, 1.5]))
    np.testing.assert_allclose(numbers, [4.0, 0.25])


# Scores


@pytest.mark.parametrize("draws", [0, 3])
def test_outputs_are_those_of_the_texts_in_their_order(draws):
    run, secret = tiny_text(), insecure_secret(5)
    texts = run.dataset.train
    outputs = make_outputs(run.scheme, run.model)
    made = outputs_of_set(outputs, run.variables, texts, (10, 16), secret, draws)
    assert made.shape == (max(draws, 1), len(texts.labels), 2)
    features, _ = run.model.features(run.variables, texts.tokens, train=False)
    head = jax.device_get(run.variables.params["head"])
    pool = np.ones((1, 16))
    if draws:
        pool = np.asarray(run.scheme.mask_pool(insecure_secret(5).stream("masks"), 16))
    # Every row of every draw is the head's output under exactly one mask of the training's pool.
    expected = (np.asarray(features)[None] * pool[:, None]) @ head["kernel"] + head["bias"]
    distance = np.abs(made[:, None] - expected[None]).max(axis=3)
    assert distance.min(axis=1).max() < 1e-5
    if draws:
        chosen = distance.argmin(axis=1)
        assert len(np.unique(chosen)) == 4
        assert (chosen[0] != chosen[1]).any()
        other = outputs_of_set(outputs, run.variables, texts, (10, 16), insecure_secret(6), draws)
        assert np.abs(other - made).max() > 1e-3
    one_length = outputs_of_set(outputs, run.variables, texts, (16,), insecure_secret(5), draws)
    np.testing.assert_allclose(made, one_length, atol=1e-5)


def test_probabilities_are_averaged_over_draws():
    logits = np.array([[[2.0, 0.0], [0.0, 3.0]], [[-1.0, 0.0], [0.0, -0.5]]], np.float32)
    labels = np.array([0, 0])
    scores = score_set(logits, labels, ("accuracy",), 2)
    mean = np.asarray(jax.nn.softmax(logits)).mean(axis=0)
    assert scores == {
        "loss": pytest.approx(-np.log(mean[:, 0]).mean(), abs=1e-6),
        "accuracy": (mean.argmax(axis=1) == labels).mean(),
    }
    numbers = np.array([[[1.0], [2.0], [4.0]], [[3.0], [2.0], [0.0]]], np.float32)
    scores = score_set(numbers, np.float32([2, 2, 3]), ("pearson",), None)
    assert scores["loss"] == pytest.approx(1 / 3)
    assert scores["pearson"] == 0  # constant predictions


def test_views_are_without_masks_and_averaged_over_masks():
    run = tiny_text()
    arguments = (run.scheme, run.model, run.variables, run.dataset.tests["test"], (10, 16))
    views = score_views(*arguments, insecure_secret(5), ("accuracy",), (5, 1))
    assert list(views) == [0, 1, 5]
    assert len({scores["loss"] for scores in views.values()}) == 3
    assert list(score_views(*arguments, None, ("accuracy",), ())) == [0]
    with pytest.raises(InputError, match="number of masks is 0; it must be at least 1"):
        score_views(*arguments, insecure_secret(5), ("accuracy",), (0,))
    assert [has_masks(scheme) for scheme in SCHEMES.values()] == [False, False, True, True, True]


@pytest.mark.parametrize("name", ["vanilla", "intra"])
def test_validation_is_the_owners_view(name):
    experiment = replace(EXPERIMENT, scheme=SCHEMES[name])
    run, task = tiny_text(1, scheme=SCHEMES[name]), open_task(experiment, range(1))
    own_keys = make_keys({0: insecure_secret(5)}, jax.random.key(6))
    made = task.make_validate(run.model, run.mesh)(run.init(), own_keys)
    views = score_views(
        run.scheme,
        run.model,
        run.variables,
        run.dataset.validation,
        (16,),
        insecure_secret(5),
        ("accuracy",),
        (1,) if name == "intra" else (),
    )
    expected = views[1 if name == "intra" else 0]
    assert made.values == expected
    assert made.score == expected["accuracy"]


# What is opened


def test_public_texts_are_read_for_public_slots_only():
    assert open_texts(EXPERIMENT, [0])[0][0].public is None
    experiment = replace(EXPERIMENT, scheme=INTER)
    other = replace(experiment, public_text=SyntheticText(count=40, seed=4))
    marks = []
    for wanted in (experiment, other):
        opened, weights = open_texts(wanted, [0])
        assert len(opened[0].public.labels) == 40
        marks.append(identities(opened[0], weights))
        assert marks[-1] == open_task(wanted, range(1)).identities[0]
    assert marks[0] != marks[1]
    few = replace(experiment, public_text=SyntheticText(count=BATCH - 1))
    with pytest.raises(
        InputError, match=r"there are 7 public texts; every step takes batch_size=8"
    ):
        open_texts(few, [0])
    with pytest.raises(
        InputError, match=r"client 1 has 3 public texts; every step takes batch_size/clients=4"
    ):
        open_texts(replace(few, clients=2, scheme=TextHide.inter(k=3)), [0, 1])
    with pytest.raises(InputError, match="num_classes is 3 but the data set has 2 classes"):
        open_task(replace(EXPERIMENT, scheme=TextHide.intra(num_classes=3)), range(1))
