"""Scores of a model on images: on plain ones, and on encryptions of them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instahide_jax.config import ImageExperiment
from instahide_jax.data.augment import centre
from instahide_jax.data.embedded import Arrays
from instahide_jax.data.streaming import eval_batches
from instahide_jax.data.tfds_io import Split
from instahide_jax.distributed import is_first
from instahide_jax.encoders.base import Model, Tree, Variables
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding, soft_labels
from instahide_jax.image_data import num_images
from instahide_jax.instahide import InstaHide
from instahide_jax.metrics import progress
from instahide_jax.parallel import WHOLE, Share, sharded
from instahide_jax.placement import local_mesh
from instahide_jax.secret import SecretKey

EVAL_BATCH = 250


def make_evaluate(
    config: ImageExperiment, scheme: NoHiding, model: Model
) -> Callable[..., dict[str, jax.Array]]:
    """evaluate(params, stats, images, labels, valid) -> sums over the valid rows, jitted.

    Images are plain: the central crop, standardised, neither mixed nor masked. The sums are
    "loss", "right" and "count", float32.
    """
    plain = NoHiding(scheme.num_classes, scheme.mean, scheme.std)

    def evaluate(
        params: Tree, stats: Tree, images: jax.Array, labels: jax.Array, valid: jax.Array
    ) -> dict[str, jax.Array]:
        batch = plain.hide_inputs(None, {"image": centre(config.augment, images), "label": labels})
        features, _ = model.features(Variables(params, stats), batch["image"], train=False)
        logits = model.logits(params, features)
        loss = optax.softmax_cross_entropy(logits, soft_labels(labels, scheme.num_classes))
        right = logits.argmax(axis=1) == labels
        return {
            "loss": jnp.where(valid, loss, 0).sum(),
            "right": (right & valid).sum().astype(jnp.float32),
            "count": valid.sum().astype(jnp.float32),
        }

    return jax.jit(evaluate)


def evaluate_split(
    evaluate: Callable[..., dict[str, jax.Array]],
    variables: Variables,
    split: Arrays | Split,
    experiment: ImageExperiment,
    share: Share = WHOLE,
) -> np.ndarray:
    """Sums over plain images: loss, right ones, and their number, float64 [3].

    Args:
      evaluate: of `make_evaluate`.
      variables: on the devices of this process (`placement.to_local`).
      split: images in memory, or a split to stream.
      experiment: its data configuration tells how to resize what is streamed.
      share: of the images, to score here.
    """
    by_rows = sharded(local_mesh())
    devices = by_rows.mesh.size
    size = -(-EVAL_BATCH // devices) * devices
    batches = plain_batches(split, experiment, size, share)
    total = -(-num_images(split) // (size * share.of))
    sums = np.zeros(3)
    for batch in progress(batches, "score", total, " batches", is_first()):
        rows = jax.device_put((batch["image"], batch["label"], batch["valid"]), by_rows)
        made = evaluate(variables.params, variables.stats, *rows)
        sums += [float(made[name]) for name in ("loss", "right", "count")]
    return sums


def plain_batches(
    split: Arrays | Split,
    experiment: ImageExperiment,
    size: int,
    share: Share = WHOLE,
) -> Iterator[dict[str, Any]]:
    """Batches {"image", "label", "valid"} of one size in order, the last one padded.

    Args:
      split: in memory or to stream.
      experiment: tells how to resize what is streamed.
      size: of the batches.
      share: which of every `share.of` batches.
    """
    if not isinstance(split, Arrays):
        resize: int = experiment.data.resize  # type: ignore[attr-defined]
        yield from eval_batches(
            split,
            batch_size=size * share.of,
            resize=resize,
            process_index=share.which,
            process_count=share.of,
        )
        return
    last = len(split.labels) - 1
    for start in range(share.which * size, max(1, last + 1), size * share.of):
        numbers = np.arange(start, start + size)
        inside = np.minimum(numbers, last)
        yield {
            "image": split.images[inside],
            "label": split.labels[inside],
            "valid": numbers <= last,
        }


class EncryptedScore(NamedTuple):
    """Accuracies of predictions averaged over encryptions, each in [0, 1].

    Attributes:
      network: of the network's predictions.
      oracle: of a predictor that knows the labels and coefficients of the private images in every
        encryption, the most that a network can learn to read. It is wrong where the images mixed
        in outweigh the image asked about, so what it lacks is the method's and not the network's.
    """

    network: float
    oracle: float


def encrypted_accuracies(
    experiment: ImageExperiment,
    scheme: InstaHide,
    model: Model,
    variables: Variables,
    key: SecretKey,
    test: Arrays,
    owners: Arrays,
    public_pool: np.ndarray | None,
    counts: Sequence[int],
) -> dict[int, EncryptedScore]:
    """Accuracy of predictions averaged over T encryptions of every test image, per T in `counts`.

    The owner of the data asks about an image without showing it (Huang et al. 2020, section 3.3):
    each encryption has fresh coefficients, mask and partners, public ones from the pool and private
    ones from the owner's training images; class probabilities are averaged.

    Args:
      experiment: tells the crop.
      scheme: with the data set's statistics; `min_own_coefficient` is the floor of the test image.
      model: pure functions.
      variables: parameters and statistics.
      key: used once.
      test: the images asked about.
      owners: the owner's own images, partners in the mixtures.
      public_pool: uint8 [M, H, W, C], for cross schemes.
      counts: numbers of encryptions, each >= 1.

    Raises:
      InputError: for a count below 1.
    """
    if min(counts) < 1:
        raise InputError(f"number of encryptions is {min(counts)}; it must be at least 1")
    own_images = centre(experiment.augment, jnp.asarray(owners.images))
    pool = None if public_pool is None else jnp.asarray(public_pool)
    candidates = {"image": own_images, "label": jnp.asarray(owners.labels)}
    size = len(owners.labels)
    partners = jax.jit(partial(scheme.pass_partners, num_candidates=size))

    @jax.jit
    def probabilities(
        variables: Variables, key: SecretKey, table: Any, candidates: Any, pool: Any, batch: Any
    ) -> tuple[jax.Array, jax.Array]:
        rows = batch["row"]
        images = centre(experiment.augment, batch["image"])
        hidden = scheme.hide_inputs(
            key,
            {"image": images, "label": batch["label"]},
            pool,
            rows=rows,
            private_pool=candidates,
            partners=table[rows % size],
        )
        features, _ = model.features(variables, hidden["image"], train=False)
        true = hidden["label"] / hidden["label"].sum(axis=1, keepdims=True)
        return jax.nn.softmax(model.logits(variables.params, features)), true

    # Probabilities summed over encryptions: the network's and the true ones.
    totals = np.zeros((2, len(test.labels), scheme.num_classes or 0))
    scores = {}
    for t in progress(range(max(counts)), "encrypted inference", max(counts), " encryptions"):
        key_t = key.fold_in(np.uint32(t))
        table = partners(key_t)
        for i, batch in enumerate(plain_batches(test, experiment, EVAL_BATCH)):
            valid = batch.pop("valid")
            numbers = np.arange(i * EVAL_BATCH, (i + 1) * EVAL_BATCH, dtype=np.uint32)
            made = probabilities(
                variables, key_t, table, candidates, pool, batch | {"row": numbers}
            )
            totals[:, numbers[valid]] += np.stack(made)[:, valid]
        if t + 1 in counts:
            right = (totals.argmax(axis=2) == test.labels).mean(axis=1)
            scores[t + 1] = EncryptedScore(*map(float, right))
    return scores
