"""Jobs of several processes: they train as one, keep what is theirs, and end together."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest
from programs import (
    ROOT,
    Place,
    assert_same_state,
    final_state,
    final_text_state,
    last_step,
    prepare_photos,
    whole_checkpoints,
    without_speed,
)
from test_end_to_end_text import CONFIG as TEXTS
from xla_flags import EIGHT_DEVICES, QUICK

from instahide_jax import distributed
from instahide_jax.data.embedded import mnist5k
from instahide_jax.data.sources import Mnist5k
from instahide_jax.errors import InputError
from instahide_jax.secret import secret_key, write_secret

SEED = ("--insecure-seed", 7)


class Job:
    """A job of processes on this machine, started by scripts/launch_local.py."""

    def __init__(
        self, place, *arguments, processes=2, devices=1, grace=60, program="train.py", **env
    ):
        self.begin = time.monotonic()
        launcher = (ROOT / "scripts" / "launch_local.py", "-n", processes, "--grace", grace)
        command = (*launcher, "--devices", devices, "--", ROOT / program, *arguments)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *map(str, command)],
            cwd=place.folder,
            env=place.environment | {"PYTHONWARNINGS": "error"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pid(self, number):
        """The process id of a process of the job."""
        end = b"--process-id\0%d\0" % number
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for child in children.split():
            if Path(f"/proc/{child}/cmdline").read_bytes().endswith(end):
                return int(child)
        raise ProcessLookupError(number)

    def when(self, ready):
        """Wait until something is so; whether it came to that before the job's end."""
        while self.process.poll() is None:
            if ready():
                return True
            time.sleep(0.002)
        return False

    def end(self):
        """(exit code, output of all processes)."""
        out, err = self.process.communicate(timeout=400)
        return self.process.returncode, out + err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def one_process(place):
    """The run of one owner in one process on one device, to the end."""
    code, _, err = place.run("train.py", place.config, "--workdir", "one", *SEED)
    assert code == 0, err
    return place.folder / "one"


@pytest.fixture(scope="module")
def two_processes(place):
    """The same run in two processes."""
    code, said = Job(place, place.config, "--workdir", "two", *SEED).end()
    assert code == 0, said
    assert "2 x cpu in 2 processes" in said
    return place.folder / "two"


def _close(a, b):
    chex.assert_trees_all_close(final_state(a).params, final_state(b).params, atol=1e-5)
    chex.assert_trees_all_close(final_state(a).stats, final_state(b).stats, atol=1e-5)
    for one, other in zip(without_speed(a), without_speed(b), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)  # they have 6 digits


# One run, any layout


def test_two_processes_train_as_one(one_process, two_processes):
    """90 steps; one process writes what there is one of; what it shows is hidden alike."""
    _close(one_process, two_processes)
    pictures = [(folder / "samples.png").read_bytes() for folder in (one_process, two_processes)]
    assert pictures[0] == pictures[1]
    assert sorted(p.name for p in one_process.iterdir()) == sorted(
        p.name for p in two_processes.iterdir()
    )


def test_four_clients_train_alike_in_one_process_and_in_two(place):
    settings = (place.config, "--clients", 4, "--epochs", 3, *SEED)
    code, _, err = place.run("train.py", *settings, "--workdir", "four")
    assert code == 0, err
    code, said = Job(place, *settings, "--workdir", "four2").end()
    assert code == 0, said
    assert "120 private examples of 4 clients" in said
    _close(place.folder / "four", place.folder / "four2")
    code, out, err = place.run("eval.py", "four2", "--client", 3, "--encryptions", 1)
    assert code == 0, err
    assert "encrypted, mean over T=1" in out


def test_secrets_and_data_stay_in_their_processes(place):
    """One client per process: neither memory nor files of a process hold what is the other's."""
    spied = place.folder / "spied"
    spied.mkdir()
    settings = (place.config, "--clients", 2, "--epochs", 2, "--workdir", "owners")
    code, said = Job(place, *settings, program="tests/spy.py", SPY=str(spied)).end()
    assert code == 0, said
    found = [json.loads((spied / f"{i}.json").read_text()) for i in (0, 1)]
    images = _training_images()
    for mine, other in ((0, 1), (1, 0)):
        seen, given = set(found[mine]["seen"]), found[mine]["given"]
        assert given[str(mine)] in seen  # the search finds what is there
        assert str(other) not in given
        theirs = found[other]["given"]
        assert not {theirs[str(other)], theirs["secret"]} & seen
        assert len(set(images[mine::2]) & seen) == 60
        assert not set(images[other::2]) & seen
    files = [place.folder / f"owners.client{c}.secret" for c in (0, 1)]
    secrets = [file.read_text().strip() for file in files]
    assert secrets[0] != secrets[1]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 2
    for file in (place.folder / "owners").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for secret in secrets:
                assert secret.encode() not in content
                assert bytes.fromhex(secret) not in content


