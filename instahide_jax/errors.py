"""The exceptions that end a program in one line, and how the programs report them."""

import difflib
import errno
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# "Temporary failure, try again" of sysexits.h.
STOPPED = os.EX_TEMPFAIL
# Faults of the machine that a user mends: a full disk, a folder of others, a file in the way, a
# name that the file system does not take.
_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


class InputError(ValueError):
    """Bad input from the user: one line that names the value, the bound and the remedy.

    The programs print the line and exit with code 2; a traceback is reserved for bugs. Library
    users catch it as a `ValueError`.
    """


def listed(items: Sequence[object], most: int = 10) -> str:
    """The first items, and how many more there are."""
    more = len(items) - most
    return ", ".join(map(str, items[:most])) + (f" and {more} more" if more > 0 else "")


def how_many(number: int, noun: str) -> str:
    """A number of things: "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def did_you_mean(name: str, known: Sequence[str], otherwise: str | None = None) -> str:
    """The remedy for an unknown name: the nearest known one, else `otherwise`, else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return otherwise or f"choose from {', '.join(known) or 'none'}"


def machine_fault(error: BaseException | None) -> str | None:
    """What a user mends at the machine, such as "No space left on device"; None of other errors.

    TensorStore, which writes checkpoints, has no type for it and puts the number in its message.
    """
    if isinstance(error, OSError):
        code = error.errno
    else:
        told = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(told[1]) if told else None
    return os.strerror(code) if code in _OF_THE_MACHINE else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, what cannot be written because of the machine is an `InputError` that names `path`.

    For a run, which the same command continues.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = None if isinstance(error, InputError) else machine_fault(error)
        if reason is None:
            raise
        raise InputError(
            f"{path} cannot be written: {reason}; what was saved before is kept: mend that, and "
            "the same command goes on"
        ) from error


class Stopped(Exception):
    """A program was asked to stop, has saved what it had, and goes on when started again."""


def stop_request() -> threading.Event:
    """An event that SIGTERM sets from now on, instead of ending the process.

    Schedulers send SIGTERM some time before they take a machine away.
    """
    event = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: event.set())
    return event


def report(error: BaseException) -> int:
    """Print what ended a program, in one line where a user can mend it; the exit code.

    2 for an `InputError` or a fault of the machine, such as a full disk; 75 (`STOPPED`) for a
    `Stopped`; 130 for Ctrl-C, as in any shell tool; 1 where whoever read stdout has ended, as head
    does; otherwise 1, after a traceback.
    """
    match error:
        case InputError():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        case BrokenPipeError():
            # Of stdout, the only pipe that is written to.
            print("error: cannot write to stdout: its reader has ended", file=sys.stderr)
            return 1
        case OSError() if reason := machine_fault(error):
            file = error.filename2 or error.filename  # of a rename its target
            where = f" {file}" if file else ""
            remedy = "choose a shorter one" if error.errno == errno.ENAMETOOLONG else "mend that"
            print(f"error: cannot write or read{where}: {reason}; {remedy}", file=sys.stderr)
            return 2
        case Stopped():
            print(str(error), file=sys.stderr)
            return STOPPED
        case KeyboardInterrupt():
            print("interrupted", file=sys.stderr)
            return 130
    traceback.print_exception(error)
    return 1


def run_main(main: Callable[[], None]) -> None:
    """Run a program's `main`; end as `report` says."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name or text that the locale cannot write
            stream.reconfigure(errors="backslashreplace")
    try:
        with _said_once():
            main()
            sys.stdout.flush()  # what it says may fail to be written
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        _end_output()
        sys.exit(code)


def _end_output() -> None:
    """Write what stdout still holds; if that fails, drop it, or it would fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Open what whoever started the program has closed, so that no file is taken for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, this one
    sys.stdout, sys.stderr = (
        # No block that closes it: it stays open as long as the program.
        stream or open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )


@contextmanager
def _said_once() -> Iterator[None]:
    """Leave faults of the machine in other threads to the main thread, which waits for them.

    Orbax raises there what its threads met with, each of which would print a page about it. More of
    the same reaches asyncio's loops when these have ended already.
    """
    in_threads, in_callbacks = threading.excepthook, sys.unraisablehook

    def thread_hook(failure: Any) -> None:
        if machine_fault(failure.exc_value) is None:
            in_threads(failure)

    def callback_hook(failure: Any) -> None:
        if str(failure.exc_value) != "Event loop is closed":
            in_callbacks(failure)

    threading.excepthook, sys.unraisablehook = thread_hook, callback_hook
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = in_threads, in_callbacks
