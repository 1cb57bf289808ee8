"""Paths as users type them, environments as they find them: one line, or it works."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT, Place, call, prepare_photos
from tiny import labelled

from instahide_jax import InputError, cli, read_secret, secret_key, write_secret
from instahide_jax.data.prepare import prepare
from instahide_jax.data.tfds_io import data_root
from instahide_jax.folders import local_folder, user_path
from instahide_jax.run import secret_files

__all__ = ["call"]  # a fixture


def python(code, **environment):
    """(exit code, stdout, stderr) of a line of Python in this checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Paths


def test_a_path_of_a_user(home):
    assert user_path("~/a", "--out") == home / "a"
    assert user_path("a/b", "--out") == Path("a/b")
    assert local_folder("~/bert") == data_root("~/bert") == home / "bert"
    for empty in ("", "  "):
        with pytest.raises(InputError, match=r"^--out is empty; name a file or folder"):
            user_path(empty, "--out")
    with pytest.raises(InputError, match=r"^--out is ~nobody-here/a, but that user has no home"):
        user_path("~nobody-here/a", "--out")
    for read in (data_root, lambda name: user_path(name, "--out"), local_folder):
        with pytest.raises(InputError, match=r" is gs://b/x, an address; name a local path"):
            read("gs://b/x")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("no/../a", "a"),
        ("no/more/../../a", "a"),
        ("no/../../a", "../a"),
        ("no/..", "."),
        ("../a", "../a"),
        ("real/../a", "real/../a"),
        ("link/../a", "link/../a"),
        ("/no/../../a", "/../a"),
    ],
)
def test_a_detour_through_nothing_makes_no_folder(typed, meant, home):
    (home / "real").mkdir()
    (home / "far" / "away").mkdir(parents=True)
    (home / "link").symlink_to("far/away")
    assert user_path(typed, "--out") == Path(meant)
    if not typed.startswith(("/", "..")) and meant.endswith("a"):
        before = {path for path in home.rglob("*") if path.is_dir()}
        write_secret(typed, secret_key())
        assert {path for path in home.rglob("*") if path.is_dir()} == before
        assert read_secret(typed) is not None
        Path(meant).unlink()


@pytest.mark.parametrize(
    ("folder", "secret"),
    [
        ("runs/a", "runs/a.secret"),
        ("runs/a/", "runs/a.secret"),
        ("runs/a/.", "runs/a.secret"),
        ("runs/a/sub/..", "runs/a.secret"),
        ("runs/a/sub/../../b", "runs/b.secret"),
        (".", "../HOME.secret"),
    ],
)
def test_the_secret_lies_beside_the_run_folder(folder, secret, home):
    (home / "runs/a/sub").mkdir(parents=True)
    found = secret_files(Path(folder), None, range(1), 1)[0]
    assert found.resolve() == (home / secret.replace("HOME", home.name)).resolve()
    assert not found.resolve().is_relative_to(Path(folder).resolve())


