"""The run folder: one experiment on one data set under one secret."""

import errno
import json
import os
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import EXPERIMENT

from instahide_jax import run as run_module
from instahide_jax.config import Execution
from instahide_jax.errors import InputError
from instahide_jax.run import (
    Statistics,
    check_data,
    open_run,
    read_experiment,
    read_statistics,
    run_secret,
    secret_files,
)
from instahide_jax.secret import read_secret, secret_key, write_secret


def _open(folder, experiment, identities, secret_file=None):
    """The run of one client."""
    files = secret_files(folder, secret_file, range(1), 1)
    return open_run(folder, experiment, {0: identities}, files)


def _words(secret):
    return np.asarray(jax.random.key_data(secret.key)).tolist()


def test_a_new_run_makes_its_folder_and_a_secret_beside_it(tmp_path):
    folder = tmp_path / "runs" / "a"
    run = _open(folder, EXPERIMENT, ["data"])
    assert not run.resumed
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "run.json"]
    secret_file = tmp_path / "runs" / "a.secret"
    assert secret_files(folder, None, range(1), 1) == {0: secret_file}
    assert secret_file.stat().st_mode & 0o777 == 0o600
    assert _words(run.secrets[0]) != _words(read_secret(secret_file))
    assert read_experiment(folder) == EXPERIMENT
    described = json.loads((folder / "run.json").read_text())
    assert described["secret"].startswith("256 bits")
    assert set(described["versions"]) == {"instahide-jax", "jax", "flax", "optax"}


@pytest.mark.parametrize("deeper", ["", "x/y"])
@pytest.mark.parametrize("what", ["run", "secret", "named"])
def test_a_folder_of_runs_becomes_no_run(tmp_path, what, deeper):
    """It may be copied as a whole, and with it what it holds."""
    runs = tmp_path / "runs"
    secret_file = runs / deeper / "key" if what == "named" else None
    _open(runs / deeper / "a", EXPERIMENT, ["data"], secret_file)
    found = runs / deeper / {"run": "a", "secret": "a.secret", "named": "key"}[what]
    if what != "secret":
        (runs / deeper / "a.secret").unlink(missing_ok=True)
    if what != "run":
        shutil.rmtree(runs / deeper / "a")
    before = sorted(tmp_path.rglob("*"))
    message = f"holds {found} of another run, .*such as --workdir {runs}/NAME$"
    with pytest.raises(InputError, match=message):
        _open(runs, EXPERIMENT, ["data"])
    assert sorted(tmp_path.rglob("*")) == before
    _open(runs / "NAME", EXPERIMENT, ["data"])


