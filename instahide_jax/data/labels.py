"""Labels as they stand in files: which cells hold none, which classes and numbers are meant."""

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from instahide_jax.data.spelling import appearance, visible
from instahide_jax.errors import InputError, did_you_mean

UNLABELLED = -1  # the label of a text whose label is hidden or unknown, as in TFDS
# What programs and people write into a cell for which they have nothing: words and marks, in any
# case, brackets and quotes; SNLI and MNLI have a dash where the annotators did not agree.
_NOTHING = re.compile(
    r"(nan|nat|null|nil|none|undef(ined)?|missing([ _-](label|annotation|value)s?)?|empty|blank|tbd"
    r"|na|n\s*[./\\]\s*[ad]|not[ _-](available|applicable|a[ _-]number)"
    r"|(un|not[ _-])(labell?ed|annotated)|no[ _-]?(label|annotation|data|value)s?)?"
)
# Likewise, of C, Python and R (no number), databases, and spreadsheets.
_NOTHING_OF_PROGRAMS = re.compile(
    r"[+-]?nan(\(\w*)?|[+-]?1\.#(?!inf)\w+|(np|numpy|pd|pandas|math)\.(nan|nat|na)|na_\w+_|\\+n"
    r"|#n/?a( n/a)?|#nv|#[a-z]/[a-z]|#getting_data|#([^\W1-9]|/)+[!?]|err:\d+"
)
_INFINITY = re.compile(r"[+-]?(inf(inity)?|1\.#inf0*|\N{INFINITY})")
_QUOTES = "\"'`<>"  # beside those of Unicode's categories
_MARKS = ".?*~/\N{MIDDLE DOT}\N{BULLET}\N{MINUS SIGN}"
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST = 18  # digits of an integer that is written with a point or an exponent


@dataclass(frozen=True)
class Cell:
    """A label as it stands in a file.

    Attributes:
      where: file and line, for messages.
      column: likewise.
      text: without spaces around it; of JSON values their text.
    """

    where: str
    column: str
    text: str

    @property
    def value(self) -> str:
        """The text; of an integer the one way to write it."""
        return as_integer(self.text)

    def is_missing(self, class_names: Sequence[str] | None) -> bool:
        """Whether the cell says that there is no label, and is none of the classes.

        Beside named classes also where it is -1, as data sets number hidden labels.
        """
        hidden = class_names is not None and self.value == str(UNLABELLED)
        if not hidden and not says_nothing(self.text):
            return False
        names = () if class_names is None else as_names(class_names)
        return self.text not in names and self.value not in map(as_integer, names)

    def refuse_missing(self, regression: bool) -> NoReturn:
        """Say that there is no label, and what to do."""
        found = f"{self.text!r:.40}, which is no label" if self.text else "empty"
        listed = "" if regression else ", or list it in class_names where it is a class"
        raise InputError(
            f"{self.where}: {self.column} is {found}: fill it in, or set drop_unlabelled=True to "
            f"leave out rows without a label{listed}"
        )


def cell(where: str, column: str, value: Any) -> Cell:
    """The cell of a value as a table gives it: a string, or any value of JSON.

    Raises:
      InputError: for true, false, a list or an object.
    """
    if value is None:
        return Cell(where, column, "null")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(
            f"{where}: {column} is {value!r:.40}: expected a number or a class name; write one"
        )
    return Cell(where, column, str(value).strip())


@functools.lru_cache(maxsize=1024)
def says_nothing(text: str) -> bool:
    """Whether a text stands for no label at all."""
    bare = _bare(text)
    return bool(
        _NOTHING.fullmatch(bare.strip("".join(filter(_is_mark, set(bare)))))
        or _NOTHING_OF_PROGRAMS.fullmatch(bare)
    )


