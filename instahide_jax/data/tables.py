"""Rows of tables with named columns: .tsv, .csv and .jsonl files."""

import contextlib
import csv
import io
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from instahide_jax.data.archives import read_file
from instahide_jax.data.embedded import decoding
from instahide_jax.errors import InputError, did_you_mean

# The number of a row's first line in the file, and its cells by column.
Row = tuple[int, Mapping[str, Any]]
_SUFFIXES = (".tsv", ".csv", ".jsonl")
_SEPARATORS = {".tsv": "tabs", ".csv": "commas"}
_LIMIT = threading.Lock()  # of the csv module's limit, which is one for the whole process
# What may be a cell in quotes after a blank; inside of quotes another quote would be doubled.
_BLANK_AND_QUOTE = re.compile(r'(?:^|,) +"(?!")', re.MULTILINE)
_LONE_RETURN = re.compile(r"\r(?<=[^\r\n]\r)\r*(?=[^\r\n])")


def read_rows(path: Path, columns: Sequence[str], optional: str | None = None) -> Iterator[Row]:
    """The rows of a UTF-8 file, in order; empty lines are passed over.

    .tsv: a header line, cells separated by tabs, no quoting. .csv: a header line, commas, double
    quotes around cells that need them; where blanks stand between commas and quotes, those after
    any comma belong to no cell. .jsonl: one object per line, whose values may be anything. Cells
    may have any length.

    Args:
      path: the file, whose suffix names its format.
      columns: names that every row must have.
      optional: one of them that objects of .jsonl may lack; its value is then None.

    Raises:
      InputError: another suffix, a file that cannot be read, is damaged or empty, a carriage
        return inside a line, a column that is not there or is there twice, a header that comes
        again (of two columns or more: one may hold its own name).
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path} must end in {', '.join(_SUFFIXES)}: rename or convert it")
    # A quoted cell of a .csv may hold line ends, which the csv module must see as they are.
    newline = "" if path.suffix == ".csv" else None
    data = read_file(path)
    with decoding(str(path), "save it as UTF-8"):
        text = data.decode("utf-8-sig")  # first: of UTF-16 half the bytes look like control ones
    if path.suffix == ".tsv":
        _refuse_lone_return(path, text, text)
    elif path.suffix == ".csv":
        _refuse_lone_return(path, text, _outside_quotes(text))
    with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=newline) as file:
        match path.suffix:
            case ".tsv":
                yield from _delimited(path, enumerate(split_lines(file), 1), columns)
            case ".csv":
                yield from _delimited(path, _csv_rows(path, file.read()), columns)
            case _:
                yield from _jsonl(path, file, columns, optional)


def split_lines(lines: Iterable[str]) -> Iterator[list[str]]:
    """The cells of lines that are separated by tabs, without quoting; none of an empty line."""
    for line in lines:
        whole = line.removesuffix("\n")
        yield whole.split("\t") if whole else []


def _refuse_lone_return(path: Path, text: str, outside: str) -> None:
    """Refuse a carriage return inside a line, which would make two rows of one.

    Args:
      path: the file, for messages.
      text: what it holds.
      outside: as long or shorter, without the line ends that belong to cells.
    """
    found = _LONE_RETURN.search(outside) if "\n" in outside else None  # else it ends all lines
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(
            f"{path}, line {line} has a carriage return within: remove it, or save the file with "
            "line ends of one kind"
        )


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends as they are."""
    return iter(io.StringIO(text, newline=""))


def _has_blanks(text: str) -> bool:
    """Whether blanks stand between a comma and the quotes of the next cell, as in: "a", "b".

    Without quotes no cell of a .csv may hold some, so they are meant to be around the cell.
    """
    if not _BLANK_AND_QUOTE.search(text):
        return False
    # Until the first such cell both read the same rows.
    exact, skipping = (csv.reader(_lines(text), skipinitialspace=skip) for skip in (False, True))
    with contextlib.suppress(csv.Error):  # which whoever reads the rows reports
        while (row := _next_row(exact)) is not None:
            for cell, without in zip(row, _next_row(skipping) or (), strict=False):
                if cell != without and cell.lstrip(" ").startswith('"'):
                    return True
    return False


def _outside_quotes(text: str) -> str:
    """A .csv's text with blanks for line ends in quotes; up to where it cannot be read."""
    if '"' not in text or not re.search(r"\r(?!\n)", text):  # of most files
        return text
    stop = 0

    def lines() -> Iterator[str]:
        nonlocal stop
        for line in _lines(text):
            stop += len(line)
            yield line

    reader = csv.reader(lines(), strict=True, skipinitialspace=_has_blanks(text))
    parts, start = list[str](), 0
    with contextlib.suppress(csv.Error):  # which whoever reads the rows reports
        while _next_row(reader) is not None:
            row = text[start:stop].rstrip("\r\n")
            parts.append(re.sub(r"[\r\n]", " ", row) + text[start + len(row) : stop])
            start = stop
    return "".join(parts)


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, whose cells may have any length; None at the end."""
    with _LIMIT:  # held for one row: other readers of the process keep their limit
        usual = csv.field_size_limit(sys.maxsize)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(usual)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a .csv file, each with the number of its first line."""
    reader = csv.reader(_lines(text), strict=True, skipinitialspace=_has_blanks(text))
    while True:
        first = reader.line_num + 1
        try:
            row = _next_row(reader)
        except csv.Error as error:
            raise InputError(f"{path}, line {first}: {error}: correct the line") from error
        if row is None:
            return
        yield first, row


def _delimited(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[Row]:
    """Rows by column; the first that is not blank is the header, empty ones are passed over."""
    header = next((row for _, row in rows if any(map(str.strip, row))), None)
    if header is None:
        raise InputError(f"{path} is empty: it needs a line with the names of columns, and rows")
    if len(header) == 1 and (missing := [name for name in columns if name not in header]):
        raise InputError(
            f"{path} has one column, {header[0]!r:.80}, and no {missing[0]!r}: separate the cells "
            f"by {_SEPARATORS[path.suffix]}, or name the column that is there"
        )
    check_columns(str(path), header, columns)
    for number, row in rows:
        if row and len(row) != len(header):
            raise InputError(
                f"{path}, line {number} has {len(row)} cells, the header "
                f"{len(header)}: correct the line"
            )
        if len(row) > 1 and row[1:] == header[1:] and row[0].removeprefix("\ufeff") == header[0]:
            raise InputError(
                f"{path}, line {number} is the header again, as where files were put together: "
                "remove the line"
            )
        if row:
            yield number, dict(zip(header, row, strict=True))


def _jsonl(path: Path, file: TextIO, columns: Sequence[str], optional: str | None) -> Iterator[Row]:
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
        names = [name for name, _ in row]
        check_columns(where, names, [c for c in columns if c != optional or c in names])
        yield number, dict.fromkeys(columns) | dict(row)


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, those that repeat a name too."""


def check_columns(where: str, found: Sequence[str], columns: Iterable[str]) -> None:
    """Refuse names of columns among which a wanted one is missing or stands twice."""
    for name in columns:
        if name not in found:
            raise InputError(f"{where} has no column {name!r}; {did_you_mean(name, found)}")
        if found.count(name) > 1:
            raise InputError(f"{where} has {found.count(name)} columns {name!r}: rename one")