@pytest.mark.parametrize(
    ("folder", "named", "message"),
    [
        ("/", None, "--workdir is /, and beside it is no place for the secret"),
        ("runs/a", "/", "--secret-file is /, a folder; name a file"),
        ("runs/a", ".", r"--secret-file is \., a folder; name a file"),
        ("runs/a", "..", r"--secret-file is \.\., a folder; name a file"),
        ("runs/a", "runs", "--secret-file is runs, a folder; name a file"),
        ("runs/a", "FILE/key", "--secret-file is FILE/key, but .*/FILE is no folder; name a file"),
        ("runs/a", "runs/a/key", "--secret-file is runs/a/key, inside the run folder .*/runs/a,"),
        ("runs/a", "runs/a/b/../key", "inside the run folder .*/runs/a, which may be copied; name"),
        ("runs/a", "run/b/key", "--secret-file is run/b/key, inside the run folder .*/run, which"),
        ("runs/a", "run/old", "inside the run folder .*/run, .*; move it elsewhere, and name it"),
        ("runs/a", "link", "--secret-file is link, inside the run folder .*/run, which may be"),
        (
            "run/b",
            None,
            "the secret of run/b is .*/run/b.secret, inside .*elsewhere with --secret-",
        ),
    ],
)
def test_places_where_no_secret_can_be(folder, named, message, home):
    for made in ("runs", "run"):
        (home / made).mkdir()
    for made in ("FILE", "run/config.json", "run/run.json", "run/old"):
        (home / made).write_text("")
    (home / "link").symlink_to("run/key")
    with pytest.raises(InputError, match=message):
        secret_files(Path(folder), None if named is None else Path(named), range(1), 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("places"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workdir", ""), "--workdir is empty; name a file or folder"),
        (("--workdir", "/"), "--workdir is /, and beside it is no place"),
        (("--secret-file", ""), "--secret-file is empty; name a file or folder"),
        (("--secret-file", "/"), "--secret-file is /, a folder; name a file"),
        (("--secret-file", "FILE/a"), "/FILE is no folder; name a file elsewhere"),
        (("--execution.compilation-cache", ""), "execution.compilation_cache is empty; name"),
        (("--execution.compilation-cache", "FILE"), "is no folder that can be written"),
        (("--workdir", "FILE"), "FILE"),
        (("--workdir", "FILE/run"), "FILE"),
        (("--workdir", "LOOP"), "--workdir is LOOP, a link that leads to itself; mend or remove"),
        (("--workdir", "LOOP/run"), "--workdir is LOOP/run, a link that leads to itself"),
        (("--secret-file", "LOOP"), "--secret-file is LOOP, a link that leads to itself"),
        (("--execution.compilation-cache", "LOOP"), "is LOOP, a link that leads to itself"),
    ],
)
def test_paths_of_train(arguments, message, place, call, home):
    (home / "FILE").write_text("mine")
    (home / "LOOP").symlink_to("LOOP")
    code, out, err = call("train", place.config, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(path.name for path in home.iterdir()) == ["FILE", "LOOP"]
    assert (home / "FILE").read_text() == "mine"


@pytest.mark.parametrize("run", ["", "/", ".", "FILE", "nowhere", "LOOP", "LOOP/run"])
def test_paths_of_eval(run, call, home):
    (home / "FILE").write_text("mine")
    (home / "LOOP").symlink_to("LOOP")
    code, _, err = call("eval", run)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


# A folder for the secret is made; all pictures of a machine are its owner's choice.
WORKS = {
    ("nowhere/a", "encrypt data.npz --out a.npz --secret-file {}"),
    ("/", "prepare public-pool --source {} --out pool.npy"),
}


@pytest.mark.parametrize(
    "line",
    [
        "encrypt data.npz --out {} --secret-file a.secret",
        "encrypt data.npz --out a.npz --secret-file {}",
        "encrypt data.npz --out a.npz --secret-file a.secret --mode cross --public-pool {}",
        "encrypt {} --out a.npz --secret-file a.secret",
        "prepare photos --source {} --data-dir tfds",
        "prepare public-pool --source {} --out pool.npy",
        "prepare public-pool --source folder --out {}",
    ],
)
@pytest.mark.parametrize("path", ["", "/", ".", "FILE", "folder", "nowhere/a"])
def test_paths_of_the_command(line, path, home):
    if (path, line) in WORKS:
        return
    (home / "FILE").write_text("mine")
    (home / "folder").mkdir()
    arrays = labelled(8, (4, 4, 1))
    np.savez(home / "data.npz", image=arrays.images, label=arrays.labels)
    with pytest.raises(InputError) as caught:
        cli.run([path if word == "{}" else word for word in line.split()])
    assert "\n" not in str(caught.value).strip()
    assert {p.name for p in home.iterdir()} <= {"FILE", "folder", "data.npz", "tfds"}
    assert not (home / "a.secret").exists()


def test_a_home_folder_in_every_option_of_encrypt(home):
    arrays = labelled(8, (4, 4, 1))
    np.savez(home / "data.npz", image=arrays.images, label=arrays.labels)
    cli.run(["encrypt", "~/data.npz", "--out", "~/a.npz", "--secret-file=~/a.secret"])
    assert {p.name for p in home.iterdir()} == {"data.npz", "a.npz", "a.secret"}


# Environments


@pytest.mark.parametrize("backend", ["module://nowhere", "nonsense"])
def test_pictures_whatever_backend_a_notebook_left(backend, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 2.0}\n')
    code = (
        "from pathlib import Path; from instahide_jax.pictures import save_curves; "
        f"save_curves(Path('{tmp_path}/a.png'), Path('{tmp_path}/metrics.jsonl'), 'a')"
    )
    assert python(code, MPLBACKEND=backend)[::2] == (0, "")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_text_that_the_terminal_cannot_show(tmp_path):
    code = "from instahide_jax.errors import run_main; run_main(lambda: print('日本 é'))"
    done, out, err = python(code, PYTHONIOENCODING="ascii")
    assert (done, err) == (0, "")
    assert out.strip() == rb"\u65e5\u672c \xe9"


PROGRESS = (
    "import time; from instahide_jax.metrics import progress_bar\n"
    "with progress_bar(300, 'train', ' steps') as bar:\n"
    "    for i in range(300): bar.update(); bar.set_postfix_str(str(i), refresh=False)"
)


def test_progress_without_a_terminal_is_a_line_now_and_then():
    code, _, err = python(PROGRESS)
    assert code == 0
    assert "\r" not in err
    assert 1 <= len(err.splitlines()) <= 3
    assert "300/300" in err.splitlines()[-1]


def test_the_environment_switches_progress_off():
    assert python(PROGRESS, TQDM_DISABLE="1") == (0, b"", "")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(closed, tmp_path):
    code = (
        "from instahide_jax.errors import run_main\n"
        "def main():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "    assert file.fileno() > 2\n"  # else what libraries print would go into it
        "    print('said')\n"
        + "".join(f"    {line}\n" for line in PROGRESS.splitlines())
        + "    file.write('whole')\n"
        "run_main(main)"
    )
    command = f'exec "{sys.executable}" -c "$CODE" {closed}'
    subprocess.run(["sh", "-c", command], check=True, env={**os.environ, "CODE": code})
    assert (tmp_path / "file").read_text() == "whole"


# The environment of a shell, where stdout into a file or a pipe is written when its buffer is full.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("size", [1, 10**6])  # found at the end, and at once
def test_whoever_reads_the_output_may_end(size):
    wait = "import time; time.sleep(1)"  # until the reader has ended
    code = (
        f"from instahide_jax.errors import run_main; {wait}; run_main(lambda: print('x' * {size}))"
    )
    command = f'"{sys.executable}" -c "$CODE" | true'
    result = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        env={**BUFFERED, "CODE": code},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "error: cannot write to stdout: its reader has ended\n"


def test_an_output_that_is_full():
    code = "from instahide_jax.errors import run_main; run_main(lambda: print('x'))"
    with open("/dev/full", "w", encoding="utf-8") as full:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=BUFFERED,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (
        2,
        "error: cannot write or read: No space left on device; mend that\n",
    )


def test_prepare_leaves_nothing_among_the_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    prepare_photos(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "already" in str(prepare("photos", tmp_path / "photos", tmp_path / "tfds"))
    assert list((tmp_path / "tmp").iterdir()) == []


# File systems without hard links


@pytest.fixture
def no_links(monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", link)


def test_a_secret_without_hard_links(no_links, tmp_path):
    secret = secret_key()
    write_secret(tmp_path / "a.secret", secret)
    assert (tmp_path / "a.secret").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "a.secret").read_bytes()
    assert len(before) == 65
    read_secret(tmp_path / "a.secret")
    with pytest.raises(InputError, match="exists already; name another one"):
        write_secret(tmp_path / "a.secret", secret_key())
    assert (tmp_path / "a.secret").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.secret"]


@pytest.mark.parametrize("function", ["os.rename", "os.link"])
def test_a_secret_is_whole_or_absent(function, no_links, monkeypatch, tmp_path):
    def fail(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(function, fail)
    with pytest.raises(InputError, match=r"cannot write secret file .*: No space left"):
        write_secret(tmp_path / "a.secret", secret_key())
    assert list(tmp_path.iterdir()) == []
