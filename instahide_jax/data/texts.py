"""Labelled texts in memory: from a table (.tsv, .csv, .jsonl) or a prepared TFDS split.

TFDS sets must be stored as array_record, which is read without TensorFlow.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instahide_jax.data.embedded import label_message
from instahide_jax.data.labels import UNLABELLED, Cell, cell, class_labels, number_labels
from instahide_jax.data.tables import read_rows
from instahide_jax.data.tfds_io import check_record, open_builder, reading, split_files
from instahide_jax.errors import InputError, did_you_mean
from instahide_jax.metrics import progress

_log = logging.getLogger(__name__)
# Records read at once. One by one takes the longer the more a file holds: measured 600 a second of
# MNLI's 392,702 pairs, in batches 12,000.
_BATCH = 4096


@dataclass(frozen=True, eq=False)
class Texts:
    """Labelled texts, or pairs of texts, in memory.

    Attributes:
      first: [N] texts, of a pair the first; may be empty strings.
      second: [N] texts, None unless texts come in pairs.
      labels: [N] int32 in [0, num_classes), or float32 for regression. Texts read with
        `unlabelled=True` may have the label -1: none is known.
      class_names: one name per class; empty for regression.
      identity: hexadecimal SHA-256 over texts and labels in their order. It does not cover the
        names of the classes or where the texts came from.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: np.ndarray
    class_names: tuple[str, ...]
    identity: str

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for regression."""
        return len(self.class_names) or None


def make_texts(
    first: Sequence[str],
    second: Sequence[str] | None,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    unlabelled: bool = False,
) -> Texts:
    """`Texts` from parts: labels become int32 or float32, the identity is computed.

    Args:
      first: [N] texts.
      second: [N] texts, or None.
      labels: [N], integers in [0, len(class_names)), or finite numbers for regression.
      class_names: one name per class; empty for regression.
      unlabelled: accept the label -1, for texts that nobody trains or scores on.

    Raises:
      InputError: no text, lengths that differ, a text that is no string or no Unicode, names of
        classes that repeat, labels of another shape or dtype, outside the classes or not finite,
        or hidden (-1; for regression: all of them) without `unlabelled`.
    """
    labels = np.asarray(labels)
    _check_strings("class names", class_names)
    names = tuple(class_names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"class {twice!r} is named twice: name every class once")
    parts = [("texts", first)] if second is None else [("first texts", first), ("second", second)]
    for what, part in parts:
        _check_strings(what, part)
    if labels.shape != (len(first),) or (second is not None and len(second) != len(first)):
        lengths = " and ".join(f"{len(part)} {what}" for what, part in parts)
        raise InputError(f"{lengths} but labels of shape {labels.shape}: need one label per text")
    if not len(first):
        raise InputError("there is no text: give at least one")
    checked = (
        _class_labels(labels, len(names), unlabelled) if names else _numbers(labels, unlabelled)
    )
    firsts = tuple(first)
    seconds = None if second is None else tuple(second)
    return Texts(firsts, seconds, checked, names, _identity(firsts, seconds, checked))


def _check_strings(what: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        raise InputError(f"{what} are the single string {values[:20]!r}: give a list of strings")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{what}: number {index} is {value!r:.40}, no string: convert it")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a pair of surrogates, as JSON can write it
            raise InputError(
                f"{what}: number {index} holds {value[error.start]!a} at {error.start}, which is "
                "no Unicode character: remove it"
            ) from None


def _class_labels(labels: np.ndarray, num_classes: int, unlabelled: bool) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have dtype {labels.dtype}: convert to integers")
    wrong = (labels < (UNLABELLED if unlabelled else 0)) | (labels >= num_classes)
    if wrong.any():
        index = int(np.argmax(wrong))
        if labels[index] == UNLABELLED:
            raise InputError(
                f"label {index} is -1, which means hidden: leave the text out, or pass "
                "unlabelled=True for texts that nobody trains or scores on"
            )
        raise InputError(label_message(index, int(labels[index]), num_classes))
    return labels.astype(np.int32)


def _numbers(labels: np.ndarray, unlabelled: bool) -> np.ndarray:
    if labels.dtype.kind not in "iuf":
        raise InputError(f"labels have dtype {labels.dtype}: convert to numbers, or name classes")
    with np.errstate(over="ignore"):  # reported as infinite
        numbers = labels.astype(np.float32)
    if not np.isfinite(numbers).all():
        index = int(np.argmin(np.isfinite(numbers)))
        raise InputError(f"label {index} is {labels[index]}: must be finite; correct or remove it")
    if not unlabelled and (numbers == UNLABELLED).all():
        raise InputError(
            "all labels are -1, which means hidden: give the labels, or pass unlabelled=True for "
            "texts that nobody trains or scores on"
        )
    return numbers


def _identity(first: tuple[str, ...], second: tuple[str, ...] | None, labels: np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in (first,) if second is None else (first, second):
        digest.update(f"{len(part)} texts ".encode())
        for text in part:
            data = text.encode()
            digest.update(f"{len(data)} ".encode())  # the length first: no other texts read alike
            digest.update(data)
    digest.update(f"{labels.dtype.str} ".encode())
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


# --- Tables --------------------------------------------------------------------------------------


def read_table(
    path: str | Path,
    *,
    text: str,
    label: str | None,
    second: str | None = None,
    class_names: Sequence[str] | None = None,
    regression: bool = False,
    drop_unlabelled: bool = False,
) -> Texts:
    """Texts of a UTF-8 file with named columns, in its order.

    .tsv: a header line, cells separated by tabs, no quoting (as GLUE's files have it). .csv: a
    header line, commas, double quotes around cells that need them. .jsonl: one object per line.
    Empty lines are passed over.

    A label that is empty or stands for nothing (-, ?, nan, NULL, N/A, None and the like) is an
    error, unless `class_names` has it. So is -1 beside `class_names`, as data sets number hidden
    labels; without them it is a class like any other. Integers may be written as decimals: 1.0 is
    1. Texts are taken as they stand.

    Args:
      path: the file, whose suffix names its format.
      text: the column of the texts, of pairs the first.
      label: the column of the labels; None where texts have none: all labels are then -1 as
        float32, as for regression.
      second: the column of the second texts of pairs.
      class_names: the classes, in order; a label is one of them, or the number of one. None: the
        distinct labels that occur, sorted (as numbers where all are integers); two that
        differ by case alone are an error. Give the training set's names for every other file, in
        which a class may be absent.
      regression: labels are numbers, and there are no classes.
      drop_unlabelled: leave out rows without a label, in .jsonl also objects without that member,
        and log a warning that says how many.

    Raises:
      InputError: no such file, another suffix, a damaged file, a column that is not there or is
        named for two of text, second and label, a text that is missing or no string, a label that
        is missing, no class or no number, no row.
    """
    path = Path(path)
    _refuse_shared(text, second, label, "column")
    if regression and class_names is not None:
        raise InputError(
            f"class_names are {tuple(class_names)} but labels are numbers: leave out class_names "
            "or regression"
        )
    texts: list[list[str]] = [[] for _ in (text, second)]
    cells: list[Cell] = []
    wanted = [column for column in (text, second, label) if column is not None]
    rows = 0
    optional = label if drop_unlabelled else None
    for line, row in read_rows(path, wanted, optional):
        rows += 1
        if label is not None:
            found = cell(f"{path}, line {line}", label, row[label])
            if found.is_missing(class_names):
                if not drop_unlabelled:
                    found.refuse_missing(regression)
                continue
            cells.append(found)
        for part, column in zip(texts, (text, second), strict=True):
            if column is not None:
                part.append(_text(path, line, column, row[column]))
    if not rows:
        raise InputError(f"{path} holds no row: give at least one")
    _report_dropped(str(path), rows - len(texts[0]), rows)
    names: tuple[str, ...] = ()
    if label is None:
        labels = np.full(rows, UNLABELLED, np.float32)
    elif regression:
        labels = number_labels(cells)
    else:
        labels, names = class_labels(path, cells, class_names)
    seconds = None if second is None else texts[1]
    return make_texts(texts[0], seconds, labels, names, unlabelled=label is None)


def _refuse_shared(text: str, second: str | None, label: str | None, what: str) -> None:
    """Refuse one column or feature for two purposes: a text would be its own label."""
    if second == text:
        raise InputError(
            f"text and second are both {text!r}: name another {what} as second, or leave it out"
        )
    if label is not None and label in (text, second):
        other = "text" if label == text else "second"
        raise InputError(
            f"{other} and label are both {label!r}: name another {what} as label, or as {other}"
        )


def _text(path: Path, line: int, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"{path}, line {line}: {column} is {value!r:.40}: expected a string; correct the line"
        )
    return value


def _report_dropped(what: str, count: int, total: int) -> None:
    """Say how many rows are left out.

    Raises:
      InputError: if that leaves none.
    """
    if count == total:
        raise InputError(
            f"{what}: none of {total} rows has a label; label the rows, or set label=None where "
            "labels are not needed (public texts)"
        )
    if count:
        _log.warning("%s: left out %d of %d rows, which have no label", what, count, total)


# --- TFDS ----------------------------------------------------------------------------------------


def texts_from_tfds(
    name: str,
    split: str,
    *,
    text: str,
    label: str | None,
    second: str | None = None,
    data_dir: str | None = None,
    unlabelled: bool = False,
    drop_unlabelled: bool = False,
) -> Texts:
    """Texts of a prepared TFDS split, in its order.

    Args:
      name: `name`, `name/config`, `name:version` or `name/config:version`, as for
        `tfds_io.open_split`.
      split: a split or a TFDS slice of one, such as "train" or "train[:80%]".
      text: the feature of the texts, of pairs the first.
      label: the feature of the labels: a ClassLabel, or floating for regression. None where texts
        have none: all labels are then -1 as float32, as for regression.
      second: the feature of the second texts of pairs.
      data_dir: folder of prepared sets; default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      unlabelled: accept labels of -1, as GLUE's test splits have them, for texts that nobody trains
        or scores on.
      drop_unlabelled: leave out examples whose class is -1 (those of SNLI on which the annotators
        did not agree) or whose number is NaN, and log a warning that says how many.

    Raises:
      InputError: one feature for two of text, second and label; a data set, config, version
        or split that is not prepared (with the command that prepares it); another storage format
        than array_record; a feature that is not there or of another kind; a damaged record; or
        whatever `make_texts` finds.
    """
    import tensorflow_datasets as tfds

    _refuse_shared(text, second, label, "feature")
    builder = open_builder(name, data_dir)
    columns = [column for column in (text, second) if column is not None]
    names = _tfds_classes(name, builder.info.features, columns, label)
    total, _ = split_files(builder, name, split)
    # Images beside the texts are not read: decoding them would take most of the time.
    images = [n for n, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    decoders = {image: tfds.decode.SkipDecoding() for image in images}
    source = builder.as_data_source(split, decoders=decoders or None)
    texts: dict[str, list[str]] = {column: [] for column in columns}
    labels: list[float] = []
    starts = range(0, total, _BATCH)
    for start in progress(starts, f"{name}[{split}]", len(starts), " batches"):
        stop = min(start + _BATCH, total)
        with reading(source, f"{name}[{split}]", start, stop):
            records = source.__getitems__(range(start, stop))
        for index, record in enumerate(records, start):
            with reading(source, f"{name}[{split}]", index, index + 1):
                check_record(record)
                for column in columns:
                    texts[column].append(record[column].decode())
            labels.append(UNLABELLED if label is None else record[label])
    values = np.array(labels, np.int64 if names else np.float32)
    hidden = values == UNLABELLED if names else np.isnan(values)
    what = f"{name}[{split}]"
    if drop_unlabelled:
        _report_dropped(what, int(hidden.sum()), total)
        kept = np.flatnonzero(~hidden)
        texts = {column: [part[i] for i in kept] for column, part in texts.items()}
        values = values[kept]
    elif hidden.any() and not unlabelled:
        raise InputError(
            f"{what}: label {np.argmax(hidden)} is {values[np.argmax(hidden)]}, which is no label: "
            "choose a split with labels, or set drop_unlabelled=True to leave out texts without "
            "one, or unlabelled=True where labels are not needed (public texts)"
        )
    return make_texts(
        texts[text],
        None if second is None else texts[second],
        values,
        names,
        unlabelled=unlabelled or label is None,
    )


def _tfds_classes(
    name: str, features: Any, columns: Sequence[str], label: str | None
) -> tuple[str, ...]:
    """The names of the classes, () for regression, after a look at all features asked for."""
    import tensorflow_datasets as tfds

    known = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    for column in (*columns, *([] if label is None else [label])):
        if column not in known:
            raise InputError(f"{name} has no feature {column!r}; {did_you_mean(column, known)}")
    for column in columns:
        if not isinstance(features[column], tfds.features.Text):
            raise InputError(f"{column!r} of {name} is {features[column]}: expected Text")
    if label is None:
        return ()
    feature = features[label]
    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes:
        return tuple(feature.names)
    if feature.shape == () and np.issubdtype(feature.np_dtype, np.floating):
        return ()
    raise InputError(f"{label!r} of {name} is {feature}: expected a ClassLabel or a float")
