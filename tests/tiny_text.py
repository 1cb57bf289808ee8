"""A tiny text experiment and its parts, each compiled once."""

import functools
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from instahide_jax import TextHide, insecure_secret
from instahide_jax.config import TextExperiment
from instahide_jax.data.text_sources import SyntheticText, TextData
from instahide_jax.encoders import Bert, Variables, make_model
from instahide_jax.optimizers import AdamW, Schedule, make_optimizer
from instahide_jax.parallel import make_mesh, replicated
from instahide_jax.placement import put_own
from instahide_jax.task import Feed
from instahide_jax.text_step import make_take
from instahide_jax.text_task import agree, feeds, open_texts
from instahide_jax.training import (
    TrainState,
    init_state,
    make_keys,
    make_train_step,
    put_keys,
)

BATCH = 8
EXPERIMENT = TextExperiment(
    data=TextData(
        train=SyntheticText(count=60, seed=1),
        test=SyntheticText(count=30, seed=2),
        validation=12,
        length=16,
        buckets=(),  # every length compiles the step anew
    ),
    encoder=Bert(
        vocab_size=60, hidden=16, layers=1, heads=2, intermediate=16, positions=16, output="mean"
    ),
    scheme=TextHide.intra(k=4, num_masks=4),
    public_text=SyntheticText(count=40, seed=3),
    optimizer=AdamW(learning_rate=1e-2, schedule=Schedule()),
    batch_size=BATCH,
)


class TinyText:
    """A run of the train step on some devices."""

    def __init__(self, devices: int, experiment: TextExperiment):
        self.experiment = experiment
        clients = range(experiment.clients)
        self.data, _ = open_texts(experiment, clients)
        self.dataset = self.data[0]
        train = self.dataset.train
        self.scheme = experiment.scheme.for_data(train.num_classes)
        shape, outputs = (experiment.data.length,), train.num_classes or 1
        self.model = make_model(experiment.encoder, shape, outputs, experiment.head)
        self.mesh = make_mesh(len(clients), jax.devices()[:devices])
        self.whole = replicated(self.mesh)
        seed = jax.random.key(6)
        self.own_keys = make_keys({c: insecure_secret(5 + c) for c in clients}, seed)
        self.keys = put_keys(self.own_keys, seed, self.mesh, len(clients))
        self.public = None
        if self.dataset.public is not None:
            tokens = [own.public.tokens for own in self.data.values()]
            self.public = put_own(tokens, self.mesh, len(clients))
        self.optimizer = make_optimizer(experiment.optimizer, 6, 12)
        self.traces = 0

        def features(*args: Any, **kwargs: Any) -> Any:
            self.traces += 1
            return self.model.features(*args, **kwargs)

        counted = self.model._replace(features=features)
        self.step = make_train_step(
            make_take(self.mesh, len(clients)),
            self.scheme,
            counted,
            self.optimizer,
            self.mesh,
            group=experiment.partner_group,
            clients=len(clients),
        )

    def init(self) -> TrainState:
        """The state before the first step."""
        made = jax.jit(partial(init_state, self.model, self.optimizer))(jax.random.key(7))
        return jax.device_put(made, self.whole)

    def feeds(self, start: int, total: int) -> list[Feed]:
        """What the train step is given."""
        agreed = agree(self.data)
        return list(
            feeds(self.experiment, self.data, agreed, self.own_keys, self.mesh, start, total)
        )

    @functools.cache  # noqa: B019 - runs live as long as the tests
    def train(self, steps: int) -> tuple[TrainState, list[dict[str, float]]]:
        """The state after some steps, in host memory, and the metrics of each."""
        state, logged = self.init(), []
        for feed in self.feeds(0, steps):
            state, metrics = self.step(state, self.keys, feed.private, self.public, feed.length)
            metrics.pop("targets")
            logged.append({name: float(value) for name, value in metrics.items()})
        return jax.device_get(state), logged

    @property
    def variables(self) -> Variables:
        """Parameters and statistics before the first step."""
        state = self.init()
        return Variables(state.params, state.stats)


@functools.cache
def tiny_text(devices: int = 1, **changes: Any) -> TinyText:
    """`EXPERIMENT` with changes, on the first devices; the same arguments give the same run."""
    return TinyText(devices, replace(EXPERIMENT, **changes))
