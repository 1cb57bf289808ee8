"""What the launchers share: the processes of a job, their output, signals and end."""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import BinaryIO, NoReturn, TypeAlias

Process: TypeAlias = "subprocess.Popen[bytes]"
_POLL = 0.02  # seconds
_LAST_WORDS = 2.0  # seconds for output that a process left in its pipe
_GIVEN = ("--coordinator", "--num-processes", "--process-id")
_STOPPED = 75  # a process that lost another one ends so, and is not the cause
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class BadInput(ValueError):
    """Bad input from the user: one line that says what to do."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every launcher."""
    parser.add_argument(
        "--grace",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time for the others to end by themselves once one process failed (%(default)g)",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="a program and its arguments"
    )


def check_command(given: list[str], grace: float) -> list[str]:
    """The command to run, without the dashes before it.

    Raises:
      BadInput: if there is none, it names what a launcher gives, or the grace is no time.
    """
    command = given[1:] if given[:1] == ["--"] else given
    if not command:
        raise BadInput("no command is given; for example: -- train.py configs/mnist5k.py")
    for argument in command:
        if argument.partition("=")[0] in _GIVEN:
            raise BadInput(f"{argument} is given by this launcher; leave it out")
    if not 0 <= grace < float("inf"):
        raise BadInput(f"--grace is {grace:g}; it must be a number of seconds, at least 0")
    return command


def commands(python: str, command: list[str], processes: int, address: str) -> list[list[str]]:
    """What each process runs."""
    where = ["--coordinator", address, "--num-processes", str(processes)]
    return [[python, *command, *where, "--process-id", str(number)] for number in range(processes)]


def exit_code(returncode: int) -> int:
    """That of a shell: 128 + n for a process that signal n ended."""
    return 128 - returncode if returncode < 0 else returncode


def split_lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """What a process prints: (text, True) for a line, (text, False) for a bar drawn over itself.

    A bar is text between carriage returns. Of several that came at once only the newest counts.
    """
    pending = b""
    while chunk := os.read(stream.fileno(), 1 << 16):
        *whole, pending = (pending + chunk).split(b"\n")
        for line in whole:
            yield _newest(line), True
        if b"\r" in pending:
            pending = b"\r" + _newest(pending)
            yield pending[1:], False
    if pending:
        yield _newest(pending), True