def test_a_new_run_may_find_other_files(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.log").write_text("started")
    (folder / "digest").write_text("0" * 66)
    os.mkfifo(folder / "pipe")
    _open(folder, EXPERIMENT, ["data"])
    assert _open(folder, EXPERIMENT, ["data"]).resumed


def test_every_client_has_its_own_secret_and_key(tmp_path):
    folder, held = tmp_path / "a{b}", range(2)
    files = secret_files(folder, None, held, 2)
    assert [path.name for path in files.values()] == [f"a{{b}}.client{c}.secret" for c in held]
    identities = {0: ["same"], 1: ["same"]}
    experiment = replace(EXPERIMENT, clients=2)
    run = open_run(folder, experiment, identities, files)
    assert len({tuple(_words(secret)) for secret in run.secrets.values()}) == 2
    again = open_run(folder, experiment, identities, files)
    assert again.resumed
    for client in held:
        assert _words(again.secrets[client]) == _words(run.secrets[client])
        read = run_secret(folder, experiment, ["same"], files[client], client)
        assert _words(read) == _words(run.secrets[client])
    with pytest.raises(InputError, match="other data"):
        open_run(folder, experiment, {0: ["same"], 1: ["other"]}, files)
    insecure = replace(experiment, insecure_seed=1)
    keys = open_run(tmp_path / "b", insecure, identities, files).secrets
    assert _words(keys[0]) != _words(keys[1])


def test_a_key_changes_with_the_data_of_the_other_clients(tmp_path):
    """What is measured of all data enters the mixtures of each."""
    experiment = replace(EXPERIMENT, clients=2, insecure_seed=1)
    files = secret_files(tmp_path / "a", None, range(2), 2)
    one = open_run(tmp_path / "a", experiment, {0: ["mine"], 1: ["theirs"]}, files)
    two = open_run(tmp_path / "b", experiment, {0: ["mine"], 1: ["changed"]}, files)
    assert _words(one.secrets[0]) != _words(two.secrets[0])


def test_two_clients_with_one_secret_are_refused(tmp_path):
    path = tmp_path / "owner"
    with pytest.raises(InputError, match=r"for 2 clients, which would share it; put \{client\}"):
        secret_files(tmp_path / "a", path, range(2), 2)
    named = secret_files(tmp_path / "a", tmp_path / "c{client}", range(2), 2)
    assert [file.name for file in named.values()] == ["c0", "c1"]
    write_secret(named[0], secret_key())
    named[1].write_text(named[0].read_text())
    named[1].chmod(0o600)
    experiment = replace(EXPERIMENT, clients=2)
    with pytest.raises(InputError, match="client 1 has the secret of client 0; remove the copy"):
        open_run(tmp_path / "a", experiment, {0: ["x"], 1: ["y"]}, named)
    assert not (tmp_path / "a" / "config.json").exists()


def test_execution_may_change_and_is_no_part_of_the_key(tmp_path):
    first = _open(tmp_path / "a", EXPERIMENT, ["data"])
    changed = replace(EXPERIMENT, execution=Execution(shard_state=True, compilation_cache="x"))
    again = _open(tmp_path / "a", changed, ["data"])
    assert again.resumed
    assert _words(again.secrets[0]) == _words(first.secrets[0])
    assert again.began_on == f"{jax.device_count()} x cpu in 1 process"


def test_statistics_are_kept_for_scoring(tmp_path):
    statistics = Statistics((0.1, 0.2, 1 / 3), (0.5, 0.25, 2 / 3))
    files = secret_files(tmp_path / "a", None, range(1), 1)
    open_run(tmp_path / "a", EXPERIMENT, {0: ["data"]}, files, statistics)
    assert read_statistics(tmp_path / "a") == statistics
    _open(tmp_path / "b", EXPERIMENT, ["data"])
    assert read_statistics(tmp_path / "b") == Statistics(None, None)


def test_resuming_gives_the_same_key(tmp_path):
    first = _open(tmp_path / "a", EXPERIMENT, ["data"])
    again = _open(tmp_path / "a", EXPERIMENT, ["data"])
    assert again.resumed
    assert _words(again.secrets[0]) == _words(first.secrets[0])


def test_one_secret_gives_every_experiment_and_data_set_its_own_key(tmp_path, monkeypatch):
    path = tmp_path / "owner.secret"
    write_secret(path, secret_key())
    keys = [_words(read_secret(path))]
    for i, (experiment, identities) in enumerate(
        [
            (EXPERIMENT, ["data", ""]),
            (EXPERIMENT, ["other", ""]),
            (EXPERIMENT, ["data", "pool"]),
            (EXPERIMENT, ["", "data"]),
            (replace(EXPERIMENT, seed=1), ["data", ""]),
        ]
    ):
        keys.append(_words(_open(tmp_path / str(i), experiment, identities, path).secrets[0]))
    monkeypatch.setattr(run_module, "__version__", "another")
    keys.append(_words(_open(tmp_path / "v", EXPERIMENT, ["data", ""], path).secrets[0]))
    assert len({tuple(key) for key in keys}) == len(keys)
    monkeypatch.undo()
    same = _open(tmp_path / "same", EXPERIMENT, ["data", ""], path)
    assert _words(same.secrets[0]) == keys[1]


def test_another_experiment_is_refused_with_what_differs(tmp_path):
    _open(tmp_path / "a", EXPERIMENT, ["data"])
    other = replace(EXPERIMENT, epochs=3, scheme=replace(EXPERIMENT.scheme, k=5))
    with pytest.raises(InputError, match=r"epochs: 200 -> 3; scheme\.k: 4 -> 5.*--workdir"):
        _open(tmp_path / "a", other, ["data"])


def test_other_data_and_another_version_are_refused(tmp_path, monkeypatch):
    _open(tmp_path / "a", EXPERIMENT, ["data"])
    message = "other data or with another version"
    with pytest.raises(InputError, match=message):
        _open(tmp_path / "a", EXPERIMENT, ["data changed"])
    monkeypatch.setattr(run_module, "__version__", "another")
    with pytest.raises(InputError, match=message):
        _open(tmp_path / "a", EXPERIMENT, ["data"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.chmod(0o644), "has mode 0644.*chmod 600"),
        (lambda path: path.chmod(0o660), "has mode 0660"),
        (lambda path: path.write_text("zz"), "is damaged"),
    ],
)
def test_secret_of_a_resumed_run(tmp_path, spoil, message):
    _open(tmp_path / "a", EXPERIMENT, ["data"])
    spoil(tmp_path / "a.secret")
    with pytest.raises(InputError, match=message):
        _open(tmp_path / "a", EXPERIMENT, ["data"])


