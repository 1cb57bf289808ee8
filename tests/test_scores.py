"""instahide_jax.scores: known values, degenerate inputs, refusals."""

import subprocess
import sys

import numpy as np
import pytest

from instahide_jax.errors import InputError
from instahide_jax.scores import METRICS, score


def logits(predictions: list[int], classes: int = 2) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predictions]


def test_classes_by_hand() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    outputs = logits([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    found = score(["matthews", "accuracy", "f1"], labels, outputs)
    assert list(found) == ["matthews", "accuracy", "f1"]
    assert all(type(value) is float for value in found.values())
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert found["matthews"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_f1_is_of_class_1() -> None:
    labels, outputs = np.array([1, 0, 0, 0]), logits([0, 0, 0, 0])
    assert score(["f1"], labels, outputs) == {"f1": 0.0}
    assert score(["f1"], 1 - labels, 1 - outputs)["f1"] == pytest.approx(6 / 7)


def test_three_classes() -> None:
    labels = np.array([0, 1, 2, 2])
    assert score(["accuracy"], labels, logits([0, 1, 1, 2], 3)) == {"accuracy": 0.75}
    assert score(["matthews"], labels, logits([0, 1, 2, 2], 3))["matthews"] == pytest.approx(1)


def test_the_first_of_equal_logits_is_predicted() -> None:
    assert score(["accuracy"], np.array([0, 1]), np.zeros((2, 2))) == {"accuracy": 0.5}


def test_numbers_by_hand() -> None:
    labels = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    outputs = np.array([1.0, 4.0, 9.0, 16.0], np.float32)
    found = score(["pearson", "spearman"], labels, outputs)
    assert found["pearson"] == pytest.approx(25 / np.sqrt(5 * 129), abs=1e-12)
    assert found["spearman"] == pytest.approx(1)
    assert score(["spearman"], labels, np.array([4.0, 4.0, 1.0, 1.0]))["spearman"] == (
        pytest.approx(-2 / np.sqrt(5))  # ranks 3.5, 3.5, 1.5, 1.5
    )


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], {"accuracy": 1.0, "f1": 0.0, "matthews": 0.0}),
        ([1, 1, 1], [1, 1, 1], {"accuracy": 1.0, "f1": 1.0, "matthews": 0.0}),
        ([0, 0, 1], [0, 0, 0], {"accuracy": 2 / 3, "f1": 0.0, "matthews": 0.0}),
        ([0, 0, 0], [1, 1, 1], {"accuracy": 0.0, "f1": 0.0, "matthews": 0.0}),
        ([0], [0], {"accuracy": 1.0, "f1": 0.0, "matthews": 0.0}),
    ],
)
def test_degenerate_classes(
    labels: list[int], predictions: list[int], expected: dict[str, float]
) -> None:
    found = score(list(expected), np.array(labels), logits(predictions))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]),
        ([2.0], [1.0]),
        ([1.0, 2.0, 3.0], [1.7e308, -1.7e308, 1.7e308]),  # their sums overflow
    ],
)
def test_degenerate_numbers(labels: list[float], outputs: list[float]) -> None:
    assert score(["pearson"], np.array(labels), np.array(outputs)) == {"pearson": 0.0}


def test_nearly_constant_numbers_give_no_warning() -> None:
    outputs = np.array([1.0, 1.0 + 3e-16, 1.0 + 1e-15])
    found = score(["pearson", "spearman"], np.arange(3.0), outputs)
    assert 0.8 < found["pearson"] <= 1
    assert found["spearman"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("metrics", "labels", "outputs", "message"),
    [
        (["acuracy"], [0], [[1.0, 0.0]], r"^unknown metric 'acuracy'; did you mean 'accuracy'\?$"),
        (["zzz"], [0], [[1.0, 0.0]], r"^unknown metric 'zzz'; choose from accuracy, f1, matt"),
        (["accuracy"], [], np.zeros((0, 2)), r"^accuracy needs at least one example; .*\(0, 2\)"),
        (["pearson"], [], [], "^pearson needs at least one example"),
        (["accuracy"], [0], [1.0], r"^accuracy takes outputs of shape \[N, classes\], not \(1,\)"),
        (["pearson"], [0], [[1.0, 0.0]], r"^pearson takes outputs of shape \[N\], not \(1, 2\)"),
        (["accuracy"], [0, 1], [[1.0, 0.0]], r"^labels have shape \(2,\), outputs \(1, 2\); give"),
        (["pearson"], [[1.0]], [1.0], r"^labels have shape \(1, 1\), outputs \(1,\); give"),
        (["f1"], [0, -1], [[1.0, 0.0]] * 2, "^label 1 is -1, but outputs have classes 0 to 1;"),
        (["f1"], [2], [[1.0, 0.0]], "^label 0 is 2, but outputs have classes 0 to 1;"),
        (["f1"], [1.0], [[1.0, 0.0]], "^labels have dtype float64; f1 takes integers"),
        (["f1"], [1], [[1.0, 0.0, 0.0]], "^f1 takes 2 classes, not 3; use accuracy"),
        (["accuracy"], [0, 0], [[1.0, 0.0], [np.nan, 0.0]], "^output 1 is .*not finite; train"),
        (["pearson"], [0.0, 1.0], [0.0, np.inf], "^output 1 is inf, which is not finite; train"),
        (["pearson"], [0.0, np.nan], [0.0, 1.0], "^label 1 is nan; pearson takes finite numbers"),
    ],
)
def test_refusals(metrics: list[str], labels: object, outputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        score(metrics, np.array(labels), np.array(outputs))
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_is_found_before_any_is_computed() -> None:
    with pytest.raises(InputError, match="unknown metric 'f3'; choose from"):
        score(["accuracy", "f3"], np.array([0.5]), np.array([[1.0, 0.0]]))


def test_the_import_is_light() -> None:
    code = "import sys, instahide_jax.scores; print({'sklearn', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_metrics_are_glues() -> None:
    assert list(METRICS) == ["accuracy", "f1", "matthews", "pearson", "spearman"]
