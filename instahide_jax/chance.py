"""Has training left the neighbourhood of chance? What guessing would lose, and a warning."""

import math
from collections import deque
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A check looks at this many steps, so that the noise of single batches averages out.
WINDOW = 200
# The loss must be this fraction below that of guessing. The published InstaHide recipe is 4 % below
# after one epoch of CIFAR-10, and under 1 % with the initialisation that did not train.
MARGIN = 0.01


class TargetMeans(NamedTuple):
    """Means over the targets of a batch, from which the loss of guessing follows.

    Attributes:
      first: [classes] of class targets; [] of numbers.
      second: [] of the squares of numbers; None for classes.
    """

    first: jax.Array
    second: jax.Array | None


def target_means(targets: jax.Array) -> TargetMeans:
    """The means over targets [B, classes] or numbers [B]."""
    if targets.ndim == 2:
        return TargetMeans(targets.mean(axis=0), None)
    return TargetMeans(targets.mean(), jnp.square(targets).mean())


def chance_loss(means: TargetMeans) -> float:
    """The lowest mean loss of outputs that do not depend on the inputs.

    Args:
      means: over all targets.

    Returns:
      Of classes the cross-entropy of their frequencies, in nats; where targets sum to less than 1,
      as labels of cross InstaHide do, times their mean sum. Of numbers their variance.
    """
    first = np.asarray(means.first, np.float64)
    if means.second is not None:
        return float(means.second - first**2)
    frequencies = first[first > 0] / first.sum()
    return float(-first.sum() * (frequencies * np.log(frequencies)).sum())


class LearningCheck:
    """Compares the training loss with that of guessing, once per run.

    Nothing that is computed depends on it. It is due when the warm-up and one epoch after it are
    over, but not before `WINDOW` steps; in a run that ends earlier, with the last step. A run that
    goes on before that makes `WINDOW` steps itself first; one that goes on later is not checked
    again, and one of fewer than `WINDOW` steps never.
    """

    def __init__(self, start: int, total: int, steps_per_epoch: int, warmup_epochs: float):
        """No step yet.

        Args:
          start: steps done before, by the program that the run began in.
          total: steps of the whole run.
          steps_per_epoch: of the run.
          warmup_epochs: epochs, or a part of one, in which the learning rate rises.
        """
        due = max(WINDOW, min(total, math.ceil((1 + warmup_epochs) * steps_per_epoch)))
        self.due = max(due, start + WINDOW) if start < due else 0
        self._recent: deque[tuple[jax.Array, TargetMeans]] = deque(maxlen=WINDOW)

    def add(self, step: int, loss: jax.Array, means: TargetMeans) -> str | None:
        """Take in a step; a warning if the check is due and the loss is still that of guessing.

        Args:
          step: its number from 1.
          loss: [] its training loss.
          means: over its targets.
        """
        if step > self.due:
            return None
        self._recent.append((loss, means))
        if step < self.due:
            return None
        recent = jax.device_get(list(self._recent))
        self._recent.clear()
        reached = float(np.mean([loss for loss, _ in recent]))
        chance = chance_loss(jax.tree.map(lambda *m: np.mean(m, axis=0), *(m for _, m in recent)))
        if reached < (1 - MARGIN) * chance:
            return None
        return (
            f"after {step:,} steps the training loss is {reached:.4g}, and guessing loses "
            f"{chance:.4g}: the network has not begun to learn. Usually the learning rate is too "
            "high or too low, or a warm-up is missing: try --optimizer.learning-rate and "
            "--optimizer.schedule.warmup-epochs, in another --workdir"
        )
