"""Run a job of one process on each of several machines, over ssh.

    python scripts/launch_ssh.py --hosts node1,node2 -- train.py configs/cifar10.py --workdir runs/a
    python scripts/launch_ssh.py --hosts me@10.0.0.1,me@10.0.0.2 --directory work -- train.py ...

Runs the command on every host, in the same folder and with the same Python, and tells every process
where the first one is: --coordinator HOST:PORT --num-processes N --process-id I. It needs ssh
without a password, and nothing on the hosts but the project. Output, signals, grace and exit code
are those of scripts/launch_local.py. If this program or a connection dies, the processes that hung
on it get SIGTERM: train.py saves and ends with exit code 75.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from launching import BadInput, Job, Parser, Process, add_common, check_command, commands, run

# sshd signals nothing when a connection ends, so a shell on the host waits for names of signals on
# its standard input, whose end counts as one. {} is the command, quoted.
_SUPERVISOR = """exec 3<&0 </dev/null
{} 3<&- &
child=$!
(while read -r name <&3; do kill -s "$name" "$child"; done; kill -s TERM "$child") 2>/dev/null &
reader=$!
wait "$child"
code=$?
kill "$reader" 2>/dev/null
exit "$code"
"""
_LAST_WORDS = 5.0  # seconds for a host to kill its process before the connection is cut


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
      hosts: as ssh takes them; the first is the coordinator.
      port: of the coordinator on the first host.
      directory: where the command runs on every host.
      python: what runs it.
      ssh: the program that connects, with its options.
      env: variables to set on the hosts.
      command: what Python runs on every host.
      grace: seconds that the other processes have once one failed.
    """

    hosts: list[str]
    port: int
    directory: str
    python: str
    ssh: list[str]
    env: dict[str, str]
    command: list[str]
    grace: float


def parse(argv: Sequence[str]) -> Arguments:
    """The command line, checked.

    Raises:
      BadInput: naming value, bound and remedy.
    """
    parser = Parser(
        prog="launch_ssh.py",
        usage="launch_ssh.py --hosts HOST,HOST... [options] -- COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--hosts", required=True, help="[USER@]HOST of each process, separated by commas"
    )
    parser.add_argument(
        "--port", type=int, default=29400, help="free port of the first host (%(default)d)"
    )
    parser.add_argument(
        "--directory", default=os.getcwd(), metavar="DIR", help="folder on the hosts (this folder)"
    )
    parser.add_argument("--python", default=sys.executable, help="Python there (%(default)s)")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="variable to set on the hosts; may be given again; everyone there can see it",
    )
    parser.add_argument(
        "--ssh",
        default="ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15",
        metavar="COMMAND",
        help="how to connect (%(default)s)",
    )
    add_common(parser)
    got = parser.parse_args(argv)
    hosts = got.hosts.split(",")
    for host in hosts:
        if not host or host.startswith("-") or re.search(r"\s", host):
            raise BadInput(f"{host!r} in --hosts is no host; name them as host1,host2")
    if not 0 < got.port < 65536:
        raise BadInput(f"--port is {got.port}; it must be between 1 and 65535")
    env = dict(pair.partition("=")[::2] for pair in got.env)
    for name in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise BadInput(f"{name!r} in --env is no name of a variable; give NAME=VALUE")
    ssh = shlex.split(got.ssh)
    if not ssh:
        raise BadInput("--ssh is empty; it must name a program")
    command = check_command(got.command, got.grace)
    return Arguments(hosts, got.port, got.directory, got.python, ssh, env, command, got.grace)


def remote_commands(arguments: Arguments) -> list[list[str]]:
    """What runs here for each host."""
    address = f"{arguments.hosts[0].rpartition('@')[2]}:{arguments.port}"
    jobs = commands(arguments.python, arguments.command, len(arguments.hosts), address)
    env = [f"{name}={value}" for name, value in {**arguments.env, "PYTHONUNBUFFERED": "1"}.items()]
    enter = f"cd -- {shlex.quote(arguments.directory)} || exit 2\n"
    scripts = [enter + _SUPERVISOR.format(shlex.join(["env", *env, *job])) for job in jobs]
    return [
        [*arguments.ssh, host, f"exec sh -c {shlex.quote(script)}"]  # whatever the login shell is
        for host, script in zip(arguments.hosts, scripts, strict=True)
    ]


class SshJob(Job):
    """Processes at the other end of connections."""

    _stdin = subprocess.PIPE

    def _send_one(self, process: Process, number: signal.Signals) -> None:
        assert process.stdin is not None
        with suppress(OSError, ValueError):  # it ended just now, or was killed before
            process.stdin.write(number.name.removeprefix("SIG").encode() + b"\n")
            process.stdin.flush()

    def kill(self) -> None:
        """Kill every process that runs; cut the connection to a host that does not answer."""
        self._send(signal.SIGKILL)
        until = time.monotonic() + _LAST_WORDS
        for process in self._processes:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        super().kill()


def main(argv: Sequence[str]) -> int:
    """The program: its exit code."""
    try:
        arguments = parse(argv)
        processes = remote_commands(arguments)
        return run(lambda: SshJob(processes, os.environ, arguments.grace))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
    except FileNotFoundError as error:
        print(f"error: {error.filename} is missing; install it, or give --ssh", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
