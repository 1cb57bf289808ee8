"""The nine tasks of GLUE.

Names, features and classes are those of TFDS' builder (glue 2.0.0, in
tensorflow_datasets/text/glue.py), which itself needs TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from instahide_jax.errors import InputError, did_you_mean

VERSION = "2.0.0"


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE as TFDS names it.

    Attributes:
      name: TFDS' name of the configuration, such as sst2; the data set is glue/NAME.
      text: the feature of the texts, of pairs the first.
      second: the feature of the second texts of pairs.
      class_names: in the order of their numbers; empty for regression.
      metrics: what GLUE reports, by the names of `scores.METRICS`; the first is the main one.
      sizes: split -> number of examples that GLUE publishes.
      folder: where GLUE's archives have the files.
      columns: the columns of GLUE's files that hold the texts.
      label_column: the one that holds the labels.
      label: the feature of the labels.
    """

    name: str
    text: str
    second: str | None
    class_names: tuple[str, ...]
    metrics: tuple[str, ...]
    sizes: Mapping[str, int]
    folder: str
    columns: tuple[str, ...]
    label_column: str = "label"
    label: str = "label"

    @property
    def texts(self) -> tuple[str, ...]:
        """The one or two features that hold texts."""
        return (self.text,) if self.second is None else (self.text, self.second)

    @property
    def validation(self) -> tuple[str, ...]:
        """The splits with labels to validate on: two for mnli, matched and mismatched."""
        return tuple(split for split in self.sizes if split.startswith("validation"))

    @property
    def test(self) -> tuple[str, ...]:
        """The splits whose labels GLUE hides: they are -1."""
        return tuple(split for split in self.sizes if split.startswith("test"))


def _sizes(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


_PAIR = ("sentence1", "sentence2")
_TASKS = (
    GlueTask(
        name="cola",
        text="sentence",
        second=None,
        class_names=("unacceptable", "acceptable"),
        metrics=("matthews",),
        sizes=_sizes(8_551, 1_043, 1_063),
        folder="CoLA",
        columns=("sentence",),
        label_column="is_acceptable",
    ),
    GlueTask(
        name="sst2",
        text="sentence",
        second=None,
        class_names=("negative", "positive"),
        metrics=("accuracy",),
        sizes=_sizes(67_349, 872, 1_821),
        folder="SST-2",
        columns=("sentence",),
    ),
    GlueTask(
        name="mrpc",
        text="sentence1",
        second="sentence2",
        class_names=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        sizes=_sizes(3_668, 408, 1_725),
        folder="MRPC",
        columns=("#1 String", "#2 String"),
        label_column="Quality",
    ),
    GlueTask(
        name="qqp",
        text="question1",
        second="question2",
        class_names=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        sizes=_sizes(363_846, 40_430, 390_965),
        folder="QQP",
        columns=("question1", "question2"),
        label_column="is_duplicate",
    ),
    GlueTask(
        name="stsb",
        text="sentence1",
        second="sentence2",
        class_names=(),
        metrics=("pearson", "spearman"),
        sizes=_sizes(5_749, 1_500, 1_379),
        folder="STS-B",
        columns=_PAIR,
        label_column="score",
    ),
    GlueTask(
        name="mnli",
        text="premise",
        second="hypothesis",
        class_names=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        sizes={
            "train": 392_702,
            "validation_matched": 9_815,
            "validation_mismatched": 9_832,
            "test_matched": 9_796,
            "test_mismatched": 9_847,
        },
        folder="MNLI",
        columns=_PAIR,
        label_column="gold_label",
    ),
    GlueTask(
        name="qnli",
        text="question",
        second="sentence",
        class_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        sizes=_sizes(104_743, 5_463, 5_463),
        folder="QNLI",
        columns=("question", "sentence"),
    ),
    GlueTask(
        name="rte",
        text="sentence1",
        second="sentence2",
        class_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        sizes=_sizes(2_490, 277, 3_000),
        folder="RTE",
        columns=_PAIR,
    ),
    GlueTask(
        name="wnli",
        text="sentence1",
        second="sentence2",
        class_names=("not_entailment", "entailment"),
        metrics=("accuracy",),
        sizes=_sizes(635, 71, 146),
        folder="WNLI",
        columns=_PAIR,
    ),
)
GLUE: dict[str, GlueTask] = {task.name: task for task in _TASKS}


def glue_task(name: str) -> GlueTask:
    """The task of a name such as sst2.

    Raises:
      InputError: unknown name.
    """
    if name not in GLUE:
        raise InputError(f"GLUE has no task {name!r}; {did_you_mean(name.lower(), list(GLUE))}")
    return GLUE[name]
