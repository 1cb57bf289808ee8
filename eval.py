"""Score a finished run on the test set.

    python eval.py runs/mnist5k-default

Of images: accuracy on plain test images, and of encrypted inference: each test image is hidden T
times with fresh coefficients, masks and partners, and the predictions are averaged. Of texts: the
metrics of the task without masks, and as the owner sees it, under masks of the client's pool,
averaged over T of them. Results are printed and written to eval.json in the run folder.
"""

import logging
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from instahide_jax import text_task
from instahide_jax.arguments import parse_args
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.config import Experiment, ImageExperiment, TextExperiment
from instahide_jax.data.embedded import Arrays
from instahide_jax.distributed import start_backend
from instahide_jax.encoders import Bert, Model, Variables, make_model
from instahide_jax.encoders.bert_folder import check_new_folder, save_folder
from instahide_jax.errors import InputError, run_main
from instahide_jax.image_data import open_images
from instahide_jax.image_evaluation import (
    EncryptedScore,
    encrypted_accuracies,
    evaluate_split,
    make_evaluate,
)
from instahide_jax.instahide import InstaHide
from instahide_jax.optimizers import make_optimizer
from instahide_jax.parallel import replicated
from instahide_jax.placement import local_mesh
from instahide_jax.run import (
    check_data,
    check_precision,
    read_experiment,
    read_statistics,
    run_secret,
    secret_files,
    write_json,
)
from instahide_jax.secret import insecure_secret, secret_key
from instahide_jax.text_evaluation import has_masks, score_views
from instahide_jax.training import TrainState, init_state


@dataclass(frozen=True)
class Arguments:
    """Score a finished run on the test set.

    Attributes:
      run: the run folder.
      encryptions: of images: numbers T of encryptions to average over; none skips encrypted
        inference.
      min_own_coefficient: of images: floor of the test image's own coefficient in its encryptions.
      masks: of texts: numbers T of masks to average over; none skips the owner's view.
      checkpoint: the one of the best validation score, or the newest.
      insecure_seed: of images: makes the key of encrypted inference repeatable, and guessable.
      secret_file: of texts: the run's secret, from which the masks come; by default beside the run.
      save_folder: of texts: write the trained encoder to this new folder, in Hugging Face's layout.
        Where the run had no tokenizer from a folder, its tokenizer.json lists words of the private
        texts.
      client: of a run of several clients: whose data and secret to use; the test set of a
        simulation (client_data "parts") is everybody's.
      imports: modules to import first, which define classes that the run's configuration uses.
    """

    run: Annotated[Path, tyro.conf.Positional]
    encryptions: tuple[int, ...] = (1, 5, 10, 20)
    min_own_coefficient: float = 0.0
    masks: tuple[int, ...] = (1, 5, 20)
    checkpoint: Literal["best", "newest"] = "newest"
    insecure_seed: int | None = None
    secret_file: Path | None = None
    save_folder: Path | None = None
    client: int = 0
    imports: tuple[str, ...] = ()


def main() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every folder it opens
    check_precision()
    arguments = parse_args(Arguments, sys.argv[1:], prog="eval.py")
    start_backend()
    for module in arguments.imports:
        if not all(part.isidentifier() for part in module.split(".")):
            raise InputError(
                f"--imports is {module!r}, no name of a module; give names such as package.module"
            )
        try:
            import_module(module)
        except ImportError as error:
            raise InputError(
                f"--imports {module}: {error}; install it, or set PYTHONPATH to its folder"
            ) from error
        except (Exception, SystemExit) as error:  # the module is the user's
            raise InputError(
                f"--imports {module}: {type(error).__name__}: {error}; correct the module"
            ) from error
    experiment = read_experiment(arguments.run)
    if not 0 <= arguments.client < experiment.clients:
        raise InputError(
            f"--client is {arguments.client}; the run has clients 0 to {experiment.clients - 1}"
        )
    if isinstance(experiment, TextExperiment):
        score_texts(arguments, experiment)
    elif isinstance(experiment, ImageExperiment):
        score_images(arguments, experiment)
    else:
        raise InputError(f"{arguments.run} holds a {type(experiment).__name__}; train anew")


