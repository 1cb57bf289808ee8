"""Scores of a model on texts: as they are, and under their owner's masks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instahide_jax.data.text_sources import TokenSet
from instahide_jax.distributed import is_first
from instahide_jax.encoders.base import Model, Variables
from instahide_jax.errors import InputError
from instahide_jax.hiding import NoHiding
from instahide_jax.metrics import progress
from instahide_jax.scores import score
from instahide_jax.secret import SecretKey
from instahide_jax.text_step import Tokens, buckets_of
from instahide_jax.texthide import TextHide
from instahide_jax.training import example_losses

EVAL_BATCH = 100


def has_masks(scheme: NoHiding) -> bool:
    """Whether features are masked, so that their owner evaluates under masks too."""
    return isinstance(scheme, TextHide) and scheme.num_masks != 0


def make_outputs(scheme: NoHiding, model: Model) -> Callable[..., jax.Array]:
    """outputs(variables, tokens, rows, secret, draws) -> float32 [D, B, outputs], jitted.

    Nothing is mixed. `draws` is the static number of draws of masks, of which every row gets one
    per draw; 0 applies none, and then D is 1.
    """

    @partial(jax.jit, static_argnames="draws")
    def outputs(
        variables: Variables, tokens: Tokens, rows: jax.Array, secret: SecretKey | None, draws: int
    ) -> jax.Array:
        features, _ = model.features(variables, tokens, train=False)
        if not draws:
            return model.logits(variables.params, features)[None]
        assert isinstance(scheme, TextHide)
        masked = [scheme.mask_features(secret, t, features, rows) for t in range(draws)]
        return model.logits(variables.params, jnp.stack(masked))

    return outputs


def outputs_of_set(
    outputs: Callable[..., jax.Array],
    variables: Variables,
    texts: TokenSet,
    lengths: tuple[int, ...],
    secret: SecretKey | None,
    draws: int,
) -> np.ndarray:
    """Outputs of all texts of a set, float32 [D, N, outputs], see `make_outputs`.

    Args:
      outputs: of `make_outputs`.
      variables: parameters and statistics.
      texts: the set.
      lengths: compiled lengths, ascending; texts are computed at the first that holds their batch.
      secret: of the run, for the masks of its training; None will do for 0 draws.
      draws: of masks.
    """
    buckets = buckets_of(texts.tokens["mask"], lengths)
    order = np.argsort(buckets, kind="stable")
    parts = []
    starts = range(0, len(order), EVAL_BATCH)
    for start in progress(starts, "score", len(starts), " batches", is_first()):
        rows = order[np.minimum(np.arange(start, start + EVAL_BATCH), len(order) - 1)]
        length = lengths[buckets[rows].max()]
        tokens = {name: array[rows, :length] for name, array in texts.tokens.items()}
        numbers = rows.astype(np.uint32)
        parts.append(np.asarray(outputs(variables, tokens, numbers, secret, draws)))
    made = np.concatenate(parts, axis=1)[:, : len(order)]
    in_order = np.empty_like(made)
    in_order[:, order] = made
    return in_order


def score_set(
    outputs: np.ndarray, labels: np.ndarray, metrics: Sequence[str], num_classes: int | None
) -> dict[str, float]:
    """Scores of predictions averaged over draws, "loss" first.

    Class probabilities are averaged, or numbers.

    Args:
      outputs: [D, N, outputs] of `outputs_of_set`.
      labels: int [N], or numbers [N] where `num_classes` is None.
      metrics: names, see `scores.score`.
      num_classes: or None for regression.
    """
    mean: Any
    if num_classes is None:
        mean = outputs.mean(axis=0)
        loss = example_losses(jnp.asarray(mean), jnp.asarray(labels)).mean()
        return {"loss": float(loss), **score(metrics, labels, mean[:, 0])}
    mean = jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - np.log(len(outputs))
    one_hot = jax.nn.one_hot(labels, num_classes)
    loss = example_losses(mean, one_hot).mean()
    return {"loss": float(loss), **score(metrics, labels, np.asarray(mean))}


def score_views(
    scheme: NoHiding,
    model: Model,
    variables: Variables,
    texts: TokenSet,
    lengths: tuple[int, ...],
    secret: SecretKey | None,
    metrics: Sequence[str],
    counts: Sequence[int],
) -> dict[int, dict[str, float]]:
    """Scores without masks under 0, and averaged over T draws of masks under every T of `counts`.

    Raises:
      InputError: for a count below 1.
    """
    if min(counts, default=1) < 1:
        raise InputError(f"number of masks is {min(counts)}; it must be at least 1")
    outputs = make_outputs(scheme, model)
    made = {0: outputs_of_set(outputs, variables, texts, lengths, secret, 0)}
    if counts:
        all_draws = outputs_of_set(outputs, variables, texts, lengths, secret, max(counts))
        made |= {count: all_draws[:count] for count in sorted(set(counts))}
    return {
        count: score_set(some, texts.labels, metrics, texts.num_classes)
        for count, some in made.items()
    }
