"""Messages that refuse input: where they stand in the source, and cases that follow what they say.

A case provokes a message within `refused`, does what it says, and succeeds. Which message of the
source was provoked is read from the traceback, so a case need not name it. `test_remedies.py` runs
the cases, and fails for a message that no case provokes and that `remedies_not_followed.py` does
not excuse.
"""

import ast
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from instahide_jax.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

from launching import BadInput  # noqa: E402

SOURCES = ("instahide_jax/**/*.py", "scripts/*.py", "train.py", "eval.py", "configs/*.py")
_ERRORS = ("InputError", "BadInput")
_CALLS = (*_ERRORS, "_log.warning")


@dataclass(frozen=True)
class Site:
    """A message in the source: its file, its constant text ({} for what varies), its lines."""

    file: str
    text: str
    lines: range

    @property
    def name(self) -> tuple[str, str]:
        """What stays when lines move."""
        return self.file, self.text


Case = Callable[[Path], None]  # of an empty folder, which is the working directory
CASES: dict[str, Case] = {}
_hit: set[Site] = set()  # of the case that runs


def case(function: Case) -> Case:
    """Register a case."""
    assert function.__name__ not in CASES, function.__name__
    CASES[function.__name__] = function
    return function


@functools.cache
def sites() -> list[Site]:
    """All messages of the project, in the order of the source."""
    found = []
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            file = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in _CALLS and node.args:
                    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                    found.append(Site(file, _constant(node.args[0]), lines))
    return sorted(found, key=lambda site: (site.file, site.lines.start))


def _constant(node: ast.expr) -> str:
    """The text of an expression that gives a string, with {} for what varies."""
    match node:
        case ast.BinOp():
            return _constant(node.left) + _constant(node.right)
        case ast.JoinedStr():
            return "".join(map(_constant, node.values))
        case ast.Constant():
            return str(node.value)
        case ast.FormattedValue():
            return "{}"
    return f"({ast.unparse(node)})"


@contextmanager
def refused(*fragments: str) -> Iterator[None]:
    """Within, something must be refused by a line with all of the fragments."""
    try:
        yield
    except (InputError, BadInput) as error:
        text = " ".join(str(error).split())
        for fragment in fragments:
            assert fragment in text, f"{fragment!r} is not in {text!r}"
        cause: BaseException | None = error
        while cause is not None:
            _note(cause.__traceback__)
            cause = cause.__cause__
    else:
        raise AssertionError(f"{fragments} was not refused")


@contextmanager
def warned(*fragments: str) -> Iterator[None]:
    """Within, a warning with all of the fragments must be logged."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger("instahide_jax"), Keep()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    for record in records:
        if all(fragment in record.getMessage() for fragment in fragments):
            _note_line(record.pathname, record.lineno)
            return
    raise AssertionError(f"{fragments} was not said, but {[r.getMessage() for r in records]}")


def _note(traceback: TracebackType | None) -> None:
    """Remember the message of the innermost frame that stands at one."""
    places = []
    while traceback is not None:
        places.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    for file, line in reversed(places):
        if _note_line(file, line):
            return


def _note_line(file: str, line: int) -> bool:
    path = Path(file)
    if not path.is_relative_to(ROOT):
        return False
    name = path.relative_to(ROOT).as_posix()
    found = [site for site in sites() if site.file == name and line in site.lines]
    _hit.update(found)
    return bool(found)


@functools.cache
def followed(name: str, folder: Path) -> frozenset[Site]:
    """Run a case: the messages that it provoked, whose remedies worked."""
    _hit.clear()
    CASES[name](folder)
    assert _hit, f"{name} provoked nothing"
    return frozenset(_hit)
