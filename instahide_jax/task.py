"""What train.py asks of a kind of data; `image_task` and `text_task` answer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from jax.sharding import Mesh

from instahide_jax.encoders.base import Model, Tree
from instahide_jax.hiding import NoHiding
from instahide_jax.training import ClientKeys, Keys, Take, TrainState


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

    def __call__(
        self, own_keys: dict[int, ClientKeys], mesh: Mesh, start: int, total: int
    ) -> Iterator[Feed]: ...


class Task(NamedTuple):
    """Data of the clients of this process, opened and checked, and what is done with them.

    Attributes:
      scheme: of the experiment, with what the data says.
      shape: of one example, for `encoders.make_model`.
      num_outputs: of the head.
      num_examples: private training examples of all clients.
      steps_per_epoch: of the client with fewest.
      unit: what `Feed.work` counts, "images" or "tokens".
      identities: of each client here: strings that change with its data, for its key.
      public: public data of each client here, in host memory; empty without any.
      make_take: the examples of a step, for a mesh.
      feeds: what the train step is given.
      make_validate: validate(state, own_keys) for a model and a mesh; everything that shapes can
        tell is checked when it is made.
      save_samples: write what people look at after the first step: (folder, mesh, keys, own_keys,
        public, feed). All processes call it, the first one writes.
    """

    scheme: NoHiding
    shape: tuple[int, ...]
    num_outputs: int
    num_examples: int
    steps_per_epoch: int
    unit: str
    identities: dict[int, list[str]]
    public: list[Tree]
    make_take: Callable[[Mesh], Take]
    feeds: Feeds
    make_validate: Callable[
        [Model, Mesh], Callable[[TrainState, dict[int, ClientKeys]], Validation]
    ]
    save_samples: Callable[[Path, Mesh, Keys, dict[int, ClientKeys], Tree, Feed], None]
