"""Training on texts: their data, what feeds the train step, and a look at the first batch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instahide_jax.config import TextExperiment
from instahide_jax.data.parts import text_part
from instahide_jax.data.text_sources import TextDataset, TokenSet
from instahide_jax.data.texts import Texts
from instahide_jax.distributed import is_first, merged, sum_over_processes, together
from instahide_jax.encoders.base import Model, Variables
from instahide_jax.encoders.bert import Bert
from instahide_jax.encoders.tensor_files import weights_identity
from instahide_jax.errors import InputError
from instahide_jax.files import private_file
from instahide_jax.folders import local_folder
from instahide_jax.hiding import NoHiding
from instahide_jax.parallel import process_share
from instahide_jax.placement import put_own, to_local
from instahide_jax.task import Feed, Task, Validation
from instahide_jax.text_evaluation import has_masks, make_outputs, outputs_of_set, score_set
from instahide_jax.text_step import (
    PrivateTexts,
    TextPass,
    Tokens,
    buckets_of,
    make_take,
    plan_pass,
)
from instahide_jax.texthide import TextHide
from instahide_jax.training import ClientKeys, Keys, TrainState

_SHOWN = 4  # mixtures in samples.txt


class Agreement(NamedTuple):
    """What holds for all clients.

    Attributes:
      counts: training texts of each.
      largest: training texts of the client with most of them.
      largest_public: public texts likewise; 0 without any.
      wide: whether token numbers need 32 bits anywhere.
    """

    counts: list[int]
    largest: int
    largest_public: int
    wide: bool


def open_task(experiment: TextExperiment, held: range) -> Task:
    """Load the data of the clients of this process.

    Raises:
      InputError: if data, vocabulary or weights are not there, or do not fit the experiment, here
        or in another process.
    """
    data, weights = together(lambda: open_texts(experiment, held))
    agreed = agree(data)
    own = next(iter(data.values()))
    scheme = experiment.scheme.for_data(own.train.num_classes)
    return Task(
        scheme=scheme,
        shape=(experiment.data.length,),
        num_outputs=own.train.num_classes or 1,
        num_examples=sum(agreed.counts),
        steps_per_epoch=min(agreed.counts) // (experiment.batch_size // experiment.clients),
        unit="tokens",
        identities={client: identities(each, weights) for client, each in data.items()},
        public=[
            _padded(each.public, agreed.largest_public, agreed.wide).tokens
            for each in data.values()
            if each.public is not None
        ],
        make_take=partial(make_take, clients=experiment.clients),
        feeds=partial(feeds, experiment, data, agreed),
        make_validate=partial(_make_validate, experiment, scheme, data),
        save_samples=partial(_save_samples, scheme, data),
    )


def open_texts(
    experiment: TextExperiment, held: Iterable[int]
) -> tuple[dict[int, TextDataset], str]:
    """The texts of some clients, tokenized, by their numbers; and what identifies the weights.

    Raises:
      InputError: as `open_task`.
    """
    encoder = experiment.encoder
    assert isinstance(encoder, Bert)
    wanted = experiment.public_text if experiment.scheme.num_public else None
    dataset = experiment.data.load(encoder, wanted)
    own_data = experiment.clients > 1 and experiment.client_data == "own"
    if own_data and dataset.words is not None:
        raise InputError(
            "every client would make a vocabulary of its own texts; set data.tokenizer to a folder "
            "with one for all"
        )
    size = experiment.batch_size // experiment.clients
    made = {}
    for client in held:
        own = text_part(dataset, client, 1 if own_data else experiment.clients)
        if own.public is not None and len(own.public.labels) < size:
            alone = experiment.clients == 1
            raise InputError(
                f"{'there are' if alone else f'client {client} has'} {len(own.public.labels)} "
                f"public texts; every step takes batch_size{'' if alone else '/clients'}={size} "
                "of them: give more, or lower batch_size"
            )
        made[client] = own
    weights = "" if encoder.folder is None else weights_identity(local_folder(encoder.folder))
    return made, weights


def identities(dataset: TextDataset, weights: str) -> list[str]:
    """Strings that change with a client's data or the weights to start from."""
    public = "" if dataset.public is None else dataset.public.identity
    return [dataset.train.identity, public, weights]


def agree(data: dict[int, TextDataset]) -> Agreement:
    """Tell the other processes about the texts of the clients here, and hear about theirs.

    Raises:
      InputError: if the clients' classes are not alike.
    """
    facts = merged(
        {
            client: {
                "texts": len(each.train.labels),
                "classes": list(each.train.texts.class_names or ()),
                "public": 0 if each.public is None else len(each.public.labels),
                "wide": any(
                    texts.tokens["ids"].dtype != np.uint16
                    for texts in (each.train, each.public)
                    if texts is not None
                ),
            }
            for client, each in data.items()
        }
    )
    for client, fact in facts.items():
        if fact["classes"] != facts[0]["classes"]:
            raise InputError(
                f"client {client} has classes {fact['classes']}, client 0 {facts[0]['classes']}; "
                "all clients need the same: set the class_names of tables (TableText)"
            )
    counts = [fact["texts"] for fact in facts.values()]
    public = max(fact["public"] for fact in facts.values())
    return Agreement(counts, max(counts), public, any(f["wide"] for f in facts.values()))


def _padded(texts: TokenSet, size: int, wide: bool) -> TokenSet:
    """With rows of zeros up to a size, which no order names."""
    more = size - len(texts.labels)
    ids = texts.tokens["ids"]
    tokens = texts.tokens | {"ids": ids.astype(np.int32) if wide else ids}
    if more:
        tokens = {name: np.pad(array, ((0, more), (0, 0))) for name, array in tokens.items()}
    return texts._replace(tokens=tokens, labels=np.pad(texts.labels, (0, more)))


