"""Rows of tables with named columns: .tsv, .csv and .jsonl files."""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from instahide_jax.data.archives import read_file
from instahide_jax.data.embedded import decoding
from instahide_jax.errors import InputError

# The number of a row's (last) line in the file, and its cells by column.
Row = tuple[int, Mapping[str, Any]]


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a UTF-8 file, in order; empty lines are passed over.

    .tsv: a header line, cells separated by tabs, no quoting. .csv: a header line, commas, double
    quotes around cells that need them. .jsonl: one object per line, whose values may be anything.

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


def _tsv(path: Path, file: TextIO, columns: Sequence[str]) -> Iterator[Row]:
    return _delimited(path, csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), columns)


def _csv(path: Path, file: TextIO, columns: Sequence[str]) -> Iterator[Row]:
    return _delimited(path, csv.reader(file, strict=True), columns)


def _delimited(path: Path, rows: Any, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a `csv.reader`, whose first is the header."""
    try:
        header: list[str] = next(rows, [])
        _check_columns(str(path), header, columns)
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(
                    f"{path}, line {rows.line_num} has {len(row)} cells, the header "
                    f"{len(header)}: correct the line"
                )
            if row:
                yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}: correct the line") from error


def _jsonl(path: Path, file: TextIO, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}; correct the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is {row!r:.40}: expected an object; correct the line")
        _check_columns(where, list(row), columns)
        yield number, row


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
