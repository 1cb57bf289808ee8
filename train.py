"""Train an encoder on hidden images.

    python train.py configs/mnist5k.py
    python train.py configs/cifar10.py:cross --workdir runs/a --scheme.k 4 --seed 3

The first argument names a config file and, after a colon, one of its variants. Every field of the
configuration can be overridden (`--help` after the config lists them). A run that was killed
continues where it was when started again with the same arguments, and ends with the same parameters
bit for bit.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax.arguments import parse_args
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.config import Experiment, load_config
from instahide_jax.data.embedded import Arrays
from instahide_jax.data.sources import Dataset
from instahide_jax.data.streaming import prefetch_to_device, stream_batches
from instahide_jax.encoders import make_model, num_parameters
from instahide_jax.errors import InputError, run_main
from instahide_jax.evaluation import evaluate_split
from instahide_jax.hiding import NoHiding
from instahide_jax.metrics import MetricWriter, progress_bar
from instahide_jax.parallel import check_batch_size, make_mesh, replicated, sharded
from instahide_jax.pictures import save_curves, save_samples
from instahide_jax.run import Run, open_run
from instahide_jax.training import (
    Keys,
    Pass,
    Private,
    TrainState,
    init_state,
    make_evaluate,
    make_hide,
    make_optimizer,
    make_train_step,
    plan_pass,
)

# For what runs once: optimising it would take longer than running it.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def main() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every folder it opens
    experiment, workdir, secret_file = parse_command_line(sys.argv[1:])
    mesh = make_mesh()
    check_batch_size(experiment.batch_size, mesh)
    dataset, public_pool, identities = open_data(experiment)
    shape = experiment.augment.output_shape(dataset.image_shape)
    scheme = experiment.scheme.for_data(dataset.train.num_classes, *dataset.statistics)
    steps_per_epoch = num_images(dataset) // experiment.batch_size
    total_steps = experiment.epochs * steps_per_epoch

    model = make_model(experiment.encoder, shape, dataset.train.num_classes)
    optimizer = make_optimizer(experiment.optimizer, steps_per_epoch, total_steps)
    train_step = make_train_step(experiment, scheme, model, optimizer, mesh)
    evaluate = make_evaluate(experiment, scheme, model)

    seed_key = jax.random.key(experiment.seed)
    fresh = jax.eval_shape(partial(init_state, model, optimizer), seed_key)
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.uint8)
    label, valid = jax.ShapeDtypeStruct((1,), np.int32), jax.ShapeDtypeStruct((1,), bool)
    jax.eval_shape(evaluate, fresh.params, fresh.stats, image, label, valid)
    run = open_run(workdir, experiment, identities, secret_file)  # all is checked: start writing

    whole = replicated(mesh)
    keys = jax.device_put(Keys(run.secret, jax.random.fold_in(seed_key, 1)), whole)
    pool = None if public_pool is None else jax.device_put(public_pool, whole)
    init = jax.jit(
        partial(init_state, model, optimizer), out_shardings=whole, compiler_options=FAST_COMPILE
    )
    checkpoints = Checkpoints(run.folder / "checkpoints")
    state = checkpoints.restore_newest(fresh, whole)
    if state is None:
        state = init(jax.random.fold_in(seed_key, 0))
    start = int(state.step)
    announce(experiment, dataset, run, state, start, total_steps)

    writer = MetricWriter(run.folder, start)
    bar = progress_bar(total_steps, start, "train")
    since, pending = time.perf_counter(), 0
    for step, private in batches(experiment, scheme, dataset, keys, mesh, start, total_steps):
        if step == 0:
            save_first_batch(
                run.folder / "samples.png", experiment, scheme, mesh, keys, private, pool
            )
        state, metrics = train_step(state, keys, private, pool)
        done, pending = step + 1, pending + 1
        bar.update()
        if done % experiment.log_every == 0 or done == total_steps:
            loss, accuracy = float(metrics["loss"]), float(metrics["accuracy"])
            if not np.isfinite(loss):
                raise InputError(
                    f"the loss is {loss} at step {done}; checkpoints up to step "
                    f"{max(checkpoints.steps(), default=0)} are kept: lower the learning rate"
                )
            rate = pending * experiment.batch_size / (time.perf_counter() - since)
            since, pending = time.perf_counter(), 0
            writer.write(done, train_loss=loss, train_accuracy=accuracy, images_per_s=rate)
            bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.3f}, {rate:,.0f} images/s")
        if done % experiment.save_every == 0 or done == total_steps:
            scores = evaluate_split(evaluate, state, dataset.validation, experiment)
            writer.write(done, validation_loss=scores.loss, validation_accuracy=scores.accuracy)
            checkpoints.save(done, state, scores.accuracy)
    bar.close()
    writer.close()
    checkpoints.close()
    save_curves(run.folder / "curves.png", run.folder / "metrics.jsonl", str(run.folder))
    print(f"Done: {total_steps} steps. Score it on the test set: python eval.py {run.folder}")


def parse_command_line(argv: list[str]) -> tuple[Experiment, Path, Path | None]:
    """The experiment, the run folder and the secret file that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py CONFIG[:VARIANT] [--workdir DIR] [--secret-file FILE] [overrides]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("config", nargs="?")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--secret-file", type=Path)
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        sys.exit(0 if argv else 2)
    known, overrides = parser.parse_known_args(argv)
    if known.config is None:
        raise InputError("no config is given; for example: python train.py configs/mnist5k.py")
    default = load_config(known.config)
    experiment = parse_args(Experiment, overrides, default=default, prog="train.py CONFIG")
    path, _, variant = known.config.partition(":")
    workdir = known.workdir or Path("runs") / f"{Path(path).stem}-{variant or 'default'}"
    return experiment, workdir, known.secret_file


