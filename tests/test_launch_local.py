"""The local launcher, with stand-ins for train.py that import nothing."""

import os
import re
import signal
import socket
import sys
import time

import pytest
from launches import DEAF, FAILS, SAVES, SCRIPTS, is_gone, start_with

__all__ = ["start_with"]  # a fixture
# Launchers fork before they start a program. In this process JAX may be loaded, which warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@pytest.fixture
def start(start_with):
    """Start a job with the local launcher."""

    def launch(body, *options, count=2, after=()):
        return start_with("launch_local.py", body, ["-n", str(count), *options], after)

    return launch


@pytest.fixture
def launcher(monkeypatch):
    """The launcher as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import launch_local

    return launch_local


@pytest.fixture
def launching(launcher):
    """What it shares with others."""
    import launching

    return launching


def test_every_process_learns_its_place(start):
    body = "print(given.coordinator, given.num_processes, rest); print('oh', file=sys.stderr)\n"
    code, out, err = start(body, count=3, after=("--seed", "3")).end()
    assert code == 0
    addresses = {line.split()[1] for line in out}
    assert len(addresses) == 1
    address = addresses.pop()
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert out == [f"[{n}] {address} 3 ['--seed', '3']" for n in range(3)]
    assert sorted(err.splitlines()) == [f"[{n}] oh" for n in range(3)]


def test_lines_pass_at_once_and_whole(start):
    body = """
print("one")
sys.stdout.write("tw"); sys.stdout.flush(); time.sleep(0.2); print("o")
sys.stdout.buffer.write(b"\\xff not utf-8\\n")
sys.stdout.write("no newline"); sys.stdout.flush()
ready(); time.sleep(60)
"""
    job = start(body, count=1)
    assert [job.process.stdout.buffer.readline() for _ in range(3)] == [
        b"[0] one\n",
        b"[0] two\n",
        b"[0] \xff not utf-8\n",
    ]
    os.kill(job.pids(0)[0], signal.SIGKILL)
    assert job.end()[:2] == (137, ["[0] no newline"])


def test_bars_leave_their_last_state_in_a_log(start):
    body = """
for i in range(5):
    sys.stderr.write(f"\\rtrain {i}/4"); sys.stderr.flush(); time.sleep(0.02)
