"""Score a finished run on the test set.

    python eval.py runs/mnist5k-default

Reports accuracy on plain test images, and of encrypted inference: each test image is hidden T times
with fresh coefficients, masks and partners, and the predictions are averaged. Results are printed
and written to eval.json in the run folder.
"""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from instahide_jax.arguments import parse_args
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.data.embedded import Arrays
from instahide_jax.encoders import Variables, make_model
from instahide_jax.errors import InputError, run_main
from instahide_jax.evaluation import Scores, encrypted_accuracies, evaluate_split
from instahide_jax.instahide import InstaHide
from instahide_jax.parallel import make_mesh, replicated
from instahide_jax.run import read_experiment, write_json
from instahide_jax.secret import insecure_secret, secret_key
from instahide_jax.training import init_state, make_evaluate, make_optimizer


@dataclass(frozen=True)
class Arguments:
    """Score a finished run on the test set.

    Attributes:
      run: the run folder.
      encryptions: numbers T of encryptions to average over; none skips encrypted inference.
      min_own_coefficient: floor of the test image's own coefficient in its encryptions.
      checkpoint: the one of the best validation accuracy, or the newest.
      insecure_seed: makes the key of encrypted inference repeatable, and guessable.
    """

    run: Annotated[Path, tyro.conf.Positional]
    encryptions: tuple[int, ...] = (1, 5, 10, 20)
    min_own_coefficient: float = 0.0
    checkpoint: Literal["best", "newest"] = "newest"
    insecure_seed: int | None = None


def main() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every folder it opens
    arguments = parse_args(Arguments, sys.argv[1:], prog="eval.py")
    experiment = read_experiment(arguments.run)
    dataset = experiment.data.load()
    shape = experiment.augment.output_shape(dataset.image_shape)
    pool = None
    if experiment.scheme.num_public and experiment.public_pool is not None:
        pool, dataset, _ = experiment.public_pool.load(dataset, shape)
    in_memory = isinstance(dataset.train, Arrays) and isinstance(dataset.test, Arrays)
    if isinstance(experiment.scheme, InstaHide) and arguments.encryptions and not in_memory:
        raise InputError(
            "encrypted inference needs data in memory; pass --encryptions without a number"
        )
    num_classes = dataset.test.num_classes
    scheme = experiment.scheme.for_data(num_classes, *dataset.statistics)
    model = make_model(experiment.encoder, shape, num_classes)
    # Shapes of the optimizer's state do not depend on the number of steps.
    optimizer = make_optimizer(experiment.optimizer, 1, 1)
    abstract = jax.eval_shape(lambda key: init_state(model, optimizer, key), jax.random.key(0))
    checkpoints = Checkpoints(arguments.run / "checkpoints", read_only=True)
    step = checkpoints.best_step()
    if arguments.checkpoint == "newest":
        step = max(checkpoints.steps())
    state = checkpoints.restore(abstract, step, replicated(make_mesh()))

    plain = evaluate_split(
        make_evaluate(experiment, scheme, model), state, dataset.test, experiment
    )
    encrypted: dict[int, float] = {}
    if isinstance(scheme, InstaHide) and arguments.encryptions:
        assert isinstance(dataset.train, Arrays)
        assert isinstance(dataset.test, Arrays)
        seed = arguments.insecure_seed
        encrypted = encrypted_accuracies(
            experiment,
            replace(scheme, min_own_coefficient=arguments.min_own_coefficient),
            model,
            Variables(state.params, state.stats),
            secret_key() if seed is None else insecure_secret(seed),
            dataset.test,
            dataset.train,
            pool,
            arguments.encryptions,
        )
    report(arguments, step, plain, encrypted)


def report(arguments: Arguments, step: int, plain: Scores, encrypted: dict[int, float]) -> None:
    """Print the table and write eval.json."""
    error = (plain.accuracy * (1 - plain.accuracy) / plain.num_images) ** 0.5
    print(
        f"{arguments.run}, {arguments.checkpoint} checkpoint (step {step}), "
        f"{plain.num_images:,} test images"
    )
    print(f"  plain images                accuracy {plain.accuracy:.4f} +- {error:.4f}")
    for count, accuracy in encrypted.items():
        print(f"  encrypted, mean over T={count:<3d}  accuracy {accuracy:.4f}")
    values = {
        "checkpoint": arguments.checkpoint,
        "step": step,
        "test_images": plain.num_images,
        "plain_accuracy": plain.accuracy,
        "plain_loss": plain.loss,
        "encrypted_accuracy": {str(count): accuracy for count, accuracy in encrypted.items()},
        "min_own_coefficient": arguments.min_own_coefficient,
        "key": "fresh" if arguments.insecure_seed is None else arguments.insecure_seed,
    }
    write_json(arguments.run / "eval.json", values)


if __name__ == "__main__":
    run_main(main)