def _training_images():
    """Digests of the 120 images of the configuration, in order."""
    train = Mnist5k(validation=3880).load().train
    assert len(mnist5k()[0].labels) > len(train.labels) == 120
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in train.images]


def test_a_stream_is_read_in_parts_and_trains_alike(place):
    """Every process reads its rows of every batch."""
    prepare_photos(place.folder)
    settings = (f"{place.config}:streamed", "--epochs", 2, *SEED)
    code, _, err = place.run("train.py", *settings, "--workdir", "stream")
    assert code == 0, err
    code, said = Job(place, *settings, "--workdir", "stream2").end()
    assert code == 0, said
    one, two = (final_state(place.folder / name, (8, 8, 3), 3) for name in ("stream", "stream2"))
    chex.assert_trees_all_close(one.params, two.params, atol=1e-5)


def test_texts_of_two_owners_train_alike_in_two_processes(place):
    """Each scores its own validation texts under its own masks; lengths are agreed upon."""
    config = place.folder / "texts.py"
    config.write_text(TEXTS)
    settings = (config, "--clients", 2, "--epochs", 2, *SEED)
    eight = {"XLA_FLAGS": f"{QUICK} {EIGHT_DEVICES}"}
    code, _, err = place.run("train.py", *settings, "--workdir", "texts", **eight)
    assert code == 0, err
    code, said = Job(place, *settings, "--workdir", "texts2").end()
    assert code == 0, said
    one, two = (final_text_state(place.folder / name) for name in ("texts", "texts2"))
    chex.assert_trees_all_close(one.params, two.params, atol=1e-5)
    for a, b in zip(*(without_speed(place.folder / n) for n in ("texts", "texts2")), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


# Interrupted and resumed


def test_a_run_goes_on_in_another_number_of_processes(place, one_process):
    """From two processes to one, and back; sharded, and whole again."""
    folder = place.folder / "moved"
    settings = (place.config, "--workdir", "moved", *SEED)
    job = Job(place, *settings)
    assert job.when(lambda: len(whole_checkpoints(folder)) >= 2)
    job.process.terminate()
    assert job.end()[0] == 75
    stopped = last_step(folder)
    process = place.start("train.py", *settings, "--execution.shard-state")
    while process.poll() is None and last_step(folder) < stopped + 10:
        time.sleep(0.01)
    process.terminate()
    out, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 75)
    assert "The run began on 2 x cpu in 2 processes: parameters will agree" in out
    code, said = Job(place, *settings, "--execution.shard-state").end()
    assert code == 0, said
    _close(one_process, folder)


def test_sigterm_to_one_process_saves_and_stops_all(place, two_processes):
    folder = place.folder / "stopped"
    settings = (place.config, "--workdir", "stopped", *SEED)
    job = Job(place, *settings)
    assert job.when(lambda: whole_checkpoints(folder))
    os.kill(job.pid(1), signal.SIGTERM)
    code, said = job.end()
    assert code == 75, said
    step = int(re.search(r"stopped and saved at step (\d+) of 90", said)[1])
    assert step == max(whole_checkpoints(folder))
    code, said = Job(place, *settings).end()
    assert code == 0, said
    assert f"Resuming at step {step} of 90" in said
    assert "The run began on" not in said
    assert_same_state(final_state(two_processes), final_state(folder))
    assert without_speed(two_processes)[-1] == without_speed(folder)[-1]


@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_process_dies_the_other_ends_and_the_run_goes_on(place, two_processes, victim):
    folder = place.folder / f"died{victim}"
    settings = (place.config, "--workdir", folder, *SEED)
    job = Job(place, *settings, grace=120)
    assert job.when(lambda: whole_checkpoints(folder))
    os.kill(job.pid(victim), signal.SIGKILL)
    begin = time.monotonic()
    code, said = job.end()
    assert time.monotonic() - begin < distributed.HEARTBEAT_SECONDS + 30
    assert code == 128 + signal.SIGKILL
    assert re.search("another process of the job does not answer|another task died", said), said
    assert "Traceback" not in said
    code, said = Job(place, *settings).end()
    assert code == 0, said
    assert "Resuming at step" in said
    assert_same_state(final_state(two_processes), final_state(folder))
    assert without_speed(two_processes) == without_speed(folder)