def open_data(experiment: Experiment) -> tuple[Dataset, np.ndarray | None, list[str]]:
    """The data, the public pool, and what identifies the two."""
    dataset = experiment.data.load()
    pool, identity = None, ""
    if experiment.scheme.num_public and experiment.public_pool is not None:
        shape = experiment.augment.output_shape(dataset.image_shape)
        pool, dataset, identity = experiment.public_pool.load(dataset, shape)
        if len(pool) < experiment.scheme.num_public:
            raise InputError(
                f"the public pool has {len(pool)} images; every mixture needs "
                f"{experiment.scheme.num_public} distinct ones"
            )
    if num_images(dataset) < experiment.batch_size:
        raise InputError(
            f"batch_size is {experiment.batch_size}, more than the {num_images(dataset)} training "
            "images; lower it"
        )
    streamed = not isinstance(dataset.train, Arrays)
    if streamed and experiment.partners == "dataset" and experiment.scheme.num_partners:
        raise InputError("partners 'dataset' needs data in memory; a stream needs 'batch'")
    return dataset, pool, [dataset.identity, identity]


def num_images(dataset: Dataset) -> int:
    """Private training images."""
    train = dataset.train
    return len(train.labels) if isinstance(train, Arrays) else train.num_examples


def batches(
    experiment: Experiment,
    scheme: NoHiding,
    dataset: Dataset,
    keys: Keys,
    mesh: jax.sharding.Mesh,
    start: int,
    total: int,
) -> Iterator[tuple[int, Private]]:
    """(step, private data on the devices) for every step from `start` on.

    Data in memory is put on the devices once, and a step only advances a counter; order and
    partners are drawn on the device at the start of every pass. Streamed batches are put there
    ahead of use.
    """
    train = dataset.train
    if not isinstance(train, Arrays):
        stream = stream_batches(
            train,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            start_step=start,
            resize=dataset.image_shape[0],
        )
        ahead = prefetch_to_device(stream, sharded(mesh))
        for step in range(start, total):
            batch = next(ahead)
            yield step, Private(batch["image"], batch["label"], None)
        return
    images, labels = jax.device_put((train.images, train.labels), replicated(mesh))
    plan = jax.jit(
        partial(plan_pass, num_images=len(labels), scheme=scheme), out_shardings=replicated(mesh)
    )
    steps_per_epoch = len(labels) // experiment.batch_size
    this_pass: Pass | None = None
    for step in range(start, total):
        if this_pass is None or step % steps_per_epoch == 0:
            epoch = np.uint32(step // steps_per_epoch)
            this_pass = plan(keys, jax.device_put(epoch, replicated(mesh)))
        yield step, Private(images, labels, this_pass)


def save_first_batch(
    path: Path,
    experiment: Experiment,
    scheme: NoHiding,
    mesh: jax.sharding.Mesh,
    keys: Keys,
    private: Private,
    pool: Any,
) -> None:
    """Picture of the first images: as they are, mixed, and as the encoder sees them."""
    schemes = {"original": NoHiding(scheme.num_classes, scheme.mean, scheme.std)}
    if scheme.num_partners or scheme.num_public:
        schemes |= {"mixture": replace(scheme, mask="none"), "encryption": scheme}  # type: ignore[call-arg]
    shown = 8

    def first(keys: Keys, private: Private, pool: Any) -> Any:
        step = jnp.zeros((), jnp.int32)
        made = {
            title: make_hide(experiment, s, mesh)(keys, step, private, pool)
            for title, s in schemes.items()
        }
        return {t: (b["image"][:shown], b["label"][:shown]) for t, b in made.items()}

    made = jax.device_get(jax.jit(first, compiler_options=FAST_COMPILE)(keys, private, pool))
    labels = []
    for row in made[list(schemes)[-1]][1]:
        heaviest = np.argsort(-row)[:4]
        labels.append("\n".join(f"class {c}: {row[c]:.2f}" for c in heaviest if row[c] > 0))
    columns = {title: np.asarray(made[title][0], np.float32) for title in schemes}
    save_samples(path, columns, labels, "shows private images: for their owner only")


def announce(
    experiment: Experiment,
    dataset: Dataset,
    run: Run,
    state: TrainState,
    start: int,
    total: int,
) -> None:
    """Say what is going to happen."""
    devices = jax.local_devices()
    print(
        f"{run.folder}: {num_images(dataset):,} private images, "
        f"{num_parameters(state.params):,} parameters, {type(experiment.scheme).__name__}, "
        f"{len(devices)} x {devices[0].device_kind}"
    )
    if run.secret.insecure:
        print("The key stems from an integer seed: this run protects nothing.")
    if start:
        print(f"Resuming at step {start} of {total}.")


if __name__ == "__main__":
    run_main(main)
