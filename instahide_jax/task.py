"""What train.py asks of a kind of data; `image_task` and `text_task` answer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from instahide_jax.encoders.base import Model, Tree
from instahide_jax.hiding import NoHiding
from instahide_jax.training import Keys, Take, TrainState


class Feed(NamedTuple):
    """What the train step is given at one step.

    Attributes:
      step: number of the step.
      private: private data on the devices.
      length: compiled length of the examples; None where all are alike.
      work: images, or tokens without padding, that the step goes through.
    """

    step: int
    private: Tree
    length: int | None
    work: int


class Validation(NamedTuple):
    """Scores on the validation split.

    Attributes:
      score: decides which checkpoint is best; larger is better.
      values: names and values of what is logged, "loss" among them.
    """

    score: float
    values: dict[str, float]


class Feeds(Protocol):
    """Feeds of the steps from `start` to `total`, without the latter."""

    def __call__(self, keys: Keys, mesh: Mesh, start: int, total: int) -> Iterator[Feed]: ...


class Task(NamedTuple):
    """Data, opened and checked, and what is done with it.

    Attributes:
      scheme: of the experiment, with what the data says.
      shape: of one example, for `encoders.make_model`.
      num_outputs: of the head.
      num_examples: private training examples.
      unit: what `Feed.work` counts, "images" or "tokens".
      identities: strings that change with the data, for the run's fingerprint.
      public: public data in host memory as the train step takes it, or None.
      make_take: the examples of a step, for a mesh.
      feeds: what the train step is given.
      make_validate: validate(state, secret) for a model; everything that shapes can tell is checked
        when it is made.
      save_samples: write what people look at after the first step: (folder, mesh, keys, feed).
    """

    scheme: NoHiding
    shape: tuple[int, ...]
    num_outputs: int
    num_examples: int
    unit: str
    identities: list[str]
    public: Tree | None
    make_take: Callable[[Mesh], Take]
    feeds: Feeds
    make_validate: Callable[[Model], Callable[[TrainState, Any], Validation]]
    save_samples: Callable[[Path, Mesh, Keys, Feed], None]
