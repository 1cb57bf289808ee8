"""Rows of tables with named columns: .tsv, .csv and .jsonl files."""

import csv
import difflib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from instahide_jax.data.archives import read_file
from instahide_jax.data.embedded import decoding
from instahide_jax.errors import InputError

# The number of a row's first line in the file, and its cells by column.
Row = tuple[int, Mapping[str, Any]]
_LIMIT = threading.Lock()  # of the csv module's limit, which is one for the whole process


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a UTF-8 file, in order; empty lines are passed over.

    .tsv: a header line, cells separated by tabs, no quoting. .csv: a header line, commas, double
    quotes around cells that need them. .jsonl: one object per line, whose values may be anything.
    Cells may have any length.

    Args:
      path: the file, whose suffix names its format.
      columns: names that every row must have.

    Raises:
      InputError: another suffix, a file that cannot be read or is damaged, a column that is not
        there or is there twice.
    """
    if path.suffix not in _READERS:
        raise InputError(f"{path} must end in {', '.join(_READERS)}: rename or convert it")
    # A quoted cell of a .csv may hold line ends, which the csv module must see as they are.
    newline = "" if path.suffix == ".csv" else None
    data = io.BytesIO(read_file(path))
    with (
        decoding(str(path), "save it as UTF-8"),
        io.TextIOWrapper(data, encoding="utf-8-sig", newline=newline) as file,
    ):
        yield from _READERS[path.suffix](path, file, columns)


def did_you_mean(name: str, known: Sequence[str], otherwise: str | None = None) -> str:
    """The remedy for an unknown name: the nearest known one, else `otherwise`, else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return otherwise or f"choose from {', '.join(known) or 'none'}"


def split_lines(lines: Iterable[str]) -> Iterator[list[str]]:
    """The cells of lines that are separated by tabs, without quoting; none of an empty line."""
    for line in lines:
        whole = line.removesuffix("\n")
        yield whole.split("\t") if whole else []


def _tsv(path: Path, file: TextIO, columns: Sequence[str]) -> Iterator[Row]:
    return _delimited(path, enumerate(split_lines(file), 1), columns)


def _csv(path: Path, file: TextIO, columns: Sequence[str]) -> Iterator[Row]:
    return _delimited(path, _csv_rows(path, file), columns)


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Rows of a .csv file, each with the number of its first line."""
    reader = csv.reader(file, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            with _LIMIT:  # held for one row: other readers of the process keep their limit
                usual = csv.field_size_limit(sys.maxsize)
                try:
                    row = next(reader, None)
                finally:
                    csv.field_size_limit(usual)
        except csv.Error as error:
            raise InputError(f"{path}, line {first}: {error}: correct the line") from error
        if row is None:
            return
        yield first, row


def _delimited(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[Row]:
    """Rows by column; the first is the header, empty ones are passed over."""
    _, header = next(rows, (1, []))
    _check_columns(str(path), header, columns)
    for number, row in rows:
        if row and len(row) != len(header):
            raise InputError(
                f"{path}, line {number} has {len(row)} cells, the header "
                f"{len(header)}: correct the line"
            )
        if row:
            yield number, dict(zip(header, row, strict=True))


def _jsonl(path: Path, file: TextIO, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON: {error}; correct the line") from error
        if not isinstance(row, _Pairs):
            raise InputError(f"{where} is {row!r:.40}: expected an object; correct the line")
        _check_columns(where, [name for name, _ in row], columns)
        yield number, dict(row)


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, those that repeat a name too."""


_READERS: Mapping[str, Callable[[Path, TextIO, Sequence[str]], Iterator[Row]]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
}


def _check_columns(where: str, found: list[str], columns: Sequence[str]) -> None:
    for name in columns:
        if name not in found:
            raise InputError(f"{where} has no column {name!r}; {did_you_mean(name, found)}")
        if found.count(name) > 1:
            raise InputError(f"{where} has {found.count(name)} columns {name!r}: rename one")
