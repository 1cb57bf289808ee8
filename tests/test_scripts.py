"""The scripts for clusters, with stand-ins for gcloud, srun and scontrol."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SHELL = [SCRIPTS / "tpu_pod.sh", SCRIPTS / "slurm.sbatch"]
# Every stand-in logs how it was called, and ends with the next code of a file.
LOG = """#!/bin/bash
printf '%s\\n' "${0##*/} $*" >>log
"""
NEXT = """code=$(head -n 1 codes); sed -i 1d codes; exit "${code:-0}"
"""
GCLOUD = f"""{LOG}
case "$*" in
*describe*) [ -e made ] && cat made ;;
*"resources create"*) echo ACTIVE >made ;;
*"resources delete"*) rm -f made ;;
*"train.py "*) [ -e taken ] && mv taken made; {NEXT}
esac
exit 0
"""
SRUN = f"""{LOG}
[ -e grow ] && mkdir -p run/checkpoints/"$(cat grow)" run/checkpoints/99.tmp
{NEXT}
"""


@pytest.fixture
def shell(tmp_path):
    """Run a script in an empty folder: exit code, the calls it made, stderr."""
    for name, text in (("gcloud", GCLOUD), ("srun", SRUN), ("scontrol", LOG)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o700)

    def run(script, *arguments, codes=(0,), **settings):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "log").write_text("")
        done = subprocess.run(
            ["bash", SCRIPTS / script, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        return done.returncode, (tmp_path / "log").read_text(), done.stderr

    return run


@pytest.fixture
def pod(shell, tmp_path):
    """Run the script for TPUs with all its settings."""
    given = {"TPU": "t", "ZONE": "z", "NFS": "h:/s", "PAUSE": "0"}
    given["SECRET"] = str(tmp_path / "my.secret")
    return lambda *arguments, **settings: shell("tpu_pod.sh", *arguments, **given | settings)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_bash_accepts(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_a_pod_run_goes_on_until_it_is_done(pod, tmp_path):
    code, log, err = pod("run", "c.py", "--name", "it's", codes=(75, 255, 0), MIN_SECONDS="0")
    assert code == 0, err
    assert log.count("resources create t --node-id=t") == 1
    assert log.count(r"train.py c.py --name it\'s --secret-file ~/secret --coordinator auto") == 3
    secret = tmp_path / "my.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(bytes.fromhex(secret.read_text())) == 32
    assert secret.read_text().strip() not in log
    before = secret.read_text()
    assert pod("setup")[0] == 0
    assert secret.read_text() == before


def test_a_slice_that_was_taken_away_is_asked_for_anew(pod, tmp_path):
    (tmp_path / "taken").write_text("SUSPENDED\n")
    code, log, err = pod("run", "c.py", codes=(255, 0))
    assert code == 0, err
    assert log.count("resources create") == 2
    assert log.count("resources delete t --force --quiet") == 1


@pytest.mark.parametrize(("codes", "starts"), [((2,), 1), ((75, 75, 75, 0), 3)])
def test_a_pod_run_that_cannot_work_ends(pod, codes, starts):
    code, log, err = pod("run", "c.py", codes=codes)
    assert code == 2
    assert log.count("train.py c.py") == starts
    assert err.splitlines()[-1].startswith("error: ")


def test_clients_bring_their_own_secrets(pod):
    _, log, _ = pod("train", "c.py", "--clients", "8", "--secret-file", "s.{client}")
    assert log.count("--secret-file") == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["create"], {"TPU": ""}, "TPU is not set"),
        (["create"], {"ZONE": ""}, "ZONE is not set"),
        (["run", "c.py"], {"NFS": ""}, "NFS is not set"),
        (["run", "c.py"], {"SECRET": ""}, "SECRET is not set"),
        (["fetch"], {}, "fetch takes one path"),
        (["train"], {}, "no config is given"),
    ],
)
def test_settings_that_are_missing(pod, arguments, settings, message):
    code, log, err = pod(*arguments, **settings)
    assert (code, log) == (2, "")
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize("command", ["tpu", "--help"])
def test_help(shell, command):
    code, log, _ = shell("tpu_pod.sh", command)
    assert (code, log) == (0 if command == "--help" else 2, "")


@pytest.mark.parametrize(
    ("code", "progress", "restarts", "requeued"),
    [
        (0, True, 0, False),
        (2, True, 0, False),
        (137, True, 0, False),
        (75, True, 0, True),
        (75, True, 50, True),
        (75, False, 2, True),
        (75, False, 3, False),  # it would never end
    ],
)
def test_slurm_puts_back_what_was_saved(shell, tmp_path, code, progress, restarts, requeued):
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "grow").write_text("12" if progress else "7")
    got, log, _ = shell(
        "slurm.sbatch",
        *("c.py", "--workdir", "run"),
        codes=(code,),
        SLURM_JOB_ID="5",
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert got == code
    assert "train.py c.py --workdir run --coordinator auto" in log
    assert ("scontrol requeue 5" in log) == requeued


@pytest.mark.parametrize("arguments", [[], ["--workdir", "run"], ["c.py"]])
def test_slurm_needs_a_config_and_a_folder(shell, arguments):
    code, log, err = shell("slurm.sbatch", *arguments)
    assert (code, log) == (2, "")
    assert "--workdir" in err
