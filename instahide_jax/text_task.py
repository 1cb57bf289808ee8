"""Training on texts: their data, what feeds the train step, and a look at the first batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instahide_jax.config import TextExperiment
from instahide_jax.data.text_sources import TextDataset, TokenSet
from instahide_jax.data.texts import Texts
from instahide_jax.encoders.base import Model, Variables
from instahide_jax.encoders.bert import Bert
from instahide_jax.encoders.tensor_files import weights_identity
from instahide_jax.errors import InputError
from instahide_jax.folders import local_folder
from instahide_jax.hiding import NoHiding
from instahide_jax.parallel import replicated
from instahide_jax.secret import SecretKey
from instahide_jax.task import Feed, Task, Validation
from instahide_jax.text_evaluation import has_masks, make_outputs, outputs_of_set, score_set
from instahide_jax.text_step import PrivateTexts, buckets_of, make_take, plan_pass
from instahide_jax.texthide import TextHide
from instahide_jax.training import Keys, TrainState

_SHOWN = 4  # mixtures in samples.txt


def open_task(experiment: TextExperiment) -> Task:
    """Load the data of an experiment on texts.

    Raises:
      InputError: if data, vocabulary or weights are not there, or do not fit the experiment.
    """
    dataset, identities = open_data(experiment)
    scheme = experiment.scheme.for_data(dataset.train.num_classes)
    return Task(
        scheme=scheme,
        shape=(experiment.data.length,),
        num_outputs=dataset.train.num_classes or 1,
        num_examples=len(dataset.train.labels),
        unit="tokens",
        identities=identities,
        public=None if dataset.public is None else dataset.public.tokens,
        make_take=make_take,
        feeds=partial(feeds, experiment, dataset),
        make_validate=partial(_make_validate, experiment, scheme, dataset),
        save_samples=partial(_save_samples, scheme, dataset),
    )


def open_data(experiment: TextExperiment) -> tuple[TextDataset, list[str]]:
    """The data, tokenized, and what identifies them and the weights to start from."""
    encoder = experiment.encoder
    assert isinstance(encoder, Bert)
    wanted = experiment.public_text if experiment.scheme.num_public else None
    dataset = experiment.data.load(encoder, wanted)
    public = dataset.public
    if public is not None and len(public.labels) < experiment.batch_size:
        raise InputError(
            f"there are {len(public.labels)} public texts; every step takes "
            f"batch_size={experiment.batch_size} of them: give more, or lower batch_size"
        )
    weights = "" if encoder.folder is None else weights_identity(local_folder(encoder.folder))
    return dataset, [dataset.train.identity, "" if public is None else public.identity, weights]


def feeds(
    experiment: TextExperiment,
    dataset: TextDataset,
    keys: Keys,
    mesh: Mesh,
    start: int,
    total: int,
) -> Iterator[Feed]:
    """What the train step is given at every step from `start` on.

    Tokens are put on the devices once, the order once per pass.
    """
    whole, lengths = replicated(mesh), experiment.data.lengths
    train, public = dataset.train, dataset.public
    tokens, labels = jax.device_put((train.tokens, train.labels), whole)
    buckets = buckets_of(train.tokens["mask"], lengths)
    public_buckets = None if public is None else buckets_of(public.tokens["mask"], lengths)
    seed = jax.device_put(keys.seed, jax.local_devices()[0])
    steps_per_epoch = len(labels) // experiment.batch_size
    sizes = train.tokens["mask"].sum(axis=1)
    private, planned = None, -1
    for step in range(start, total):
        epoch, turn = divmod(step, steps_per_epoch)
        if private is None or epoch != planned:
            plan = plan_pass(seed, epoch, experiment.batch_size, buckets, public_buckets)
            order = jax.device_put((plan.order, plan.public), whole)
            private, planned = PrivateTexts(tokens, labels, *order), epoch
        work = int(sizes[plan.order[turn]].sum())
        yield Feed(step, private, lengths[plan.buckets[turn]], work)


def _make_validate(
    experiment: TextExperiment, scheme: NoHiding, dataset: TextDataset, model: Model
) -> Callable[[TrainState, SecretKey], Validation]:
    """Validation as the owner sees it: under a mask where there are masks."""
    outputs, draws = make_outputs(scheme, model), int(has_masks(scheme))
    data, texts = experiment.data, dataset.validation
    # Refuses metrics that are unknown or do not suit the labels before training starts.
    unread = np.zeros((1, len(texts.labels), texts.num_classes or 1), np.float32)
    score_set(unread, texts.labels, data.metrics, texts.num_classes)

    def validate(state: TrainState, secret: SecretKey) -> Validation:
        variables = Variables(state.params, state.stats)
        made = outputs_of_set(outputs, variables, texts, data.lengths, secret, draws)
        values = score_set(made, texts.labels, data.metrics, texts.num_classes)
        return Validation(values[data.metrics[0]], values)

    return validate


def _save_samples(
    scheme: NoHiding, dataset: TextDataset, folder: Path, mesh: Mesh, keys: Keys, feed: Feed
) -> None:
    """samples.txt: which sentences the first mixtures hold, with which weights."""
    if not isinstance(scheme, TextHide):
        return
    del mesh
    private: PrivateTexts = feed.private
    rows = np.asarray(private.order[0])
    others = np.zeros(0, np.int32) if private.public is None else np.asarray(private.public[0])
    # Mixing unit vectors shows the weights of the mixtures; masks would only flip their signs.
    units = jnp.eye(len(rows) + len(others))
    weights, labels = replace(scheme, num_masks=0).hide_features(
        keys.secret,
        jnp.zeros((), jnp.int32),
        units[: len(rows)],
        jnp.asarray(dataset.train.labels[rows]),
        units[len(rows) :] if len(others) else None,
    )
    lines = ["Shows private texts: for their owner only."]
    masked = "" if scheme.num_masks == 0 else ", times a secret mask"
    lines.append(f"What the head sees is the weighted sum of the features of these texts{masked}.")
    for i in range(min(_SHOWN, len(rows))):
        lines += ["", f"{i + 1}. label {_label_text(np.asarray(labels[i]), dataset.train.texts)}"]
        for j in np.argsort(-np.asarray(weights[i]))[: scheme.k]:
            is_own = j < len(rows)
            known = dataset.train if is_own or dataset.public is None else dataset.public
            number = rows[j] if is_own else others[j - len(rows)]
            kind = "private" if is_own else "public"
            lines.append(f"   {weights[i, j]:.3f} {kind}: {_text(known, number)}")
    (folder / "samples.txt").write_text("\n".join(lines) + "\n")


def _label_text(label: np.ndarray, texts: Texts) -> str:
    if not texts.class_names:
        return f"{float(label):.3f}"
    pairs = zip(texts.class_names, label, strict=True)
    return ", ".join(f"{name} {share:.3f}" for name, share in pairs if share > 0)


def _text(known: TokenSet, number: int) -> str:
    second = "" if known.texts.second is None else f" | {known.texts.second[number]}"
    return f"{known.texts.first[number]}{second}"