def test_all_processes_fall_back_to_the_same_checkpoint(place, two_processes):
    folder = place.folder / "damaged"
    shutil.copytree(two_processes, folder)
    newest = folder / "checkpoints" / str(max(whole_checkpoints(folder)))
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    code, said = Job(place, place.config, "--workdir", folder, *SEED).end()
    assert code == 0, said
    assert "cannot be read" in said
    assert "Resuming at step 84 of 90" in said
    assert_same_state(final_state(two_processes), final_state(folder))
    assert without_speed(two_processes) == without_speed(folder)


# Starting


def _alone(place, *arguments, **environment):
    return place.run("train.py", place.config, "--workdir", "never", *arguments, **environment)


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_whose_job_does_not_come_together_ends_in_one_line(place, number):
    begin = time.monotonic()
    where = ("--coordinator", "127.0.0.1:9", "--num-processes", 2, "--process-id", number)
    if number == 0:
        where = ("--coordinator", "127.0.0.1:47123", *where[2:])
    code, out, err = _alone(place, *where, "--join-timeout", 3)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: process {number} waited 3 s for ")
    assert err.count("\n") == 1
    assert time.monotonic() - begin < 60
    assert not (place.folder / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {"SLURM_NTASKS": "4"}, "SLURM_NTASKS says that this is one of 4 processes"),
        ((), {"TPU_WORKER_HOSTNAMES": "a,b"}, "one of 2 processes"),
        (("--num-processes", 2), {}, "need --coordinator"),
        (("--coordinator", "here"), {}, "give HOST:PORT"),
        (
            ("--coordinator", "127.0.0.1:99999", "--num-processes", 2, "--process-id", 0),
            {},
            "--coordinator is 127.0.0.1:99999: ",
        ),
        (("--coordinator", "a:1"), {}, "needs --num-processes and --process-id"),
        (("--coordinator", "auto", "--process-id", 1), {}, "leave them out"),
        (
            ("--coordinator", "a:1", "--num-processes", 2, "--process-id", 2),
            {},
            "--process-id is 2 of --num-processes 2",
        ),
        (("--clients", 3), {}, "clients is 3"),
    ],
)
def test_a_job_that_cannot_be_is_refused(place, arguments, environment, message):
    if arguments == ("--clients", 3):
        code, said = Job(place, place.config, *arguments, "--batch-size", 24).end()
        assert "which 2 processes cannot share evenly" in said
    else:
        code, _, said = _alone(place, *arguments, **environment)
        assert said.count("\n") == 1
    assert code == 2
    assert message in said
    assert not (place.folder / "never").exists()


def test_what_one_process_alone_gets_wrong_ends_all_and_nothing_is_written(place):
    secret = place.folder / "open.client1.secret"
    secret.write_text("0" * 64 + "\n")
    secret.chmod(0o644)
    settings = (place.config, "--clients", 2, "--workdir", "open", "--epochs", 1)
    code, said = Job(place, *settings).end()
    assert code == 2, said
    assert re.search(r"^\[1\] error: secret file \S+ has mode 0644", said, re.M)
    assert "[0] error: process 1 has failed; see its own message" in said
    assert not (place.folder / "open").exists()
    assert not (place.folder / "open.client0.secret").exists()
    shutil.copy(_secret_of(place, "copied", 0), place.folder / "open.client1.secret")
    shutil.copy(_secret_of(place, "copied", 0), place.folder / "open.client0.secret")
    code, said = Job(place, *settings).end()
    assert code == 2, said
    assert "client 1 has the secret of client 0" in said


def _secret_of(place, name, client):
    path = place.folder / f"{name}.client{client}.secret"
    if not path.exists():
        write_secret(path, secret_key())
    return path


def test_together_and_merged_in_one_process():
    assert distributed.together(lambda: 3) == 3
    with pytest.raises(InputError, match="as it was"):
        distributed.together(lambda: (_ for _ in ()).throw(InputError("as it was")))
    assert distributed.merged({1: [2.5], 0: "a"}) == {0: "a", 1: [2.5]}
    np.testing.assert_array_equal(distributed.sum_over_processes(np.array([1.5, 2])), [1.5, 2])