def test_what_scoring_reads_of_a_run(tmp_path):
    run = _open(tmp_path / "a", EXPERIMENT, ["data"])
    secret_file = tmp_path / "a.secret"
    again = run_secret(tmp_path / "a", EXPERIMENT, ["data"], secret_file)
    assert _words(again) == _words(run.secrets[0])
    check_data(tmp_path / "a", ["data"])
    for check in (check_data, lambda f, i: run_secret(f, EXPERIMENT, i, secret_file)):
        with pytest.raises(InputError, match="other data"):
            check(tmp_path / "a", ["data changed"])
    with pytest.raises(InputError, match="is missing"):
        run_secret(tmp_path / "a", EXPERIMENT, ["data"], tmp_path / "elsewhere")


def test_another_algorithm_has_other_keys(tmp_path, monkeypatch):
    """A change of how keys become mixtures must not hide the same images under the same keys."""
    path = tmp_path / "secret"
    before = _words(_open(tmp_path / "a", EXPERIMENT, ["data"], path).secrets[0])
    monkeypatch.setattr(run_module, "ALGORITHM", run_module.ALGORITHM + 1)
    with pytest.raises(InputError, match="another version"):
        _open(tmp_path / "a", EXPERIMENT, ["data"], path)
    assert _words(_open(tmp_path / "b", EXPERIMENT, ["data"], path).secrets[0]) != before


def test_a_run_killed_before_it_was_a_run_starts_again(tmp_path):
    _open(tmp_path / "a", EXPERIMENT, ["data"])
    (tmp_path / "a" / "config.json").unlink()
    before = (tmp_path / "a.secret").read_text()
    assert not _open(tmp_path / "a", EXPERIMENT, ["data"]).resumed
    assert (tmp_path / "a.secret").read_text() == before


def test_a_secret_file_of_ones_own(tmp_path):
    path = tmp_path / "keys" / "owner"
    _open(tmp_path / "a", EXPERIMENT, ["data"], path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "a.secret").exists()


def test_insecure_seed_is_recorded_repeatable_and_leaves_no_secret(tmp_path):
    experiment = replace(EXPERIMENT, insecure_seed=3)
    runs = [_open(tmp_path / name, experiment, ["data"]) for name in "aab"]
    assert [run.resumed for run in runs] == [False, True, False]
    assert len({tuple(_words(run.secrets[0])) for run in runs}) == 1
    assert runs[0].secrets[0].insecure
    assert "INSECURE" in json.loads((tmp_path / "a" / "run.json").read_text())["secret"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    other = _open(tmp_path / "c", replace(EXPERIMENT, insecure_seed=4), ["data"])
    assert _words(other.secrets[0]) != _words(runs[0].secrets[0])


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(InputError, match=r"cannot be written: .*; choose another --workdir"):
            _open(folder, EXPERIMENT, ["data"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_secret_that_cannot_be_written_leaves_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is no folder; name a file elsewhere"):
        _open(tmp_path / "a", EXPERIMENT, ["data"], tmp_path / "file" / "secret")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_bad_secret_leaves_no_folder(tmp_path):
    (tmp_path / "open").write_text("00" * 32)
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(InputError, match="0644"):
        _open(tmp_path / "a", EXPERIMENT, ["data"], tmp_path / "open")
    with pytest.raises(InputError, match="negative"):
        _open(tmp_path / "a", replace(EXPERIMENT, insecure_seed=-1), ["data"])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"class": "os:system"}'])
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_damaged_descriptions(tmp_path, name, content):
    _open(tmp_path / "a", EXPERIMENT, ["data"])
    (tmp_path / "a" / name).write_text(content)
    message = "run.json (is damaged: it describes no run; restore|cannot be read)"
    with pytest.raises(InputError, match=message if name == "run.json" else "config.json|another"):
        _open(tmp_path / "a", EXPERIMENT, ["data"])
    if name == "run.json":
        for reads in (lambda folder: check_data(folder, ["data"]), read_statistics):
            with pytest.raises(InputError, match=message):
                reads(tmp_path / "a")


def test_no_run_folder(tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        read_experiment(tmp_path)


def test_checkpoints_without_a_configuration_are_nobodys(tmp_path):
    _open(tmp_path / "a", EXPERIMENT, ["data"])
    (tmp_path / "a" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints but no config.json .*; restore it"):
        _open(tmp_path / "a", EXPERIMENT, ["data"])


@pytest.mark.parametrize("function", ["pathlib.Path.write_text", "os.replace"])
def test_json_files_are_whole_or_absent(function, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    run_module.write_json(path, {"is": 1})
    monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match="No space left"):
        run_module.write_json(path, {"is": 2})
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [
        (path, b'{\n  "is": 1\n}\n')
    ]