def restore(arguments: Arguments, experiment: Experiment, model: Model) -> TrainState:
    """The state of the chosen checkpoint."""
    # Shapes of the optimizer's state do not depend on the number of steps.
    optimizer = make_optimizer(experiment.optimizer, 1, 1)
    abstract = jax.eval_shape(partial(init_state, model, optimizer), jax.random.key(0))
    checkpoints = Checkpoints(arguments.run / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    newest = arguments.checkpoint == "newest" and steps
    step = max(steps) if newest else checkpoints.best_step()
    try:
        return checkpoints.restore(abstract, step, replicated(local_mesh()))
    except InputError as error:
        raise InputError(
            f"{error}; start the training again, which goes on from the one before it"
        ) from error


def score_images(arguments: Arguments, experiment: ImageExperiment) -> None:
    """Accuracy on plain images and of encrypted inference."""
    refuse(arguments, ("masks", "secret_file", "save_folder"), "a run on images")
    if not isinstance(experiment.scheme, InstaHide):
        without = "a run that hides nothing"
        refuse(arguments, ("encryptions", "min_own_coefficient", "insecure_seed"), without)
    client = arguments.client
    dataset, pool, identities = open_images(experiment, [client])[client]
    check_data(arguments.run, identities, client)
    in_memory = isinstance(dataset.train, Arrays) and isinstance(dataset.test, Arrays)
    if isinstance(experiment.scheme, InstaHide) and arguments.encryptions:
        if not in_memory:
            raise InputError(
                "encrypted inference needs data in memory; pass --encryptions without a number"
            )
        check_counts("encryptions", arguments.encryptions)
    num_classes = dataset.test.num_classes
    scheme = experiment.scheme.for_data(num_classes, *read_statistics(arguments.run))
    asked = scheme
    if isinstance(scheme, InstaHide):
        asked = replace(scheme, min_own_coefficient=arguments.min_own_coefficient)
    shape = experiment.augment.output_shape(dataset.image_shape)
    model = make_model(experiment.encoder, shape, num_classes)
    state = restore(arguments, experiment, model)
    evaluate = make_evaluate(experiment, scheme, model)
    variables = Variables(state.params, state.stats)
    loss, right, count = evaluate_split(evaluate, variables, dataset.test, experiment)
    accuracy = right / count
    encrypted: dict[int, EncryptedScore] = {}
    if isinstance(asked, InstaHide) and arguments.encryptions:
        assert isinstance(dataset.train, Arrays)
        assert isinstance(dataset.test, Arrays)
        seed = arguments.insecure_seed
        encrypted = encrypted_accuracies(
            experiment,
            asked,
            model,
            variables,
            secret_key() if seed is None else insecure_secret(seed),
            dataset.test,
            dataset.train,
            pool,
            arguments.encryptions,
        )
    announce(arguments, state, f"{int(count):,} test images")
    error = (accuracy * (1 - accuracy) / count) ** 0.5
    print(f"  plain images                accuracy {accuracy:.4f} +- {error:.4f}")
    for encryptions, score in encrypted.items():
        print(
            f"  encrypted, mean over T={encryptions:<3d}  accuracy {score.network:.4f}   "
            f"oracle {score.oracle:.4f}"
        )
    if encrypted:
        print(
            "  The oracle knows what is mixed: where it fails, the method fails, not the network."
        )
    values = {
        "test_images": int(count),
        "plain_accuracy": accuracy,
        "plain_loss": loss / count,
        "encrypted_accuracy": {str(count): score.network for count, score in encrypted.items()},
        "oracle_accuracy": {str(count): score.oracle for count, score in encrypted.items()},
        "min_own_coefficient": arguments.min_own_coefficient,
        "key": "fresh" if arguments.insecure_seed is None else arguments.insecure_seed,
    }
    write_values(arguments, state, values)


def score_texts(arguments: Arguments, experiment: TextExperiment) -> None:
    """The metrics of the task without masks, and under the masks of the owner's pool."""
    refuse(arguments, ("encryptions", "min_own_coefficient", "insecure_seed"), "a run on texts")
    if not has_masks(experiment.scheme):
        refuse(arguments, ("masks", "secret_file"), "a run without masks")
    check_counts("masks", arguments.masks)
    data, encoder = experiment.data, experiment.encoder
    assert isinstance(encoder, Bert)
    tokenizer = data.tokenizer or encoder.folder
    if arguments.save_folder is not None:
        check_new_folder(arguments.save_folder, tokenizer)
    client = arguments.client
    texts_of, weights = text_task.open_texts(experiment, [client])
    dataset = texts_of[client]
    identities = text_task.identities(dataset, weights)
    check_data(arguments.run, identities, client)
    scheme = experiment.scheme.for_data(dataset.train.num_classes)
    num_outputs = dataset.train.num_classes or 1
    model = make_model(encoder, (data.length,), num_outputs, experiment.head)
    state = restore(arguments, experiment, model)
    counts = arguments.masks if has_masks(scheme) else ()
    secret = None
    if counts:
        only = range(client, client + 1)
        secret_file = secret_files(arguments.run, arguments.secret_file, only, experiment.clients)[
            client
        ]
        if experiment.insecure_seed is None and not secret_file.exists():
            raise InputError(
                f"secret file {secret_file} is missing; the masks come from it: name it with "
                "--secret-file, or pass --masks without a number to score without masks"
            )
        secret = run_secret(arguments.run, experiment, identities, secret_file, client)
    variables = Variables(state.params, state.stats)
    values: dict[str, Any] = {}
    for name, texts in dataset.tests.items():
        views = score_views(
            scheme, model, variables, texts, data.lengths, secret, data.metrics, counts
        )
        announce(arguments, state, f"{name}: {len(texts.labels):,} texts")
        for count, scores in views.items():
            view = f"mean over T={count} masks" if count else "without masks"
            shown = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
            print(f"  {view:22} {shown}")
        values[name] = {"texts": len(texts.labels)} | {
            str(count): scores for count, scores in views.items()
        }
    write_values(arguments, state, {"scores_by_number_of_masks": values})
    if arguments.save_folder is not None:
        trained = state.params["encoder"]
        vocabulary = tokenizer or dataset.words
        save_folder(arguments.save_folder, encoder, trained, tokenizer=vocabulary)
        print(f"Wrote the encoder to {arguments.save_folder}.")
        if tokenizer is None:
            words = arguments.save_folder / "tokenizer.json"
            print(f"Do not publish {words}: it lists words of the private texts (mode 0600).")


def refuse(arguments: Arguments, names: tuple[str, ...], what: str) -> None:
    """Refuse options that would be ignored."""
    for name in names:
        if getattr(arguments, name) != getattr(Arguments, name):
            raise InputError(f"--{name.replace('_', '-')} says nothing about {what}; leave it out")


def check_counts(name: str, counts: tuple[int, ...]) -> None:
    """Refuse to average over less than one."""
    if min(counts, default=1) < 1:
        raise InputError(f"number of {name} is {min(counts)}; it must be at least 1")


def announce(arguments: Arguments, state: TrainState, what: str) -> None:
    """Say what is scored."""
    print(f"{arguments.run}, {arguments.checkpoint} checkpoint (step {int(state.step)}), {what}")


def write_values(arguments: Arguments, state: TrainState, values: dict[str, Any]) -> None:
    """Write eval.json."""
    scored = {"checkpoint": arguments.checkpoint, "step": int(state.step)}
    write_json(arguments.run / "eval.json", scored | values)


if __name__ == "__main__":
    run_main(main)
