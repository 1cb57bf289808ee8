"""Scores of predictions, as GLUE defines them, by scikit-learn and SciPy."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from instahide_jax.errors import InputError, did_you_mean


def score(metrics: Sequence[str], labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """Score a model's outputs.

    Where a score is not defined it is 0.0, without a warning: f1 when class 1 is neither there
    nor predicted, matthews when all labels or all predictions are alike, pearson and spearman
    when all labels or all outputs are alike (which one example is).

    Args:
        metrics: names of scores, each a key of `METRICS`: accuracy, f1 (two classes, of class 1)
            and matthews take classes; pearson and spearman take numbers.
        labels: [N], integers in [0, C) for classes, any finite numbers for numbers.
        outputs: for classes [N, C] floating logits, whose largest is the prediction (the first of
            several); for numbers [N] floating.

    Returns:
        name -> score, in the order of `metrics`; accuracy and f1 in [0, 1], the others in [-1, 1].

    Raises:
        InputError: an unknown metric, no example, shapes that do not fit metric or labels, labels
            that are no class, f1 of other than two classes, or a number that is not finite.
    """
    for name in metrics:
        _check_known(name)
    labels, outputs = np.asarray(labels), np.asarray(outputs)
    return {name: _score(name, labels, outputs) for name in metrics}


def _check_known(name: str) -> None:
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}; {did_you_mean(name, list(METRICS))}")


def _score(name: str, labels: np.ndarray, outputs: np.ndarray) -> float:
    takes_classes, function = METRICS[name]
    rank, shape = (2, "[N, classes]") if takes_classes else (1, "[N]")
    if outputs.ndim != rank:
        raise InputError(
            f"{name} takes outputs of shape {shape}, not {outputs.shape}; choose metrics for "
            f"{'numbers' if takes_classes else 'classes'}"
        )
    if labels.shape != outputs.shape[:1]:
        raise InputError(
            f"labels have shape {labels.shape}, outputs {outputs.shape}; give one label per output"
        )
    if not outputs.size:
        raise InputError(f"{name} needs at least one example; outputs have shape {outputs.shape}")
    if not np.isfinite(outputs).all():
        where = int(np.argwhere(~np.isfinite(outputs))[0, 0])
        raise InputError(
            f"output {where} is {outputs[where]}, which is not finite; "
            "train with a lower learning rate"
        )
    if takes_classes:
        _check_classes(name, labels, outputs.shape[1])
        return float(function(labels, outputs.argmax(axis=1)))
    if not np.isfinite(labels).all():
        where = int(np.argmin(np.isfinite(labels)))
        raise InputError(f"label {where} is {labels[where]}; {name} takes finite numbers")
    return float(function(labels.astype(np.float64), outputs.astype(np.float64)))


def _check_classes(name: str, labels: np.ndarray, num_classes: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have dtype {labels.dtype}; {name} takes integers")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        where = int(np.argmax(wrong))
        raise InputError(
            f"label {where} is {labels[where]}, but outputs have classes 0 to {num_classes - 1}; "
            "score labelled examples only"
        )
    if name == "f1" and num_classes != 2:
        raise InputError(f"f1 takes 2 classes, not {num_classes}; use accuracy")


# The libraries are imported where they are used: together they take seconds.


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, predictions)


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0)


def _matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(labels) or _constant(predictions):  # scikit-learn warns at a single class
        return 0.0
    return matthews_corrcoef(labels, predictions)


def _pearson(labels: np.ndarray, outputs: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, outputs)


def _spearman(labels: np.ndarray, outputs: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, outputs)


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _correlation(function: Callable[..., object], labels: np.ndarray, outputs: np.ndarray) -> float:
    if _constant(labels) or _constant(outputs):
        return 0.0
    with warnings.catch_warnings():
        # Of numbers that differ in the last digits alone: SciPy warns, its result still stands.
        warnings.simplefilter("ignore")
        # SciPy names no type for its results.
        value = float(function(labels, outputs).statistic)  # type: ignore[attr-defined]
    return 0.0 if math.isnan(value) else value


METRICS: Mapping[str, tuple[bool, Callable[[np.ndarray, np.ndarray], float]]] = {
    "accuracy": (True, _accuracy),
    "f1": (True, _f1),
    "matthews": (True, _matthews),
    "pearson": (False, _pearson),
    "spearman": (False, _spearman),
}
