"""The run folder: one experiment on one data set under one secret."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import EXPERIMENT

from instahide_jax import run as run_module
from instahide_jax.errors import InputError
from instahide_jax.run import (
    check_data,
    default_secret_file,
    open_run,
    read_experiment,
    run_secret,
)
from instahide_jax.secret import read_secret, secret_key, write_secret


def _words(secret):
    return np.asarray(jax.random.key_data(secret.key)).tolist()


def test_a_new_run_makes_its_folder_and_a_secret_beside_it(tmp_path):
    folder = tmp_path / "runs" / "a"
    run = open_run(folder, EXPERIMENT, ["data"], None)
    assert not run.resumed
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "run.json"]
    secret_file = tmp_path / "runs" / "a.secret"
    assert secret_file == default_secret_file(folder)
    assert secret_file.stat().st_mode & 0o777 == 0o600
    assert _words(run.secret) != _words(read_secret(secret_file))
    assert read_experiment(folder) == EXPERIMENT
    described = json.loads((folder / "run.json").read_text())
    assert described["secret"].startswith("256 bits")
    assert set(described["versions"]) == {"instahide-jax", "jax", "flax", "optax"}


def test_resuming_gives_the_same_key(tmp_path):
    first = open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    again = open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    assert again.resumed
    assert _words(again.secret) == _words(first.secret)


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
        keys.append(_words(open_run(tmp_path / str(i), experiment, identities, path).secret))
    monkeypatch.setattr(run_module, "version", lambda name: "another")
    keys.append(_words(open_run(tmp_path / "v", EXPERIMENT, ["data", ""], path).secret))
    assert len({tuple(key) for key in keys}) == len(keys)
    monkeypatch.undo()
    same = open_run(tmp_path / "same", EXPERIMENT, ["data", ""], path)
    assert _words(same.secret) == keys[1]


def test_another_experiment_is_refused_with_what_differs(tmp_path):
    open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    other = replace(EXPERIMENT, epochs=3, scheme=replace(EXPERIMENT.scheme, k=5))
    with pytest.raises(InputError, match=r"epochs: 200 -> 3; scheme\.k: 4 -> 5.*--workdir"):
        open_run(tmp_path / "a", other, ["data"], None)


def test_other_data_and_another_version_are_refused(tmp_path, monkeypatch):
    open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    message = "other data or with another version"
    with pytest.raises(InputError, match=message):
        open_run(tmp_path / "a", EXPERIMENT, ["data changed"], None)
    monkeypatch.setattr(run_module, "version", lambda name: "another")
    with pytest.raises(InputError, match=message):
        open_run(tmp_path / "a", EXPERIMENT, ["data"], None)


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
    open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    spoil(tmp_path / "a.secret")
    with pytest.raises(InputError, match=message):
        open_run(tmp_path / "a", EXPERIMENT, ["data"], None)


def test_what_scoring_reads_of_a_run(tmp_path):
    run = open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    secret_file = default_secret_file(tmp_path / "a")
    again = run_secret(tmp_path / "a", EXPERIMENT, ["data"], secret_file)
    assert _words(again) == _words(run.secret)
    check_data(tmp_path / "a", ["data"])
    for check in (check_data, lambda f, i: run_secret(f, EXPERIMENT, i, secret_file)):
        with pytest.raises(InputError, match="other data"):
            check(tmp_path / "a", ["data changed"])
    with pytest.raises(InputError, match="is missing"):
        run_secret(tmp_path / "a", EXPERIMENT, ["data"], tmp_path / "elsewhere")


def test_another_algorithm_has_other_keys(tmp_path, monkeypatch):
    """A change of how keys become mixtures must not hide the same images under the same keys."""
    path = tmp_path / "secret"
    before = _words(open_run(tmp_path / "a", EXPERIMENT, ["data"], path).secret)
    monkeypatch.setattr(run_module, "ALGORITHM", run_module.ALGORITHM + 1)
    with pytest.raises(InputError, match="another version"):
        open_run(tmp_path / "a", EXPERIMENT, ["data"], path)
    assert _words(open_run(tmp_path / "b", EXPERIMENT, ["data"], path).secret) != before


def test_a_run_killed_before_it_was_a_run_starts_again(tmp_path):
    open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    (tmp_path / "a" / "config.json").unlink()
    before = (tmp_path / "a.secret").read_text()
    assert not open_run(tmp_path / "a", EXPERIMENT, ["data"], None).resumed
    assert (tmp_path / "a.secret").read_text() == before


def test_a_secret_file_of_ones_own(tmp_path):
    path = tmp_path / "keys" / "owner"
    open_run(tmp_path / "a", EXPERIMENT, ["data"], path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "a.secret").exists()


def test_insecure_seed_is_recorded_repeatable_and_leaves_no_secret(tmp_path):
    experiment = replace(EXPERIMENT, insecure_seed=3)
    runs = [open_run(tmp_path / name, experiment, ["data"], None) for name in "aab"]
    assert [run.resumed for run in runs] == [False, True, False]
    assert len({tuple(_words(run.secret)) for run in runs}) == 1
    assert runs[0].secret.insecure
    assert "INSECURE" in json.loads((tmp_path / "a" / "run.json").read_text())["secret"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    other = open_run(tmp_path / "c", replace(EXPERIMENT, insecure_seed=4), ["data"], None)
    assert _words(other.secret) != _words(runs[0].secret)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(InputError, match=r"cannot be written: .*; choose another --workdir"):
            open_run(folder, EXPERIMENT, ["data"], None)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_secret_that_cannot_be_written_leaves_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write a secret below"):
        open_run(tmp_path / "a", EXPERIMENT, ["data"], tmp_path / "file" / "secret")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_bad_secret_leaves_no_folder(tmp_path):
    (tmp_path / "open").write_text("00" * 32)
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(InputError, match="0644"):
        open_run(tmp_path / "a", EXPERIMENT, ["data"], tmp_path / "open")
    with pytest.raises(InputError, match="negative"):
        open_run(tmp_path / "a", replace(EXPERIMENT, insecure_seed=-1), ["data"], None)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"class": "os:system"}'])
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_damaged_descriptions(tmp_path, name, content):
    open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    (tmp_path / "a" / name).write_text(content)
    with pytest.raises(InputError):
        open_run(tmp_path / "a", EXPERIMENT, ["data"], None)


def test_no_run_folder(tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        read_experiment(tmp_path)


def test_checkpoints_without_a_configuration_are_nobodys(tmp_path):
    open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
    (tmp_path / "a" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints but no config.json .*; restore it"):
        open_run(tmp_path / "a", EXPERIMENT, ["data"], None)
