"""What hiding adds to a training step.

    python benchmarks/train_step.py [images|texts] [--batch-size 32] [--repetitions 40]

Images: ResNet-18 on 32x32x3. Texts: a BERT of MiniLM's size (22.7 million parameters) with AdamW on
sentences of 64 tokens; TextHide-inter is left out, because it has public texts to encode. Every
repetition does one step of each experiment, in random order. Printed are the medians, the median
ratio of a step to the vanilla one of the same repetition with its 95 % bootstrap interval, and the
time of hiding alone, which a step on a noisy machine cannot resolve: of texts, mixing and masking
the features and the gradient through both.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instahide_jax import InstaHide, NoHiding, TextHide, secret_key
from instahide_jax import text_step as texts
from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import Mnist5k, PoolHeldOut
from instahide_jax.encoders import Bert, Model, ResNet18, make_model
from instahide_jax.image_step import Private, make_hide, make_take, plan_pass
from instahide_jax.optimizers import AdamW, Optimizer, Sgd, make_optimizer
from instahide_jax.parallel import make_mesh
from instahide_jax.placement import put_own
from instahide_jax.training import (
    ClientKeys,
    Keys,
    Take,
    init_state,
    make_keys,
    make_train_step,
    put_keys,
)

SCHEMES: dict[str, dict[str, NoHiding]] = {
    "images": {
        "vanilla": NoHiding(num_classes=10),
        "inside k=4": InstaHide.inside(4, num_classes=10),
        "cross k=6": InstaHide.cross(6, num_classes=10),
    },
    "texts": {
        "vanilla": NoHiding(num_classes=2),
        "k=4, m=16": TextHide.intra(4, num_masks=16, num_classes=2),
        "k=4, m=256": TextHide.intra(4, num_masks=256, num_classes=2),
        "k=4, m=inf": TextHide.intra(4, num_masks=None, num_classes=2),
    },
}
NUM_IMAGES = 10_000
NUM_TEXTS = 1_000
LENGTH = 64
MINILM = Bert(hidden=384, layers=6, heads=12, intermediate=1536, output="mean")
SEED = 0

Works = tuple[Callable[[], None], Callable[[], None]]


def on_images(scheme: NoHiding, batch_size: int) -> Works:
    """A function that does one step, and one that hides one batch; both compiled."""
    config = ImageExperiment(
        data=Mnist5k(),  # not read: the images below are random
        encoder=ResNet18(),
        scheme=scheme,
        public_pool=PoolHeldOut(),
        augment=Augment(padding=4, flip=True),
        batch_size=batch_size,
    )
    rng = np.random.default_rng(SEED)
    mesh = make_mesh()
    images = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, NUM_IMAGES)
    own_keys, keys = new_keys(mesh)
    this_pass = jax.jit(partial(plan_pass, num_images=NUM_IMAGES, scheme=scheme))(own_keys, 0)
    private = put_own([Private(jnp.asarray(images), jnp.asarray(labels), this_pass)], mesh, 1)
    pool = private.images if scheme.num_public else None
    model = make_model(config.encoder, (32, 32, 3), 10)
    take = make_take(config, scheme, mesh)
    one_step = stepper(take, scheme, model, Sgd(), keys, private, pool, None)
    hide = jax.jit(make_hide(config, scheme, mesh))
    at_start = jnp.zeros((), jnp.int32)
    return one_step, lambda: jax.block_until_ready(hide(keys, at_start, private, pool))


def on_texts(scheme: NoHiding, batch_size: int) -> Works:
    """A function that does one step, and one that hides one batch of features."""
    rng = np.random.default_rng(SEED)
    shape = (NUM_TEXTS, LENGTH)
    tokens = {
        "ids": rng.integers(0, MINILM.vocab_size, shape, np.uint16),
        "types": np.zeros(shape, np.uint8),
        "mask": np.ones(shape, np.uint8),
    }
    labels = rng.integers(0, 2, NUM_TEXTS).astype(np.int32)
    mesh = make_mesh()
    own_keys, keys = new_keys(mesh)
    plan = texts.plan_pass(own_keys.views, 0, batch_size, np.zeros(NUM_TEXTS, int))
    own = texts.PrivateTexts(tokens, labels, plan.order, None)  # type: ignore[arg-type]
    private = put_own([own], mesh, 1)
    model = make_model(MINILM, (LENGTH,), 2)
    take = texts.make_take(mesh)
    one_step = stepper(take, scheme, model, AdamW(), keys, private, None, LENGTH)
    features = jnp.asarray(rng.normal(size=(batch_size, MINILM.hidden)), jnp.float32)

    @jax.jit
    def hide(keys: ClientKeys, step: jax.Array, features: jax.Array) -> Any:
        def hidden(features: jax.Array) -> tuple[jax.Array, jax.Array]:
            made, targets = scheme.hide_features(
                keys.secret, step, features, jnp.asarray(labels[:batch_size])
            )
            return (made**2).sum(), targets

        return jax.value_and_grad(hidden, has_aux=True)(features)

    at_start = jnp.zeros((), jnp.int32)
    return one_step, lambda: jax.block_until_ready(hide(own_keys, at_start, features))


def new_keys(mesh: Mesh) -> tuple[ClientKeys, Keys]:
    """The keys of one client, as the client has them and on the mesh."""
    seed = jax.random.key(0)
    own = make_keys({0: secret_key()}, seed)
    return own[0], put_keys(own, seed, mesh, 1)


def stepper(
    take: Take,
    scheme: NoHiding,
    model: Model,
    config: Optimizer,
    keys: Keys,
    private: Any,
    public: Any,
    length: int | None,
) -> Callable[[], None]:
    """A function that does one training step, with the state that the last one left."""
    optimizer = make_optimizer(config, 100, 1000)
    step = make_train_step(take, scheme, model, optimizer, make_mesh())
    state: Any = jax.jit(partial(init_state, model, optimizer))(jax.random.key(0))

    def one_step() -> None:
        nonlocal state
        state, _ = step(state, keys, private, public, length)
        jax.block_until_ready(state)

    return one_step


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", choices=SCHEMES, default="images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=40)
    arguments = parser.parse_args()
    prepare, network = {"images": (on_images, "ResNet-18"), "texts": (on_texts, "MiniLM size")}[
        arguments.data
    ]
    schemes = SCHEMES[arguments.data]
    runs = {name: prepare(scheme, arguments.batch_size) for name, scheme in schemes.items()}
    for works in runs.values():  # compiles
        for work in works:
            work()
    steps: dict[str, list[float]] = {name: [] for name in runs}
    batches: dict[str, list[float]] = {name: [] for name in runs}
    rng = np.random.default_rng(SEED)
    for _ in range(arguments.repetitions):
        for name in rng.permutation(list(runs)):
            one_step, one_batch = runs[name]
            steps[name].append(seconds(one_step))
            batches[name].append(seconds(one_batch))
    print(
        f"{network}, batch {arguments.batch_size}, {jax.devices()[0].device_kind}, "
        f"jax {jax.__version__}, {arguments.repetitions} repetitions, seed {SEED}"
    )
    print(
        f"{'':12} {'step ms':>9} {'to vanilla':>11} {'95 % interval':>15} {'hiding ms':>10}"
        f" {'of the step':>12}"
    )
    for name in runs:
        ratios = np.divide(steps[name], steps["vanilla"])
        resampled = np.median(rng.choice(ratios, (2_000, len(ratios))), axis=1)
        low, high = np.quantile(resampled, (0.025, 0.975))
        step, batch = np.median(steps[name]), np.median(batches[name])
        added = batch - np.median(batches["vanilla"])
        print(
            f"{name:12} {step * 1e3:>9.1f} {np.median(ratios):>11.3f}"
            f" {f'{low:.3f} to {high:.3f}':>15} {batch * 1e3:>10.2f}"
            f" {max(added, 0) / step:>12.2%}"
        )


if __name__ == "__main__":
    main()
