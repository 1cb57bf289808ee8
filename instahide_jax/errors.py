"""The exceptions that end a program in one line, and how the programs report them."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

# "Temporary failure, try again" of sysexits.h.
STOPPED = os.EX_TEMPFAIL
# Faults of the machine that a user mends: a full disk, a folder of others, a file in the way.
_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR),
}


class InputError(ValueError):
    """Bad input from the user: one line that names the value, the bound and the remedy.

    The programs print the line and exit with code 2; a traceback is reserved for bugs. Library
    users catch it as a `ValueError`.
    """


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
    `Stopped`; 130 for Ctrl-C, as in any shell tool; otherwise 1, after a traceback.
    """
    match error:
        case InputError():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        case OSError() if error.errno in _OF_THE_MACHINE:
            where = f" {error.filename}" if error.filename else ""
            print(
                f"error: cannot write or read{where}: {error.strerror}; mend that", file=sys.stderr
            )
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
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report(error))
