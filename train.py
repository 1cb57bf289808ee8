"""Train an encoder on hidden images or texts.

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
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax

from instahide_jax import image_task, text_task
from instahide_jax.arguments import parse_args
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.config import Experiment, ImageExperiment, TextExperiment, load_config
from instahide_jax.encoders import make_model, num_parameters
from instahide_jax.encoders.bert_folder import pretrained
from instahide_jax.errors import InputError, Stopped, run_main, stop_request
from instahide_jax.metrics import MetricWriter, progress_bar
from instahide_jax.optimizers import make_optimizer
from instahide_jax.parallel import FAST_COMPILE, check_batch_size, make_mesh, replicated
from instahide_jax.pictures import save_curves
from instahide_jax.run import Run, check_precision, open_run
from instahide_jax.task import Task
from instahide_jax.training import Keys, TrainState, check_finite, init_state, make_train_step


def main() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every folder it opens
    check_precision()
    experiment, workdir, secret_file = parse_command_line(sys.argv[1:])
    mesh = make_mesh()
    check_batch_size(experiment.batch_size, mesh)
    task = open_task(experiment)
    steps_per_epoch = task.num_examples // experiment.batch_size
    total_steps = experiment.epochs * steps_per_epoch

    head = experiment.head if isinstance(experiment, TextExperiment) else None
    model = make_model(experiment.encoder, task.shape, task.num_outputs, head)
    optimizer = make_optimizer(experiment.optimizer, steps_per_epoch, total_steps)
    train_step = make_train_step(task.make_take(mesh), task.scheme, model, optimizer, mesh)
    validate = task.make_validate(model)

    seed_key = jax.random.key(experiment.seed, impl="threefry2x32")  # whatever JAX's default is
    fresh = jax.eval_shape(partial(init_state, model, optimizer), seed_key)
    weights = pretrained(experiment.encoder)
    run = open_run(workdir, experiment, task.identities, secret_file)  # all is checked: write

    whole = replicated(mesh)
    keys = jax.device_put(Keys(run.secret, jax.random.fold_in(seed_key, 1)), whole)
    public = None if task.public is None else jax.device_put(task.public, whole)
    init = jax.jit(
        partial(init_state, model, optimizer), out_shardings=whole, compiler_options=FAST_COMPILE
    )
    checkpoints = Checkpoints(run.folder / "checkpoints")
    state = checkpoints.restore_newest(fresh, whole)
    if state is None:
        state = init(jax.random.fold_in(seed_key, 0))
        if weights is not None:
            params = {**state.params, "encoder": jax.device_put(weights, whole)}
            state = state.replace(params=params)
    del weights
    start = int(state.step)
    announce(experiment, task, run, state, start, total_steps)

    stop, done, losses = stop_request(), start, dict[int, jax.Array]()
    since, work = time.perf_counter(), 0
    with (
        closing(checkpoints),
        closing(MetricWriter(run.folder, start)) as writer,
        closing(progress_bar(total_steps, start, "train")) as bar,
    ):
        for feed in task.feeds(keys, mesh, start, total_steps):
            if feed.step == 0:
                task.save_samples(run.folder, mesh, keys, feed)
            state, metrics = train_step(state, keys, feed.private, public, feed.length)
            done, work = feed.step + 1, work + feed.work
            bar.update()
            losses[done] = metrics["loss"]
            to_log, to_save = (
                done % every == 0 or done == total_steps
                for every in (experiment.log_every, experiment.save_every)
            )
            stopping = stop.is_set()
            if to_log or to_save or stopping:
                check_finite(losses, state, steps_per_epoch)
                losses.clear()
            if to_log:
                values = {n: float(metrics[n]) for n in ("loss", "accuracy") if n in metrics}
                rate = work / (time.perf_counter() - since)
                since, work = time.perf_counter(), 0
                logged: dict[str, Any] = {f"train_{name}": value for name, value in values.items()}
                writer.write(done, **logged, **{f"{task.unit}_per_s": rate})
                shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                bar.set_postfix_str(f"{shown}, {rate:,.0f} {task.unit}/s")
            if to_save:
                validation = validate(state, keys.secret)
                writer.write(done, **{f"validation_{n}": v for n, v in validation.values.items()})
                checkpoints.save(done, state, validation.score)
            if stopping:
                if not to_save:
                    checkpoints.save(done, state, None)
                break
    if done < total_steps:
        raise Stopped(
            f"stopped and saved at step {done} of {total_steps}; the same command goes on"
        )
    save_curves(run.folder / "curves.png", run.folder / "metrics.jsonl", str(run.folder))
    print(f"Done: {total_steps} steps. Score it on the test set: python eval.py {run.folder}")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parse_command_line(argv: list[str]) -> tuple[Experiment, Path, Path | None]:
    """The experiment, the run folder and the secret file that the arguments name."""
    parser = Parser(
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
    workdir = known.workdir or Path("runs") / f"{Path(path).stem}-{variant or 'default'}"
    return experiment, workdir, known.secret_file


def open_task(experiment: Experiment) -> Task:
    """The data of an experiment, loaded and checked."""
    if isinstance(experiment, ImageExperiment):
        task = image_task.open_task(experiment)
    elif isinstance(experiment, TextExperiment):
        task = text_task.open_task(experiment)
    else:
        raise InputError(
            f"the config gives {type(experiment).__name__}; give an ImageExperiment or a "
            "TextExperiment"
        )
    if task.num_examples < experiment.batch_size:
        raise InputError(
            f"batch_size is {experiment.batch_size}, more than the {task.num_examples} training "
            "examples; lower it"
        )
    return task


def announce(
    experiment: Experiment, task: Task, run: Run, state: TrainState, start: int, total: int
) -> None:
    """Say what is going to happen."""
    devices = jax.local_devices()
    print(
        f"{run.folder}: {task.num_examples:,} private examples, "
        f"{num_parameters(state.params):,} parameters, {type(experiment.scheme).__name__}, "
        f"{len(devices)} x {devices[0].device_kind}"
    )
    if run.secret.insecure:
        print("The key stems from an integer seed: this run protects nothing.")
    if start:
        print(f"Resuming at step {start} of {total}.")


if __name__ == "__main__":
    run_main(main)
