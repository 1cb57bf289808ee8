"""Configurations: found by name, written and read back, told apart, refused."""

import dataclasses
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tiny import EXPERIMENT

from instahide_jax import InstaHide
from instahide_jax.config import (
    Experiment,
    differences,
    fingerprint,
    from_json,
    load_config,
    to_json,
    variants,
)
from instahide_jax.data.sources import DataConfig, Mnist5k, PoolHeldOut, TfdsStream
from instahide_jax.errors import InputError
from instahide_jax.optimizers import Cosine, Schedule, Sgd

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))
ALL = [f"{path}:{name}" for path in CONFIGS for name in variants(path)]


def _mark(experiment=EXPERIMENT, identities=("data", ""), version="1"):
    return fingerprint(experiment, list(identities), version)


# The files in configs/


@pytest.mark.parametrize("reference", ALL, ids=lambda r: r.rpartition("/")[2])
def test_every_variant_builds_and_survives_json(reference):
    experiment = load_config(reference)
    assert isinstance(experiment, Experiment)
    text = json.dumps(to_json(experiment))
    assert from_json(json.loads(text)) == experiment
    assert to_json(from_json(json.loads(text))) == json.loads(text)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_file_has_the_four_variants_and_says_how_to_run(path):
    assert {"default", "vanilla", "mixup", "inside", "cross"} <= set(variants(path))
    assert load_config(str(path)) == load_config(f"{path}:inside")
    assert f"python train.py configs/{path.name}" in path.read_text()
    assert load_config(f"{path}:vanilla").scheme.num_partners == 0
    assert load_config(f"{path}:mixup").scheme.mask == "none"
    cross = load_config(f"{path}:cross")
    assert (cross.scheme.k, cross.scheme.num_private) == (6, 2)
    assert cross.public_pool is not None


def test_variants_differ_in_scheme_and_pool_only():
    for path in CONFIGS:
        default = load_config(f"{path}:default")
        for name in ("vanilla", "mixup", "cross"):
            other = load_config(f"{path}:{name}")
            assert replace(other, scheme=default.scheme, public_pool=None) == default


# Names


def test_nearest_names(tmp_path):
    (tmp_path / "first.py").write_text(
        "def default():\n    return 1\n\n\ndef _hidden():\n    pass\n"
    )
    (tmp_path / "second.py").write_text("def other():\n    return 2\n")
    assert load_config(str(tmp_path / "first.py")) == 1
    assert load_config(f"{tmp_path}/second.py:other") == 2
    for reference, message in {
        "frist.py": r"frist.py does not exist; did you mean .*first\.py\? .*second\.py",
        "first.py:defualt": r"no variant 'defualt'; did you mean default\?",
        "first.py:_hidden": "no variant '_hidden'",
        "second.py": r"no variant 'default'.*other",
        "nowhere/first.py": "does not exist$",
        "": "does not exist",
    }.items():
        with pytest.raises(InputError, match=message):
            load_config(f"{tmp_path}/{reference}")


def test_what_a_config_file_imports_is_no_variant(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("from dataclasses import replace\nK = 4\n\n\ndef default():\n    return 1\n")
    assert set(variants(path)) == {"default"}


# JSON and the fingerprint


def test_differences_name_the_fields():
    other = replace(EXPERIMENT, seed=1, scheme=InstaHide.inside(k=5), insecure_seed=2)
    assert differences(to_json(EXPERIMENT), to_json(other)) == [
        "insecure_seed: null -> 2",
        "scheme.k: 4 -> 5",
        "seed: 0 -> 1",
    ]
    assert differences(to_json(EXPERIMENT), to_json(EXPERIMENT)) == []
    changed = replace(EXPERIMENT, optimizer=Sgd(schedule=Cosine()))
    (line,) = differences(to_json(EXPERIMENT), to_json(changed))
    assert line.startswith("optimizer.schedule.class: ")


def _changed(value):
    """Every configuration that differs from `value` in one field, however deep."""
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if dataclasses.is_dataclass(held):
            others = _changed(held)
        elif isinstance(held, bool):
            others = [not held]
        elif isinstance(held, int | float):
            others = [held + 1, held / 2 or 0.5]
        elif isinstance(held, tuple):
            others = [(*held, 1)]
        else:
            others = [f"{held}x"]
        for other in others:
            copy = object.__new__(type(value))  # without validation: the print is what matters
            copy.__dict__.update(value.__dict__ | {field.name: other})
            yield copy


def test_fingerprint_changes_with_any_field_data_and_version():
    marks = [_mark(changed) for changed in _changed(EXPERIMENT)]
    marks += [_mark(), _mark(version="2"), _mark(identities=("data2", ""))]
    marks += [_mark(identities=("", "data")), _mark(identities=("data",))]
    assert len(marks) > 50
    assert len(set(marks)) == len(marks)
    assert _mark() == _mark(from_json(to_json(EXPERIMENT)))
    assert len(_mark()) == 32


@pytest.mark.parametrize(
    "value",
    [
        {"class": "nowhere:Thing"},
        {"class": "instahide_jax.config:Nothing"},
        {"class": "instahide_jax.config:Sgd", "learning_rat": 1},
        {"class": "os:system", "command": "true"},
        {"class": "builtins:dict"},
        {"class": "nonsense"},
        {"no class": 1},
    ],
)
def test_unreadable_json_is_refused_and_nothing_is_called(value):
    with pytest.raises(InputError, match="the saved configuration cannot be read"):
        from_json(value)


# What is refused

_with = partial(replace, EXPERIMENT)
WRONG = {
    "epochs is 0": lambda: _with(epochs=0),
    "batch_size is 0": lambda: _with(batch_size=0),
    "save_every is 0": lambda: _with(save_every=0),
    "log_every is -1": lambda: _with(log_every=-1),
    "partners is 'class'; choose": lambda: _with(partners="class"),
    "device_map is 'vmap'; choose": lambda: _with(device_map="vmap"),
    r"seed is -1; .* \[0, 2\*\*32\)": lambda: _with(seed=-1),
    "seed is 4294967296": lambda: _with(seed=2**32),
    "batch_size is 3; mixing 4 private": lambda: _with(batch_size=3),
    "public_pool is not set": lambda: _with(scheme=InstaHide.cross(k=6), public_pool=None),
    "learning_rate is 0; .* above 0": lambda: Sgd(learning_rate=0),
    r"momentum is 1; it must lie in \[0, 1\)": lambda: Sgd(momentum=1),
    "weight_decay is -1": lambda: Sgd(weight_decay=-1),
    "accumulate is 0": lambda: Sgd(accumulate=0),
    "warmup_epochs is -0.5": lambda: Schedule(warmup_epochs=-0.5),
    "give both or neither": lambda: Mnist5k(mean=(0.5,)),
    "streamed data set are not measured": lambda: TfdsStream(),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_settings(message):
    with pytest.raises(InputError, match=message):
        WRONG[message]()


def test_the_smallest_batch_that_holds_a_mixture():
    assert _with(batch_size=4).batch_size == 4
    assert _with(scheme=InstaHide.cross(k=6), public_pool=PoolHeldOut(9), batch_size=2)


def test_bases_say_what_is_missing():
    with pytest.raises(TypeError, match="DataConfig does not define load"):
        DataConfig().load()