def feeds(
    experiment: TextExperiment,
    data: dict[int, TextDataset],
    agreed: Agreement,
    own_keys: dict[int, ClientKeys],
    mesh: Mesh,
    start: int,
    total: int,
) -> Iterator[Feed]:
    """What the train step is given at every step from `start` on.

    Tokens are put on the devices once, the order once per pass. A step is as long as the longest
    text that any client has in it.
    """
    clients, lengths = experiment.clients, experiment.data.lengths
    size = experiment.batch_size // clients
    sets = [_padded(each.train, agreed.largest, agreed.wide) for each in data.values()]
    tokens, labels = put_own([(each.tokens, each.labels) for each in sets], mesh, clients)
    steps_per_epoch = min(agreed.counts) // size
    private, planned = None, -1
    for step in range(start, total):
        epoch, turn = divmod(step, steps_per_epoch)
        if private is None or epoch != planned:
            plans, facts = [], {}
            for client, each in data.items():
                plan = _plan_pass(each, own_keys[client].views, epoch, size, lengths)
                plan = jax.tree.map(lambda x: x[:steps_per_epoch], plan)
                work = each.train.tokens["mask"].sum(axis=1)[plan.order].sum(axis=1)
                facts[client] = {"buckets": plan.buckets.tolist(), "work": work.tolist()}
                plans.append((plan.order, plan.public))
            everyone = list(merged(facts).values())
            buckets = np.max([fact["buckets"] for fact in everyone], axis=0)
            work = np.sum([fact["work"] for fact in everyone], axis=0)
            private = PrivateTexts(tokens, labels, *put_own(plans, mesh, clients))
            planned = epoch
        yield Feed(step, private, lengths[buckets[turn]], int(work[turn]))


def _plan_pass(
    dataset: TextDataset, views: jax.Array, epoch: int, size: int, lengths: tuple[int, ...]
) -> TextPass:
    public = dataset.public
    return plan_pass(
        views,
        epoch,
        size,
        buckets_of(dataset.train.tokens["mask"], lengths),
        None if public is None else buckets_of(public.tokens["mask"], lengths),
    )


def _make_validate(
    experiment: TextExperiment,
    scheme: NoHiding,
    data: dict[int, TextDataset],
    model: Model,
    mesh: Mesh,
) -> Callable[[TrainState, dict[int, ClientKeys]], Validation]:
    """Validation as each owner sees it: under its masks where there are masks.

    Scores of several clients are averaged, each weighted by its number of texts.
    """
    outputs, draws = make_outputs(scheme, model), int(has_masks(scheme))
    settings = experiment.data
    for each in data.values():
        texts = each.validation
        # Refuses metrics that are unknown or do not suit the labels before training starts.
        unread = np.zeros((1, len(texts.labels), texts.num_classes or 1), np.float32)
        names = list(score_set(unread, texts.labels, settings.metrics, texts.num_classes))
    speaks = process_share(mesh, experiment.clients).which == 0  # of the processes of a client

    def validate(state: TrainState, own_keys: dict[int, ClientKeys]) -> Validation:
        local = to_local(Variables(state.params, state.stats), mesh)
        sums = np.zeros(len(names) + 1)
        for client, each in data.items():
            texts, secret = each.validation, own_keys[client].secret
            made = outputs_of_set(outputs, local, texts, settings.lengths, secret, draws)
            scores = score_set(made, texts.labels, settings.metrics, texts.num_classes)
            if speaks:
                weight = len(texts.labels)
                sums += weight * np.array([*(scores[name] for name in names), 1.0])
        *weighted, weight = sum_over_processes(sums)
        values = {name: float(v / weight) for name, v in zip(names, weighted, strict=True)}
        return Validation(values[settings.metrics[0]], values)

    return validate


def _save_samples(
    scheme: NoHiding,
    data: dict[int, TextDataset],
    folder: Path,
    mesh: Mesh,
    keys: Keys,
    own_keys: dict[int, ClientKeys],
    public: Tokens | None,
    feed: Feed,
) -> None:
    """samples.txt, of mode 0600: which sentences the first mixtures hold, with which weights.

    They are of the first client, in whose process the file is written.
    """
    del mesh, keys, public
    if not isinstance(scheme, TextHide) or not is_first():
        return
    client, dataset = next(iter(data.items()))
    private: PrivateTexts = feed.private
    first_step = jax.tree.map(_first_step, (private.order, private.public))
    rows, others = first_step[0], np.zeros(0, np.int32)
    if first_step[1] is not None:
        others = first_step[1]
    # Mixing unit vectors shows the weights of the mixtures; masks would only flip their signs.
    units = jnp.eye(len(rows) + len(others))
    weights, labels = replace(scheme, num_masks=0).hide_features(
        own_keys[client].secret,
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
    with private_file(folder / "samples.txt") as file:
        file.write(("\n".join(lines) + "\n").encode())


def _first_step(order: jax.Array) -> np.ndarray:
    """What the first client of this process takes at the first step."""
    return np.asarray(order.addressable_data(0))[0, 0]


def _label_text(label: np.ndarray, texts: Texts) -> str:
    if not texts.class_names:
        return f"{float(label):.3f}"
    pairs = zip(texts.class_names, label, strict=True)
    return ", ".join(f"{name} {share:.3f}" for name, share in pairs if share > 0)


def _text(known: TokenSet, number: int) -> str:
    second = "" if known.texts.second is None else f" | {known.texts.second[number]}"
    return f"{known.texts.first[number]}{second}"
