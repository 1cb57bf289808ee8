"""Training on images: their data, what feeds the train step, and the picture of the first batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instahide_jax.config import ImageExperiment
from instahide_jax.data.embedded import Arrays
from instahide_jax.data.streaming import joined, prefetch_to_device, stream_batches
from instahide_jax.data.tfds_io import Split
from instahide_jax.distributed import is_first, sum_over_processes, together
from instahide_jax.encoders.base import Model, Variables
from instahide_jax.hiding import NoHiding
from instahide_jax.image_data import Agreement, ClientImages, agree, open_images
from instahide_jax.image_evaluation import evaluate_split, make_evaluate
from instahide_jax.image_step import Pass, Private, make_hide, make_take, plan_pass
from instahide_jax.instahide import InstaHide
from instahide_jax.parallel import FAST_COMPILE, process_share, sharded
from instahide_jax.pictures import save_samples
from instahide_jax.placement import put_own, to_local
from instahide_jax.task import Feed, Task, Validation
from instahide_jax.training import ClientKeys, Keys, TrainState

_SHOWN = 8  # images in the picture


def open_task(experiment: ImageExperiment, held: range) -> Task:
    """Load the data of the clients of this process.

    Raises:
      InputError: if data or public pool are not there, or do not fit the experiment, here or in
        another process.
    """
    data = together(lambda: open_images(experiment, held))
    agreed = agree(data)
    own = next(iter(data.values())).dataset
    scheme = experiment.scheme.for_data(own.train.num_classes, *agreed.statistics)
    pools = [each.pool for each in data.values()]
    size = experiment.batch_size // experiment.clients
    return Task(
        scheme=scheme,
        shape=experiment.augment.output_shape(own.image_shape),
        num_outputs=own.train.num_classes,
        num_examples=sum(agreed.counts),
        steps_per_epoch=min(agreed.counts) // size,
        unit="images",
        identities={client: each.identities for client, each in data.items()},
        public=[p[: agreed.pool_size] for p in pools if p is not None],
        make_take=partial(make_take, experiment, scheme),
        feeds=partial(feeds, experiment, scheme, data, agreed),
        make_validate=partial(_make_validate, experiment, scheme, data),
        save_samples=partial(_save_first_batch, experiment, scheme),
    )


def feeds(
    experiment: ImageExperiment,
    scheme: NoHiding,
    data: dict[int, ClientImages],
    agreed: Agreement,
    own_keys: dict[int, ClientKeys],
    mesh: Mesh,
    start: int,
    total: int,
) -> Iterator[Feed]:
    """What the train step is given at every step from `start` on.

    Data in memory is put on its client's devices once, and a step only advances a counter; order
    and partners are drawn at the start of every pass, by the processes of the client. Streamed
    batches are put on the devices ahead of use.
    """
    size = experiment.batch_size // experiment.clients
    in_memory = [
        own.dataset.train for own in data.values() if isinstance(own.dataset.train, Arrays)
    ]
    if not in_memory:
        yield from _streamed(experiment, data, mesh, start, total)
        return
    clients, count = experiment.clients, agreed.largest
    arrays = [(_filled_up(own.images, count), _filled_up(own.labels, count)) for own in in_memory]
    images, labels = put_own(arrays, mesh, clients)
    mixes = scheme if experiment.partners == "dataset" else None
    plan = jax.jit(partial(plan_pass, scheme=mixes), static_argnames="num_images")
    steps_per_epoch = min(agreed.counts) // size
    used = steps_per_epoch * size

    def pass_of(epoch: int) -> Pass:
        number = jax.device_put(np.uint32(epoch))
        plans = [
            plan(keys, number, num_images=agreed.counts[client])
            for client, keys in own_keys.items()
        ]
        orders = put_own([made.order[:used] for made in plans], mesh, clients)
        partners = None
        if mixes is not None:
            partners = put_own([_filled_up(made.partners, count) for made in plans], mesh, clients)
        return Pass(orders, partners)

    this_pass: Pass | None = None
    for step in range(start, total):
        if this_pass is None or step % steps_per_epoch == 0:
            this_pass = pass_of(step // steps_per_epoch)
        yield Feed(step, Private(images, labels, this_pass), None, size * clients)


def _streamed(
    experiment: ImageExperiment, data: dict[int, ClientImages], mesh: Mesh, start: int, total: int
) -> Iterator[Feed]:
    size, share = experiment.batch_size, process_share(mesh, experiment.clients)
    streams = [
        stream_batches(
            own.dataset.train,
            batch_size=size // experiment.clients,
            seed=experiment.seed,
            start_step=start,
            resize=own.dataset.image_shape[0],
            process_index=share.which,
            process_count=share.of,
        )
        for own in data.values()
        if isinstance(own.dataset.train, Split)
    ]
    ahead = prefetch_to_device(joined(streams), sharded(mesh))
    for step in range(start, total):
        batch = next(ahead)
        yield Feed(step, Private(batch["image"], batch["label"], None), None, size)


def _filled_up(array: Any, size: int) -> np.ndarray:
    """An array [n, ...] with zeros up to [size, ...], which no order names."""
    array = np.asarray(array)
    if len(array) == size:
        return array
    return np.pad(array, [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)])


def _make_validate(
    experiment: ImageExperiment,
    scheme: NoHiding,
    data: dict[int, ClientImages],
    model: Model,
    mesh: Mesh,
) -> Callable[[TrainState, Any], Validation]:
    """Scores on the validation images of all clients; each is scored by its own processes."""
    evaluate = make_evaluate(experiment, scheme, model)
    shape = next(iter(data.values())).dataset.image_shape
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    label, valid = jax.ShapeDtypeStruct((1,), np.int32), jax.ShapeDtypeStruct((1,), bool)
    jax.eval_shape(evaluate, variables.params, variables.stats, image, label, valid)
    share = process_share(mesh, experiment.clients)

    def validate(state: TrainState, own_keys: Any) -> Validation:
        del own_keys  # images are scored plain
        local = to_local(Variables(state.params, state.stats), mesh)
        sums = [
            evaluate_split(evaluate, local, each.dataset.validation, experiment, share)
            for each in data.values()
        ]
        loss, right, count = sum_over_processes(np.sum(sums, axis=0))
        return Validation(right / count, {"loss": loss / count, "accuracy": right / count})

    return validate


def _save_first_batch(
    experiment: ImageExperiment,
    scheme: NoHiding,
    folder: Path,
    mesh: Mesh,
    keys: Keys,
    own_keys: dict[int, ClientKeys],
    public: Any,
    feed: Feed,
) -> None:
    """samples.png, of mode 0600: the first images as they are, mixed, and as the encoder sees them.

    They are of the first client, in whose process the picture is made.
    """
    del own_keys
    schemes = {"original": NoHiding(scheme.num_classes, scheme.mean, scheme.std)}
    if isinstance(scheme, InstaHide):
        schemes |= {"mixture": replace(scheme, mask="none"), "encryption": scheme}

    def first(keys: Keys, private: Private, pool: Any) -> Any:
        step = jnp.zeros((), jnp.int32)
        return {
            title: make_hide(experiment, s, mesh)(keys, step, private, pool)
            for title, s in schemes.items()
        }

    run = jax.jit(first, compiler_options=FAST_COMPILE)
    made = jax.tree.map(_first_rows, run(keys, feed.private, public))
    if not is_first():
        return
    labels = []
    for row in made[list(schemes)[-1]]["label"]:
        heaviest = np.argsort(-row)[:4]
        labels.append("\n".join(f"class {c}: {row[c]:.2f}" for c in heaviest if row[c] > 0))
    columns = {title: np.asarray(made[title]["image"], np.float32) for title in schemes}
    note = "shows private images: for their owner only"
    save_samples(folder / "samples.png", columns, labels, note)


def _first_rows(batch: jax.Array) -> np.ndarray:
    """The first rows of a batch that lie in this process."""
    shards = {shard.index[0].start or 0: shard.data for shard in batch.addressable_shards}
    rows = [row for start in sorted(shards) for row in np.asarray(shards[start])[:_SHOWN]]
    return np.stack(rows[:_SHOWN])
