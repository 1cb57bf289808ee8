"""A reader of GLUE's own files, which treats odd rows as TFDS' builder does."""

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from instahide_jax.data.embedded import decoding
from instahide_jax.data.glue import GlueTask
from instahide_jax.data.labels import UNLABELLED, as_integer, as_number
from instahide_jax.data.tables import check_columns, split_lines
from instahide_jax.errors import InputError, did_you_mean, how_many

FILES = {
    "train": "train.tsv",
    "validation": "dev.tsv",
    "test": "test.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
# Microsoft's files of mrpc, whose training pairs GLUE divides by a list of pairs of IDs.
_MSR_TRAIN, _MSR_TEST = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"
_MSR_DEV_IDS = "mrpc_dev_ids.tsv"
_MSR_ID_COLUMNS = ("#1 ID", "#2 ID")
_NO_AGREEMENT = "-"  # the label of MNLI's pairs on which the annotators did not agree
_COLA_CELLS = 4  # source, label, the author's mark, sentence

Place: TypeAlias = Path | zipfile.Path  # a folder or file, on the disk or in a zip file
Example: TypeAlias = dict[str, str | int | float]  # the text features, label and idx
# The number of a row's line, and its cells by column, None where the row ends before.
Row: TypeAlias = tuple[int, Mapping[str, str | None]]


def read_glue(task: GlueTask, source: Path) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """Read GLUE's own files of a task, as TFDS' builder would.

    Rows that end before a text or a label, or whose label is empty or a dash, are left out; test
    files without labels give labels of -1. An example's `idx` is the number of its row in the file,
    from 0, left-out rows included. sst2 may also come as `sentence<TAB>label` without a header,
    whose test labels are kept.

    Args:
      task: one of `glue.GLUE`.
      source: a folder or zip file with train.tsv and, where they are there, the files of the other
        splits, directly or below GLUE's name of the task (SST-2, glue_data/SST-2). For mrpc also
        Microsoft's msr_paraphrase_train.txt and msr_paraphrase_test.txt beside GLUE's
        mrpc_dev_ids.tsv.

    Returns:
      split -> examples in the order of the file, and notes in words: files that are not there,
      rows left out, sizes that are not GLUE's.

    Raises:
      InputError: no such source, no training file, a damaged file, a column or label that is not
        GLUE's, a split without examples.
    """
    with _opened(source) as root:
        place = _find(task, root, source)
        is_msr = task.name == "mrpc" and not (place / FILES["train"]).is_file()
        splits, notes = _read_msr(task, place) if is_msr else _read_files(task, place)
    for split, examples in splits.items():
        if not examples:
            raise InputError(f"{source}: split {split} of {task.name} has no example; restore it")
    return splits, (*notes, *_size_notes(task, splits))


@contextmanager
def _opened(source: Path) -> Iterator[Place]:
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise InputError(f"--source {source} does not exist; give GLUE's folder or zip file")
    with decoding(str(source), "give GLUE's folder or zip file"):
        file = zipfile.ZipFile(source)
    with file:
        yield zipfile.Path(file)


def _find(task: GlueTask, root: Place, source: Path) -> Place:
    """The folder of the training file."""
    names = [FILES["train"], *([_MSR_TRAIN] if task.name == "mrpc" else [])]
    for place in (root, root / task.folder, root / "glue_data" / task.folder):
        if any((place / name).is_file() for name in names):
            return place
    raise InputError(
        f"{source} holds no {' or '.join(names)}, nor does {task.folder} in it; "
        f"give the folder or zip file of GLUE's {task.folder}"
    )


def _size_notes(task: GlueTask, splits: Mapping[str, list[Example]]) -> list[str]:
    found = {split: len(examples) for split, examples in splits.items()}
    odd = [
        f"{split} has {size} examples, GLUE's {task.sizes[split]}"
        for split, size in found.items()
        if size != task.sizes[split]
    ]
    return odd or ["as many examples as GLUE publishes"]


def _read_files(task: GlueTask, place: Place) -> tuple[dict[str, list[Example]], list[str]]:
    splits: dict[str, list[Example]] = {}
    notes = []
    for split in task.sizes:
        file = place / FILES[split]
        if not file.is_file():
            notes.append(f"no {FILES[split]}, so no split {split}")
            continue
        rows = _cola_rows(file) if task.name == "cola" and split != "test" else _rows(task, file)
        splits[split], left_out = _examples(task, rows, file, is_test=split in task.test)
        notes += left_out
    return splits, notes


@contextmanager
def _lines(file: Place) -> Iterator[io.TextIOWrapper]:
    """The lines of a UTF-8 file, with the errors of the disk and of damage as InputErrors."""
    with (
        decoding(str(file), "restore the file"),
        io.TextIOWrapper(file.open("rb"), encoding="utf-8-sig") as lines,
    ):
        yield lines


def _cola_rows(file: Place) -> Iterator[Row]:
    """Rows of CoLA's training and validation files, which have no header."""
    with _lines(file) as lines:
        for number, cells in enumerate(split_lines(lines), 1):
            if len(cells) < _COLA_CELLS:
                raise InputError(
                    f"{file}, line {number} has {len(cells)} cells, expected {_COLA_CELLS}; "
                    "restore the file"
                )
            yield number, {"sentence": cells[3], "is_acceptable": cells[1]}


def _rows(task: GlueTask, file: Place, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a file with a header, or of a file `sentence<TAB>label` without one."""
    with _lines(file) as lines:
        rows: Iterator[tuple[int, list[str]]] = enumerate(split_lines(lines), 1)
        first, header = next(rows, (1, []))
        if task.name == "sst2" and len(header) == 2 and header[1] in ("0", "1"):
            rows = chain([(first, header)], rows)
            header = ["sentence", "label"]
        label = (task.label_column,) if task.label_column in header else ()
        check_columns(str(file), header, (*task.columns, *needed, *label))
        for number, cells in rows:
            if cells:  # empty lines do not count
                row: dict[str, str | None] = dict.fromkeys(header)
                yield number, row | dict(zip(header, cells, strict=False))


def _examples(
    task: GlueTask, rows: Iterable[Row], file: Place, *, is_test: bool
) -> tuple[list[Example], list[str]]:
    """The examples of a file, and a note if rows were left out."""
    examples = []
    count = 0
    for index, row in enumerate(rows):
        count += 1
        example = _example(task, index, row, file, is_test=is_test)
        if example is not None:
            examples.append(example)
    left_out = count - len(examples)
    note = f"left out {how_many(left_out, 'row')} of {file.name} without text or label"
    return examples, [note] if left_out else []


def _example(
    task: GlueTask, index: int, found: Row, file: Place, *, is_test: bool
) -> Example | None:
    """One example, None where the row lacks a text or its label."""
    line, row = found
    if task.label_column in row:
        label = _label(task, row[task.label_column], f"{file}, line {line}")
    elif is_test:
        label = UNLABELLED
    else:
        raise InputError(
            f"{file} has no column {task.label_column!r}; {did_you_mean(task.label_column, [*row])}"
        )
    example: Example = {}
    for feature, column in zip(task.texts, task.columns, strict=True):
        text = row[column]
        if text is None:
            return None
        example[feature] = text
    return None if label is None else example | {task.label: label, "idx": index}


def _label(task: GlueTask, value: str | None, where: str) -> int | float | None:
    value = (value or "").strip()
    if value in ("", _NO_AGREEMENT):
        return None
    if not task.class_names:
        number = as_number(value)
        if number is None:
            raise InputError(f"{where}: the label {value!r} is no finite number; restore the file")
        return number
    numbers = {str(number): number for number in range(len(task.class_names))}
    numbers |= {name: number for number, name in enumerate(task.class_names)}
    label = numbers.get(as_integer(value))
    if label is None:
        raise InputError(
            f"{where}: the label {value!r} is no class of {task.name}; "
            f"{did_you_mean(value, task.class_names)}"
        )
    return label


def _read_msr(task: GlueTask, place: Place) -> tuple[dict[str, list[Example]], list[str]]:
    """mrpc from Microsoft's files, divided as GLUE divides them."""
    ids = place / _MSR_DEV_IDS
    if not ids.is_file():
        raise InputError(
            f"{place / _MSR_TRAIN} needs {_MSR_DEV_IDS} beside it, GLUE's list of the pairs to "
            "validate on; add it, or give GLUE's train.tsv and dev.tsv"
        )
    with _lines(ids) as lines:
        chosen = {tuple(cells[:2]) for cells in split_lines(lines)}
    rows = list(_rows(task, place / _MSR_TRAIN, _MSR_ID_COLUMNS))
    examples, notes = _examples(task, rows, place / _MSR_TRAIN, is_test=False)
    splits: dict[str, list[Example]] = {"train": [], "validation": []}
    for example in examples:
        _, row = rows[int(example["idx"])]
        is_dev = tuple(row[column] for column in _MSR_ID_COLUMNS) in chosen
        splits["validation" if is_dev else "train"].append(example)
    test = place / _MSR_TEST
    if not test.is_file():
        return splits, [*notes, f"no {_MSR_TEST}, so no split test"]
    # The file has labels, but GLUE hides them.
    hidden = [
        (line, {column: row[column] for column in task.columns}) for line, row in _rows(task, test)
    ]
    splits["test"], left_out = _examples(task, hidden, test, is_test=True)
    return splits, [*notes, *left_out]
