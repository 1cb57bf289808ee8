"""Run a job of several processes on this machine.

    python scripts/launch_local.py -n 2 -- train.py configs/mnist5k.py --workdir runs/a
    python scripts/launch_local.py -n 2 --devices 2 -- train.py configs/mnist5k.py

Starts the command N times with this Python, and tells every process where the others are:
--coordinator 127.0.0.1:PORT --num-processes N --process-id I. Lines of process I appear with the
prefix "[I] ". SIGTERM and Ctrl-C go to all processes; a second Ctrl-C kills them. When one process
fails the others have a time of grace to end by themselves, then get SIGTERM, and as long again
later SIGKILL. The exit code is that of the process that failed first, 128 + n where signal n ended
it, or 0.
"""

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launching import BadInput, Job, Parser, add_common, check_command, commands, run


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
      command: what this Python runs, such as ["train.py", "configs/mnist5k.py"].
      processes: how many times.
      devices: virtual CPU devices of each process; None leaves devices alone.
      grace: seconds that the other processes have once one failed.
    """

    command: list[str]
    processes: int
    devices: int | None = None
    grace: float = 60.0


def parse(argv: Sequence[str]) -> Arguments:
    """The command line, checked.

    Raises:
      BadInput: naming value, bound and remedy.
    """
    parser = Parser(
        prog="launch_local.py",
        usage="launch_local.py -n N [--devices D] [--grace SECONDS] -- COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        *("-n", "--processes"), type=int, required=True, metavar="N", help="number of processes"
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="D",
        help="give each process D virtual CPU devices instead of the machine's accelerators, "
        "which only one process can hold",
    )
    add_common(parser)
    got = parser.parse_args(argv)
    for name in ("processes", "devices"):
        value = getattr(got, name)
        if value is not None and value < 1:
            raise BadInput(f"number of {name} is {value}; it must be at least 1")
    command = check_command(got.command, got.grace)
    if not command[0].startswith("-") and not os.path.isfile(command[0]):
        raise BadInput(f"{command[0]} is no file; name a Python program, such as train.py")
    return Arguments(command, got.processes, got.devices, got.grace)


def free_port() -> int:
    """A port that nothing listens on. Another program may take it before the job does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))  # the coordinator listens on all addresses
        port: int = probe.getsockname()[1]
        return port


def environment(given: Mapping[str, str], devices: int | None) -> dict[str, str]:
    """What a process of the job gets: lines as they are printed, and perhaps virtual devices."""
    changed = {**given, "PYTHONUNBUFFERED": "1"}
    if devices is not None:
        count = f"--xla_force_host_platform_device_count={devices}"
        changed["XLA_FLAGS"] = f"{given.get('XLA_FLAGS', '')} {count}".strip()  # the last one holds
        changed["JAX_PLATFORMS"] = "cpu"
    return changed


def main(argv: Sequence[str]) -> int:
    """The program: its exit code."""
    try:
        arguments = parse(argv)
        processes = commands(
            sys.executable, arguments.command, arguments.processes, f"127.0.0.1:{free_port()}"
        )
        env = environment(os.environ, arguments.devices)
        return run(lambda: Job(processes, env, arguments.grace))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
