"""What hiding adds to a training step of ResNet-18 on 32x32x3 images.

    python benchmarks/train_step.py [--batch-size 32] [--repetitions 40]

Every repetition does one step of each experiment, in random order. Printed are the medians, the
median ratio of a step to the vanilla one of the same repetition with its 95 % bootstrap interval,
and the time of hiding alone, which a step on a noisy machine cannot resolve.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax import InstaHide, NoHiding, secret_key
from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import Mnist5k, PoolHeldOut
from instahide_jax.encoders import ResNet18, make_model
from instahide_jax.image_step import Private, make_hide, make_take, plan_pass
from instahide_jax.optimizers import make_optimizer
from instahide_jax.parallel import make_mesh
from instahide_jax.training import Keys, init_state, make_train_step

SCHEMES = {
    "vanilla": NoHiding(num_classes=10),
    "inside k=4": InstaHide.inside(4, num_classes=10),
    "cross k=6": InstaHide.cross(6, num_classes=10),
}
NUM_IMAGES = 10_000
SEED = 0


def prepare(scheme: NoHiding, batch_size: int) -> tuple[Callable[[], None], Callable[[], None]]:
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
    images = jnp.asarray(rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8))
    labels = jnp.asarray(rng.integers(0, 10, NUM_IMAGES))
    keys = Keys(secret_key(), jax.random.key(0))
    this_pass = jax.jit(partial(plan_pass, num_images=NUM_IMAGES, scheme=scheme))(keys, 0)
    private = Private(images, labels, this_pass)
    pool = images if scheme.num_public else None
    model = make_model(config.encoder, (32, 32, 3), 10)
    optimizer = make_optimizer(config.optimizer, 100, 1000)
    step = make_train_step(
        make_take(config, scheme, make_mesh()), scheme, model, optimizer, make_mesh()
    )
    hide = jax.jit(make_hide(config, scheme, make_mesh()))
    state: Any = jax.jit(partial(init_state, model, optimizer))(jax.random.key(0))
    at_start = jnp.zeros((), jnp.int32)

    def one_step() -> None:
        nonlocal state
        state, _ = step(state, keys, private, pool)
        jax.block_until_ready(state)

    def one_batch() -> None:
        jax.block_until_ready(hide(keys, at_start, private, pool))

    one_step()
    one_batch()
    return one_step, one_batch


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=40)
    arguments = parser.parse_args()
    runs = {name: prepare(scheme, arguments.batch_size) for name, scheme in SCHEMES.items()}
    steps: dict[str, list[float]] = {name: [] for name in runs}
    batches: dict[str, list[float]] = {name: [] for name in runs}
    rng = np.random.default_rng(SEED)
    for _ in range(arguments.repetitions):
        for name in rng.permutation(list(runs)):
            one_step, one_batch = runs[name]
            steps[name].append(seconds(one_step))
            batches[name].append(seconds(one_batch))
    print(
        f"ResNet-18, batch {arguments.batch_size}, {jax.devices()[0].device_kind}, "
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
