"""The exceptions that end a program in one line, and how the programs report them."""

import errno
import os
import signal
import sys
import threading
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


def run_main(main: Callable[[], None]) -> None:
    """Run a program's `main`; turn an `InputError` into one line on stderr and exit code 2.

    A fault of the machine, such as a full disk, ends likewise. A `Stopped` ends with exit code 75
    (`STOPPED`), and Ctrl-C with 130 and no traceback, as in any shell tool.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"error: cannot write or read{where}: {error.strerror}; mend that", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(str(stopped), file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
