"""Stand-ins for train.py that import nothing, and starting them with the launchers."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
# Every stand-in knows its number `me` and writes its process id to a file when it is ready.
HEAD = """
import argparse, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--coordinator"), parser.add_argument("--num-processes", type=int)
parser.add_argument("--process-id", type=int)
given, rest = parser.parse_known_args()
me = given.process_id

def ready():
    with open(f"pid{me}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"pid{me}.part", f"pid{me}")

"""
SAVES = """
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep(60)
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(60)\n"
FAILS = """
while not os.path.exists(f"pid{1 - me}"):
    time.sleep(0.01)
sys.exit(7)
"""


class Launch:
    """A launched job in a folder of its own."""

    def __init__(self, folder, program, body, options, after=()):
        self.folder = folder
        (folder / "child.py").write_text(HEAD + body)
        command = [SCRIPTS / program, *options, "--", "child.py", *after]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self, *numbers):
        """Process ids of the processes, once all are ready."""
        files = [self.folder / f"pid{number}" for number in numbers]
        until = time.monotonic() + 60
        while not all(file.exists() for file in files):
            assert time.monotonic() < until
            time.sleep(0.01)
        return [int(file.read_text()) for file in files]

    def end(self):
        """Exit code, sorted lines of stdout, stderr."""
        out, err = self.process.communicate(timeout=100)
        return self.process.returncode, sorted(out.splitlines()), err


@pytest.fixture
def start_with(tmp_path):
    """Start a job; whatever is left of it is killed in the end."""
    launches = []

    def launch(*arguments):
        launches.append(Launch(tmp_path, *arguments))
        return launches[-1]

    yield launch
    for job in launches:
        job.process.kill()
        job.process.communicate()


def is_gone(pid, seconds=10.0):
    """Whether no such process runs, or is about to be gone."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":  # its parent, the machine's first process, has not looked yet
            return True
        time.sleep(0.01)
    return False
