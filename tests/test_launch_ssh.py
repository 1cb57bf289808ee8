"""The launcher over ssh, with a stand-in for ssh that runs the command on this machine."""

import os
import shlex
import signal
import sys

import pytest
from launches import DEAF, FAILS, SAVES, SCRIPTS, is_gone, start_with

__all__ = ["start_with"]  # a fixture
# Launchers fork before they start a program. In this process JAX may be loaded, which warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
# As sshd does it: the command goes through a login shell, and a connection that ends closes its
# standard input and signals nothing.
SSH = """
import subprocess, sys
host, command = sys.argv[1:]
if host == "down":
    sys.exit(255)
sys.exit(subprocess.run(["sh", "-c", command], start_new_session=True).returncode % 256)
"""


@pytest.fixture
def start(start_with, tmp_path):
    """Start a job over the stand-in for ssh."""
    (tmp_path / "ssh.py").write_text(SSH)

    def launch(body, *options, hosts="me@a,b", after=()):
        ssh = shlex.join([sys.executable, str(tmp_path / "ssh.py")])
        given = ["--hosts", hosts, "--ssh", ssh, "--directory", str(tmp_path), *options]
        return start_with("launch_ssh.py", body, given, after)

    return launch


@pytest.fixture
def launcher(monkeypatch):
    """The launcher as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import launch_ssh

    return launch_ssh


def test_every_host_learns_its_place(start):
    body = "print(given.coordinator, given.num_processes, rest, os.environ['A'])\n"
    job = start(body, "--env", "A=it's $HOME", "--port", "1234", after=("--name", "two 'words'"))
    rest = ["--name", "two 'words'"]
    expected = [f"[{n}] a:1234 2 {rest} it's $HOME" for n in range(2)]
    assert job.end() == (0, expected, "")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("sys.exit(2 if me == 1 else 0)", 2),
        ("sys.exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL) if me == 0 else None", 137),
    ],
)
def test_exit_codes(start, ending, code):
    assert start(ending + "\n").end()[0] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_host(start, number):
    job = start(SAVES.replace("SIGTERM", number.name))
    pids = job.pids(0, 1)
    job.process.send_signal(number)
    assert job.end() == (75, ["[0] saved", "[1] saved"], "")
    assert all(map(is_gone, pids))


@pytest.mark.parametrize(("other", "killed"), [(SAVES, False), (DEAF, True)])
def test_one_failure_stops_all(start, other, killed):
    indented = [f"    {line}\n" for line in other.strip().splitlines()]
    job = start(f"if me == 1:\n{''.join(indented)}{FAILS}", "--grace", "0.3")
    pid = job.pids(1)[0]
    assert job.end()[:2] == (7, [] if killed else ["[1] saved"])
    assert is_gone(pid)


def test_a_host_that_is_down_stops_the_others(start):
    job = start(SAVES, "--grace", "0.5", hosts="a,down")
    code, _, err = job.end()
    assert code == 255
    assert "process 1 ended with exit code 255" in err
    if (job.folder / "pid0").exists():
        assert is_gone(job.pids(0)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the connections")
def test_processes_save_when_the_launcher_dies(start):
    body = SAVES.replace("    print", "    open('saved' + str(me), 'w'); print")
    job = start(body)
    pids = job.pids(0, 1)
    job.process.kill()
    assert all(map(is_gone, pids))
    assert all((job.folder / f"saved{n}").exists() for n in range(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-- train.py", "required: --hosts"),
        ("--hosts a,,b -- train.py", "'' in --hosts is no host"),
        ("--hosts a,-oProxyCommand=x -- train.py", "'-oProxyCommand=x' in --hosts is no host"),
        ("--hosts a,b", "no command is given"),
        ("--hosts a,b --port 0 -- train.py", "--port is 0"),
        ("--hosts a,b --env 1=2 -- train.py", "'1' in --env is no name"),
        ("--hosts a,b --ssh= -- train.py", "--ssh is empty"),
        ("--hosts a,b --ssh /nowhere/ssh -- train.py", "/nowhere/ssh is missing"),
        ("--hosts a,b -- train.py --num-processes 2", "--num-processes is given by this launcher"),
    ],
)
def test_bad_input_is_one_line(launcher, capsys, arguments, message):
    assert launcher.main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_folder_that_is_missing_ends_with_bad_input(start, tmp_path):
    job = start("", "--directory", os.fspath(tmp_path / "nowhere"))
    assert job.end()[0] == 2
