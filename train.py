"""Train an encoder on hidden images or texts.

    python train.py configs/mnist5k.py
    python train.py configs/cifar10.py:cross --workdir runs/a --scheme.k 4 --seed 3

The first argument names a config file and, after a colon, one of its variants. Every field of the
configuration can be overridden (`--help` after the config lists them). A run that was killed
continues where it was when started again with the same arguments, and ends with the same parameters
(on CPUs bit for bit).
"""

import argparse
import logging
import os
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax

from instahide_jax import image_task, text_task
from instahide_jax.arguments import parse_args
from instahide_jax.boundary import within_boundary
from instahide_jax.chance import LearningCheck
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.config import Experiment, ImageExperiment, TextExperiment, load_config
from instahide_jax.distributed import (
    ending_at_once,
    is_first,
    join,
    start_backend,
    stopping,
    together,
    watch_for_stop,
)
from instahide_jax.encoders import make_model, num_parameters
from instahide_jax.encoders.bert_folder import pretrained
from instahide_jax.errors import InputError, Stopped, run_main
from instahide_jax.folders import user_path
from instahide_jax.metrics import MetricWriter, NoWriter, progress_bar
from instahide_jax.optimizers import make_optimizer, make_schedule
from instahide_jax.parallel import (
    FAST_COMPILE,
    check_batch_size,
    check_device_map,
    make_mesh,
    process_clients,
)
from instahide_jax.pictures import save_curves
from instahide_jax.placement import put_like, put_own, state_sharding
from instahide_jax.run import Run, Statistics, check_precision, layout, open_run, secret_files
from instahide_jax.task import Task
from instahide_jax.training import (
    TrainState,
    check_finite,
    init_state,
    make_keys,
    make_train_step,
    put_keys,
)


def main() -> None:
    begin = time.perf_counter()
    for name in ("absl", "asyncio"):  # Orbax logs every folder it opens, and what it raises anyway
        logging.getLogger(name).setLevel(logging.CRITICAL)
    check_precision()
    experiment, options = parse_command_line(sys.argv[1:])
    join(options.coordinator, options.num_processes, options.process_id, options.join_timeout)
    start_backend()
    with ending_at_once():
        train(experiment, options, begin)