sys.stderr.write("\\n")
sys.stderr.write("dos\\r\\n")
sys.stderr.write("\\rtrain 9/9"); sys.stderr.flush()
"""
    code, _, err = start(body, count=1).end()
    assert (code, err) == (0, "[0] train 4/4\n[0] dos\n[0] train 9/9\n")


def test_bars_are_drawn_below_lines_on_a_terminal(launching):
    class Terminal:
        def __init__(self):
            self.got = b""

        def write(self, data):
            self.got += data

        def flush(self):
            pass

        def isatty(self):
            return True

    screen = Terminal()
    show = launching.Screen(screen, screen)._show
    show(0, b"[0] 10%", False, True)
    show(1, b"[1] hello", True, False)
    show(0, b"[0] 20%", False, True)
    show(0, b"[0] 30%", True, True)
    show(1, b"[1] bye", True, False)
    clear = b"\r\x1b[K"
    expected = [
        b"[0] 10%",
        clear + b"[1] hello\n[0] 10%",
        clear + b"[0] 20%",
        clear + b"[0] 30%\n",
        b"[1] bye\n",
    ]
    assert screen.got == b"".join(expected)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("sys.exit(2 if me == 1 else 0)", 2),
        ("sys.exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL) if me == 0 else None", 137),
        # The one that failed first counts: the other one only lost it.
        ("sys.exit(3) if me else (time.sleep(1), sys.exit(75))", 3),
    ],
)
def test_exit_codes(start, ending, code):
    assert start(ending + "\n").end()[0] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process(start, number):
    job = start(SAVES.replace("SIGTERM", number.name), count=3)
    pids = job.pids(0, 1, 2)
    job.process.send_signal(number)
    assert job.end() == (75, [f"[{n}] saved" for n in range(3)], "")
    assert all(map(is_gone, pids))


def test_a_second_interrupt_kills(start):
    job = start(DEAF.replace("SIGTERM", "SIGINT"))
    pids = job.pids(0, 1)
    job.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert job.process.poll() is None
    job.process.send_signal(signal.SIGINT)
    assert job.end()[0] == 137
    assert all(map(is_gone, pids))


def test_others_may_end_by_themselves(start):
    body = f"if me == 0:\n    {FAILS.strip().replace(chr(10), chr(10) + '    ')}\n"
    body += "ready(); time.sleep(1); print('by myself')\n"
    code, out, err = start(body).end()
    assert (code, out) == (7, ["[1] by myself"])
    assert "process 0 ended with exit code 7" in err
    assert "asked to stop" not in err


@pytest.mark.parametrize(("other", "killed"), [(SAVES, False), (DEAF, True)])
def test_after_the_time_of_grace_others_are_stopped(start, other, killed):
    indented = [f"    {line}\n" for line in other.strip().splitlines()]
    body = f"if me == 1:\n{''.join(indented)}{FAILS}"
    job = start(body, "--grace", "0.3")
    pid = job.pids(1)[0]
    code, out, err = job.end()
    assert (code, out) == (7, [] if killed else ["[1] saved"])
    assert "still running: 1; asked to stop" in err
    assert ("still running: 1; killed" in err) == killed
    assert is_gone(pid)


def test_what_a_process_started_ends_with_it(start):
    body = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid)
"""
    job = start(body, count=1)
    began = time.monotonic()
    code, out, _ = job.end()
    assert code == 0
    assert time.monotonic() - began < 30  # the pipe that it inherited holds nobody up
    assert is_gone(out[0].split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process")
def test_killing_the_launcher_leaves_no_orphans(start):
    job = start(DEAF)
    pids = job.pids(0, 1)
    job.process.kill()
    assert all(map(is_gone, pids))


def test_the_job_goes_on_when_nobody_reads(start):
    body = "ready()\nfor i in range(20000): print('line', i)\nopen('done', 'w')\n"
    job = start(body, count=1)
    job.pids(0)
    job.process.stdout.close()
    job.process.stdout = None
    assert job.process.wait(60) == 0
    assert (job.folder / "done").exists()


def test_a_port_that_is_free(launcher):
    port = launcher.free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert all(launcher.free_port() != port for _ in range(20))


def test_virtual_devices(launcher):
    given = {"XLA_FLAGS": "--xla_dump_to=x --xla_force_host_platform_device_count=8", "HOME": "/h"}
    changed = launcher.environment(given, 2)
    flags = changed["XLA_FLAGS"].split()
    assert flags[0] == "--xla_dump_to=x"
    assert flags[-1] == "--xla_force_host_platform_device_count=2"  # XLA heeds the last
    assert (changed["JAX_PLATFORMS"], changed["HOME"]) == ("cpu", "/h")
    assert launcher.environment({}, 2)["XLA_FLAGS"] == flags[-1]
    assert launcher.environment(given, None) == given | {"PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-n 2", "no command is given"),
        ("-n 2 --", "no command is given"),
        ("-n 0 -- {file}", "number of processes is 0; it must be at least 1"),
        ("-n two -- {file}", "invalid int value: 'two'"),
        ("-- {file}", "required: -n"),
        ("-n 2 --devices 0 -- {file}", "number of devices is 0"),
        ("-n 2 --grace -1 -- {file}", "--grace is -1"),
        ("-n 2 --grace nan -- {file}", "--grace is nan"),
        ("-n 2 --device 2 -- {file}", "--device"),
        ("-n 2 -- nowhere.py", "nowhere.py is no file"),
        ("-n 2 -- {file} --coordinator auto", "--coordinator is given by this launcher"),
        ("-n 2 -- {file} --process-id=1", "--process-id=1 is given by this launcher"),
    ],
)
def test_bad_input_is_one_line(launcher, capsys, arguments, message):
    assert launcher.main(arguments.format(file=__file__).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_the_command_may_follow_without_dashes(launcher):
    got = launcher.parse(["-n", "2", __file__, "--workdir", "a", "--devices", "3"])
    assert got == launcher.Arguments([__file__, "--workdir", "a", "--devices", "3"], 2)