@functools.lru_cache(maxsize=1024)
def _bare(text: str) -> str:
    """A text in lower case, without brackets, quotes and blanks around it; none is invisible."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    seen = visible(folded)
    return seen.strip("".join(filter(_is_bracket, set(seen))))


def _is_bracket(char: str) -> bool:
    """Whether a character is a bracket, a quote, or blank."""
    kinds = {"Ps", "Pe", "Pi", "Pf", "Zs", "Cc"}
    return char in _QUOTES or unicodedata.category(char) in kinds


def _is_mark(char: str) -> bool:
    """Whether a character is one of those that fill a cell: also a dash or an underscore."""
    return char in _MARKS or unicodedata.category(char) in {"Pd", "Pc"} or _is_bracket(char)


def as_integer(text: str) -> str:
    """An integer without plus, point and exponent: "1.0", "+1" and "1e0" become "1".

    What is no integer stays as it is, and so does what has zeros in front, as codes have ("01").
    """
    if not _INTEGER.fullmatch(text):
        return text
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent of many digits
        return text
    if number.adjusted() > _LARGEST or number != number.to_integral_value():
        return text
    return str(int(number))


def as_number(text: str) -> float | None:
    """The finite number that a text writes in digits; None for any other text."""
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def as_names(class_names: Sequence[Any]) -> tuple[str, ...]:
    """Names of classes as texts: integers are named as they are written.

    Raises:
      InputError: for a single string or what has no order, and for a name of another kind.
    """
    if isinstance(class_names, str) or not isinstance(class_names, Sequence | np.ndarray):
        raise InputError(f"class_names are {class_names!r:.40}: give a list of names, in order")
    for name in class_names:
        if isinstance(name, bool) or not isinstance(name, str | Integral):
            raise InputError(
                f"class_names hold {name!r:.40}, neither a text nor an integer: write it in quotes"
            )
    return tuple(map(str, class_names))


def class_labels(
    path: Path, cells: Sequence[Cell], class_names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of classes, int64 [N], and the classes' names.

    Args:
      path: the file, for messages.
      cells: none of which is missing.
      class_names: the classes, in order; a label is one of them, or the number of one where none of
        them is itself a number. None: the labels that occur, sorted (as numbers where all are
        integers).

    Raises:
      InputError: a label that is no class; without names also numbers that are no integers, and
        one integer or name in two spellings, be it by case or quotes alone.
    """
    if class_names is None:
        names = _occurring(path, cells)
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[cell.value] for cell in cells], np.int64), names
    names = as_names(class_names)
    numbers = {name: number for number, name in enumerate(names)}
    for number, name in enumerate(names):
        numbers.setdefault(as_integer(name), number)
    if not any(_is_integer(as_integer(name)) for name in names):
        # Else "1" could be meant as a name or as a number.
        numbers |= {str(number): number for number in range(len(names))}
    labels = []
    for cell in cells:
        label = numbers.get(cell.text, numbers.get(cell.value))
        if label is None:
            seen = appearance(cell.text)
            if twin := next((name for name in names if appearance(name) == seen), None):
                raise InputError(
                    f"{cell.where}: the label {cell.text!a:.40} looks like the class {twin!a:.40}, "
                    "but is spelled differently: write both in one way"
                )
            raise InputError(
                f"{cell.where}: the label {cell.text!r:.40} is no class; "
                f"{did_you_mean(cell.text, names)}"
            )
        labels.append(label)
    return np.array(labels, np.int64), names


def _occurring(path: Path, cells: Sequence[Cell]) -> tuple[str, ...]:
    found = {cell.value for cell in cells}
    decimal = next((value for value in sorted(found) if _is_decimal(value)), None)
    if decimal is not None:
        raise InputError(
            f"{path}: labels such as {decimal!r:.40} are no classes; set regression=True to learn "
            "numbers, or name the class_names"
        )
    spelled: dict[Decimal, str] = {}
    looks: dict[str, str] = {}
    for cell in cells:
        value = cell.value
        number = Decimal(value) if _is_integer(value) else None
        if number is not None and spelled.setdefault(number, value) != value:
            raise InputError(
                f"{cell.where}: the label {cell.text!r:.40} is the number {number!s:.40}, which "
                f"also stands as {spelled[number]!r:.40}: write it in one way, or name the "
                "class_names"
            )
        same = looks.setdefault(_without_quotes(appearance(value)).casefold(), value)
        if same != value:
            raise InputError(
                f"{cell.where}: the label {value!a:.40} looks like {same!a:.40}, which occurs "
                "before: write it in one way, or name the class_names"
            )
        too_large = number is None and _NUMBER.fullmatch(value) and as_number(value) is None
        if too_large or _INFINITY.fullmatch(_bare(value)):
            raise InputError(
                f"{cell.where}: the label {cell.text!r:.40} is no finite number: correct it, or "
                "list it in class_names where it is a class"
            )
    return tuple(sorted(found, key=_order(found)))


def _without_quotes(text: str) -> str:
    """What stands in quotes around a whole label: a .tsv has none, but some programs write them."""
    quoted = re.fullmatch(r"""(["'])(.+)\1""", text, re.DOTALL)
    return as_integer(quoted[2].strip()) if quoted else text


def number_labels(cells: Sequence[Cell]) -> np.ndarray:
    """Labels that are numbers, float64 [N].

    Raises:
      InputError: for one that is not, or not finite.
    """
    numbers = [as_number(cell.text) for cell in cells]
    for cell, number in zip(cells, numbers, strict=True):
        if number is None:
            raise InputError(
                f"{cell.where}: the label {cell.text!r:.40} is no finite number: correct it"
            )
    return np.array(numbers, np.float64)


def _is_integer(value: str) -> bool:
    return value.removeprefix("-").isdecimal()


def _is_decimal(value: str) -> bool:
    """Whether a label is a finite number but no integer."""
    return as_number(value) is not None and not _is_integer(value)


def _order(values: set[str]) -> Callable[[str], Any]:
    """A key to sort by: as numbers where all values are integers, else as strings."""
    if all(map(_is_integer, values)):
        return lambda value: (Decimal(value), value)
    return str