def _newest(line: bytes) -> bytes:
    """What a terminal would show of a line, where each text covers the one before."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


class Screen:
    """Where lines of all processes go, each whole.

    Bars are drawn below them if that is a terminal, and else left out but for their last state: a
    log of ten thousand bars helps nobody.
    """

    def __init__(self, out: BinaryIO, err: BinaryIO):
        """Write to two open streams; bars go to the second."""
        self._out, self._err = out, err
        self._lock = threading.Lock()
        self._bar, self._bar_of = b"", -1

    def pump(self, number: int, stream: BinaryIO, is_error: bool) -> None:
        """Show everything that process `number` prints, until it closes the stream."""
        with stream:
            for text, is_line in split_lines(stream):
                with self._lock:
                    self._show(number, b"[%d] %s" % (number, text), is_line, is_error)

    def _show(self, number: int, text: bytes, is_line: bool, is_error: bool) -> None:
        if not is_line and not self._err.isatty():
            return
        if self._bar:
            _write(self._err, b"\r\x1b[K")
        if not is_line:
            self._bar, self._bar_of = text, number
        else:
            if is_error and number == self._bar_of:  # a bar that is done, or something over it
                self._bar = b""
            _write(self._err if is_error else self._out, text + b"\n")
        _write(self._err, self._bar)


def _write(stream: BinaryIO, data: bytes) -> None:
    try:
        stream.write(data)
        stream.flush()
    except OSError:
        # Whoever read it is gone. The job goes on, and must not block on a full pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _die_with_launcher() -> None:
    """Runs in a new process: if the launcher is killed, so is the process (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Job:
    """The processes of a job."""

    _stdin = subprocess.DEVNULL

    def __init__(self, commands: Sequence[list[str]], env: Mapping[str, str], grace: float):
        """Start them. Each leads a session of its own: a terminal's Ctrl-C reaches it once.

        Args:
          commands: one for each process.
          env: the environment of all.
          grace: seconds that the others have once one failed.
        """
        self._grace = grace
        self._processes: list[Process] = []
        self._deadline: float | None = None  # of the next, harder signal
        self._forwarded = 0  # signals
        self._was_asked = False  # to end, by SIGTERM after the time of grace
        self._waited_for = list(range(len(commands)))
        self.code = 0  # of the process that failed first
        try:
            for command in commands:
                process = subprocess.Popen(
                    command,
                    env=env,
                    stdin=self._stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    preexec_fn=_die_with_launcher,  # safe: no thread runs yet
                )
                self._processes.append(process)
        except BaseException:
            self.kill()
            raise
        screen = Screen(sys.stdout.buffer, sys.stderr.buffer)
        self._pumps = [
            threading.Thread(target=screen.pump, args=(number, stream, is_error), daemon=True)
            for number, process in enumerate(self._processes)
            for is_error, stream in enumerate((process.stdout, process.stderr))
        ]
        for pump in self._pumps:
            pump.start()

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to every process that runs."""
        for process in self._processes:
            if process.returncode is None:
                self._send_one(process, number)

    def _send_one(self, process: Process, number: signal.Signals) -> None:
        process.send_signal(number)  # none if it ended just now

    def kill(self) -> None:
        """Kill every process that runs, and what it started."""
        for process in self._processes:
            if process.returncode is None:
                _kill_session(process)

    def wait(self, received: list[signal.Signals]) -> int:
        """Wait for all processes: the exit code.

        Args:
          received: signals that the launcher got; a handler appends to it.
        """
        while self._waited_for:
            self._forward(received)
            ended = [n for n in self._waited_for if self._processes[n].poll() is not None]
            for number in ended:
                self._waited_for.remove(number)
                _kill_session(self._processes[number])  # what it left behind
            codes = {n: exit_code(self._processes[n].returncode) for n in ended}
            failed = [n for n in ended if codes[n]]
            if failed and self.code == 0:
                first = min(failed, key=lambda n: codes[n] == _STOPPED)
                self.code = codes[first]
                if self._waited_for and self.code != _STOPPED:
                    say(
                        f"process {first} ended with exit code {self.code}; the others may end by "
                        f"themselves within {self._grace:g} s"
                    )
                self._hurry()
            self._press()
            time.sleep(_POLL)
        until = time.monotonic() + _LAST_WORDS
        for pump in self._pumps:
            pump.join(max(0.0, until - time.monotonic()))
        return self.code

    def _forward(self, received: list[signal.Signals]) -> None:
        """Send on the signals that the launcher got since the last time."""
        for number in received[self._forwarded :]:
            self._forwarded += 1
            if received[: self._forwarded].count(signal.SIGINT) > 1:
                self.kill()
                continue
            self._send(number)
            if number == signal.SIGINT:  # whoever sends SIGTERM, such as a scheduler, sets the time
                self._hurry()

    def _hurry(self) -> None:
        """From now on the processes have the time of grace."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._grace

    def _press(self) -> None:
        """Once the time is up: SIGTERM, and as long again later SIGKILL."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if not late or not self._waited_for:
            return
        names = ", ".join(map(str, self._waited_for))
        if self._was_asked:
            say(f"still running: {names}; killed")
            self.kill()
            self._deadline = None
        else:
            say(f"still running: {names}; asked to stop")
            self._send(signal.SIGTERM)
            self._was_asked, self._deadline = True, time.monotonic() + self._grace


def _kill_session(process: Process) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)


def say(message: str) -> None:
    """Tell the user something that no process said."""
    print(f"launcher: {message}", file=sys.stderr, flush=True)


def run(start: Callable[[], Job]) -> int:
    """Run a job to its end: the exit code. Handles SIGTERM and SIGINT meanwhile.

    Must be called in the main thread, while no other thread of this program runs.
    """
    received: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        job = start()
        try:
            return job.wait(received)
        finally:
            job.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