def train(experiment: Experiment, options: argparse.Namespace, begin: float) -> None:
    """The whole experiment, in this process and, if there are others, in step with them."""
    keep_programs(experiment.execution.compilation_cache)
    clients, size = experiment.clients, experiment.batch_size
    mesh = make_mesh(clients)
    check_batch_size(size, mesh, clients, experiment.partner_group)
    held = process_clients(mesh, clients)
    task = open_task(experiment, held)
    total_steps = experiment.epochs * task.steps_per_epoch

    head = experiment.head if isinstance(experiment, TextExperiment) else None
    model = make_model(experiment.encoder, task.shape, task.num_outputs, head)
    optimizer = make_optimizer(experiment.optimizer, task.steps_per_epoch, total_steps)
    learning_rate = make_schedule(experiment.optimizer, task.steps_per_epoch, total_steps)
    seed_key = jax.random.key(experiment.seed, impl="threefry2x32")  # whatever JAX's default is
    fresh = jax.eval_shape(partial(init_state, model, optimizer), seed_key)
    sharding = state_sharding(fresh, mesh, experiment.execution.shard_state)
    train_step = make_train_step(
        task.make_take(mesh),
        task.scheme,
        model,
        optimizer,
        mesh,
        group=experiment.partner_group,
        clients=clients,
        sharding=sharding,
    )
    if clients > 1:
        train_step = within_boundary(train_step, mesh)
    validate = task.make_validate(model, mesh)
    weights = together(lambda: pretrained(experiment.encoder))
    files = together(lambda: secret_files(options.workdir, options.secret_file, held, clients))
    statistics = Statistics(task.scheme.mean, task.scheme.std)
    # All is checked; from here on files are written.
    run = open_run(options.workdir, experiment, task.identities, files, statistics)

    run_seed = jax.random.fold_in(seed_key, 1)
    own_keys = make_keys(run.secrets, run_seed)
    keys = put_keys(own_keys, run_seed, mesh, clients)
    public = put_own(task.public, mesh, clients) if task.public else None
    checkpoints = Checkpoints(run.folder / "checkpoints")
    state = checkpoints.restore_newest(fresh, sharding)
    if state is None:
        state = first_state(partial(init_state, model, optimizer), seed_key, weights, sharding)
    del weights
    start = int(state.step)
    announce(experiment, task, run, state, start, total_steps)

    # They show private data, and with clients apart not all who read the folder may see it.
    samples = clients == 1 or experiment.client_data == "parts"
    request, done, losses = watch_for_stop(), start, dict[int, jax.Array]()
    since, work = time.perf_counter(), 0
    warmup = experiment.optimizer.schedule.warmup_epochs
    check = LearningCheck(start, total_steps, task.steps_per_epoch, warmup)
    with (
        closing(checkpoints),
        closing(MetricWriter(run.folder, start) if is_first() else NoWriter()) as writer,
        closing(
            progress_bar(total_steps, "train", " steps", initial=start, shown=is_first())
        ) as bar,
        ending_at_once(),
    ):
        for feed in task.feeds(own_keys, mesh, start, total_steps):
            if feed.step == 0 and samples:
                task.save_samples(run.folder, mesh, keys, own_keys, public, feed)
            state, metrics = train_step(state, keys, feed.private, public, feed.length)
            done, work = feed.step + 1, work + feed.work
            bar.update()
            losses[done] = metrics["loss"]
            warning = check.add(done, metrics["loss"], metrics["targets"])
            if warning is not None and is_first():
                bar.write(f"Warning: {warning}.", file=sys.stderr)
            if done == start + 1:
                jax.block_until_ready(metrics)
                if is_first():
                    bar.write(
                        f"First step done {time.perf_counter() - begin:.1f} s after the start."
                    )
            to_log, to_save = (
                done % every == 0 or done == total_steps
                for every in (experiment.log_every, experiment.save_every)
            )
            stop = stopping(request, done)
            if to_log or to_save or stop:
                check_finite(losses, state, task.steps_per_epoch)
                losses.clear()
            if to_log:
                values = {n: float(metrics[n]) for n in ("loss", "accuracy") if n in metrics}
                rate = work / (time.perf_counter() - since)
                since, work = time.perf_counter(), 0
                logged: dict[str, Any] = {f"train_{name}": value for name, value in values.items()}
                logged["gradient_norm"] = float(metrics["gradient_norm"])
                updates = (done - 1) // experiment.optimizer.accumulate
                logged["learning_rate"] = float(learning_rate(updates))
                writer.write(done, **logged, **{f"{task.unit}_per_s": rate})
                shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                bar.set_postfix_str(f"{shown}, {rate:,.0f} {task.unit}/s", refresh=False)
            if to_save:
                validation = validate(state, own_keys)
                writer.write(done, **{f"validation_{n}": v for n, v in validation.values.items()})
                checkpoints.save(done, state, validation.score)
            if stop:
                if not to_save:
                    checkpoints.save(done, state, None)
                break
    if done < total_steps:
        raise Stopped(
            f"stopped and saved at step {done} of {total_steps}; the same command goes on"
        )
    if is_first():
        save_curves(run.folder / "curves.png", run.folder / "metrics.jsonl", str(run.folder))
        print(f"Done: {total_steps} steps. Score it on the test set: python eval.py {run.folder}")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parse_command_line(argv: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """The experiment; and run folder, secret file and place in a job that the arguments name."""
    parser = Parser(
        prog="train.py",
        usage="train.py CONFIG[:VARIANT] [--workdir DIR] [--secret-file FILE] [overrides]\n"
        "       [--coordinator auto | --coordinator HOST:PORT --num-processes N --process-id I]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("config", nargs="?")
    parser.add_argument("--workdir")
    parser.add_argument("--secret-file")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--join-timeout", type=int, default=300)
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        sys.exit(0 if argv else 2)
    known, overrides = parser.parse_known_args(argv)
    if known.config is None:
        raise InputError("no config is given; for example: python train.py configs/mnist5k.py")
    before = argv[: argv.index(known.config)]
    option = next((o for o in overrides if o in before and "=" not in o), None)
    if option is not None and not Path(known.config.partition(":")[0]).is_file():
        raise InputError(
            f"{option} stands before {known.config}, which is no config; the config comes first: "
            f"train.py CONFIG[:VARIANT] {option} ..."
        )
    default = load_config(known.config)
    experiment = parse_args(type(default), overrides, default=default, prog="train.py CONFIG")
    path, _, variant = known.config.partition(":")
    if known.workdir is None:
        known.workdir = f"runs/{Path(path).stem}-{variant or 'default'}"
    known.workdir = user_path(known.workdir, "--workdir")
    if known.secret_file is not None:
        known.secret_file = user_path(known.secret_file, "--secret-file")
    return experiment, known


def keep_programs(folder: str | None) -> None:
    """Keep compiled programs in a folder for the next start; None: do as the environment says."""
    if folder is None:
        return
    if "://" not in folder:  # of other addresses JAX takes care
        path = user_path(folder, "execution.compilation_cache").absolute()
        folder = str(path)
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(
                f"execution.compilation_cache is {folder!r}, but {there} is no folder that can be "
                "written; name another"
            )
    jax.config.update("jax_compilation_cache_dir", folder)


def open_task(experiment: Experiment, held: range) -> Task:
    """The data of the clients of this process, loaded and checked."""
    if experiment.client_data == "own" and len(held) > 1:
        raise InputError(
            f"client_data is 'own', but clients {held.start} to {held.stop - 1} are in one process "
            "and would load the same data; start a process for each client, or use 'parts'"
        )
    if isinstance(experiment, ImageExperiment):
        check_device_map(experiment.device_map, experiment.clients)
        task = image_task.open_task(experiment, held)
    elif isinstance(experiment, TextExperiment):
        task = text_task.open_task(experiment, held)
    else:
        raise InputError(
            f"the config gives {type(experiment).__name__}; give an ImageExperiment or a "
            "TextExperiment"
        )
    if task.steps_per_epoch == 0:
        size, clients = experiment.batch_size, experiment.clients
        if clients > 1:
            raise InputError(
                f"batch_size is {size}, {size // clients} for each of {clients} clients, one of "
                f"whom has fewer of the {task.num_examples} training examples; lower it"
            )
        raise InputError(
            f"batch_size is {size}, more than the {task.num_examples} training examples; lower it"
        )
    return task


def first_state(init: Any, seed_key: jax.Array, weights: Any, sharding: Any) -> TrainState:
    """The state before the first step, with pretrained weights where there are some."""
    init = jax.jit(init, out_shardings=sharding, compiler_options=FAST_COMPILE)
    state = init(jax.random.fold_in(seed_key, 0))
    if weights is not None:
        placed = put_like(weights, sharding.params["encoder"])
        state = state.replace(params={**state.params, "encoder": placed})
    return state


def announce(
    experiment: Experiment,
    task: Task,
    run: Run,
    state: TrainState,
    start: int,
    total: int,
) -> None:
    """Say what is going to happen."""
    if not is_first():
        return
    owners = f" of {experiment.clients} clients" if experiment.clients > 1 else ""
    print(
        f"{run.folder}: {task.num_examples:,} private examples{owners}, "
        f"{num_parameters(state.params):,} parameters, {type(experiment.scheme).__name__}, "
        f"{layout()}"
    )
    if experiment.insecure_seed is not None:
        print("The key stems from an integer seed: this run protects nothing.")
    if start:
        print(f"Resuming at step {start} of {total}.")
        if run.began_on != layout():
            print(
                f"The run began on {run.began_on}: parameters will agree with those of an "
                "uninterrupted run to about 1e-5, not in every bit."
            )


if __name__ == "__main__":
    run_main(main)
