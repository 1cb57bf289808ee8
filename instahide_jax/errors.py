"""The one exception for bad input, and how the programs report it."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input from the user: one line that names the value, the bound and the remedy.

    The programs print the line and exit with code 2; a traceback is reserved for bugs. Library
    users catch it as a `ValueError`.
    """


def run_main(main: Callable[[], None]) -> None:
    """Run a program's `main`; turn an `InputError` into one line on stderr and exit code 2.

    Ctrl-C ends with exit code 130 and no traceback, as in any shell tool.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
