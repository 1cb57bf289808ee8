"""Wrong input: one line that says what to do, exit code 2, and nothing written."""

import re

import numpy as np
import pytest
from programs import ROOT, Place, call
from xla_flags import EIGHT_DEVICES, QUICK

__all__ = ["call"]  # a fixture


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("wrong_input"))


WRONG = {
    "no config": ("", "no config is given|config .* does not exist"),
    "unknown config": (f"{ROOT}/configs/mnist5.py", r"did you mean .*configs/mnist5k\.py\?"),
    "option first": ("--seed 3 CONFIG", "--seed stands before 3, .* the config comes first: train"),
    "no value": (
        "CONFIG --workdir",
        r"argument --workdir: expected one argument; see train\.py --h",
    ),
    "unknown variant": ("CONFIG:vanila", r"has no variant 'vanila'; did you mean vanilla\?"),
    "unknown field": ("CONFIG --sed 3", r"unknown option --sed; did you mean --seed\?"),
    "unknown nested field": ("CONFIG --scheme.kk 3", r"did you mean --scheme\.k\?"),
    "no number": ("CONFIG --epochs many", r"--epochs: invalid .*'many'"),
    "k is 1": ("CONFIG --scheme.k 1 --scheme.num-private 1", "k is 1, .* at least 2"),
    "batch below k": ("CONFIG --batch-size 3", "batch_size is 3; mixing 4 .* lower scheme.k"),
    "bound below 1/k": ("CONFIG --scheme.max-coefficient 0.2", r"0\.2; .* in \[1/k=0\.25, 1\]"),
    "no pool": ("CONFIG:cross_without_pool", "4 public images but public_pool is not set"),
    "missing pool": ("CONFIG:cross_from_file", "the public pool nowhere.npy does not exist"),
    "other pool": (
        "CONFIG:cross_from_file --public-pool.path WRONG_POOL",
        r"holds images of \(8, 8, 3\), the private images are \(28, 28, 1\)",
    ),
    "small pool": ("CONFIG:cross --public-pool.count 3", "pool has 3 images; .* needs 4"),
    "negative pool": ("CONFIG:cross --public-pool.count -1", "-1 examples are to be held out"),
    "unprepared": (
        "CONFIG:tfds --data.data-dir EMPTY",
        "fashion_mnist is not prepared in .*: run `instahide prepare fashion_mnist",
    ),
    "unknown data": ("CONFIG:tfds --data.name fashon_mnist", "did you mean 'fashion_mnist'"),
    "nothing left": ("CONFIG --data.validation 4000", "4000 .* held out of 4000; .* at most 3999"),
    "no validation": ("CONFIG --data.validation 0", "data.validation is 0; hold out at least 1"),
    "odd batch": (
        "CONFIG --batch-size 20",
        "20, which 8 devices cannot share evenly; use 16 or 24",
    ),
    "large batch": ("CONFIG --batch-size 128", "batch_size is 128, more than the 120 training"),
    "large batch of clients": (
        "CONFIG --clients 2 --batch-size 128",
        "batch_size is 128, 64 for each of 2 clients, one of whom has fewer of the 120 training",
    ),
    "clients of one process with own data": (
        "CONFIG --clients 2 --client-data own",
        "client_data is 'own', but clients 0 to 1 are in one process",
    ),
    "cache in a file": (
        f"CONFIG --execution.compilation-cache {ROOT}/README.md/cache",
        r"execution\.compilation_cache is .*README\.md/cache', but .*README\.md is no folder",
    ),
    "large crop": ("CONFIG --augment.size 40", "augment.size is 40, larger than"),
    "crop into padding": ("CONFIG --augment.size 30", "augment.size is 30, larger than"),
    "small images": ("CONFIG:lenet --augment.size 12", "at least 16x16"),
    "negative rate": ("CONFIG --optimizer.learning-rate -1", "learning_rate is -1.0; .* above 0"),
    "negative seed": ("CONFIG --insecure-seed -1", "seed -1 is negative"),
    "unwritable": ("CONFIG --workdir CONFIG/run", "work folder .*tiny.py/run cannot be written"),
    "open secret": ("CONFIG --secret-file OPEN_SECRET", "has mode 0644.* run 'chmod 600"),
    "few classes": ("CONFIG --scheme.num-classes 3", "num_classes is 3 but the data set has 10"),
    "mean of colour": (
        "CONFIG --scheme.mean 0.1 0.2 0.3 --scheme.std 1 1 1",
        "mean has 3 entries and the images 1 channels",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(case, place, call, tmp_path, monkeypatch):
    line, message = WRONG[case]
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "pool.npy", np.zeros((9, 8, 8, 3), np.uint8))
    (tmp_path / "open.secret").write_text("00" * 32)
    (tmp_path / "open.secret").chmod(0o644)
    for name, path in {
        "CONFIG": place.config,
        "EMPTY": tmp_path / "empty",
        "WRONG_POOL": tmp_path / "pool.npy",
        "OPEN_SECRET": tmp_path / "open.secret",
    }.items():
        line = line.replace(name, str(path))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    workdir = () if "--workdir" in line else ("--workdir", "new")
    code, out, err = call("train", *line.split(), *workdir)
    assert re.fullmatch(r"error: [^\n]*\n", err), err
    assert re.search(message, err), err
    assert (code, out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("program_file", "arguments", "settings", "message"),
    [
        ("train.py", ("tiny.py:insid",), {}, "has no variant 'insid'; did you mean"),
        ("train.py", ("tiny.py", "--sede", "1"), {}, "unknown option --sede; did you mean --seed?"),
        (
            "train.py",
            ("tiny.py", "--batch-size", "20"),
            {"XLA_FLAGS": f"{QUICK} {EIGHT_DEVICES}"},
            "batch_size is 20, which 8 devices cannot share evenly; use 16 or 24",
        ),
        ("eval.py", ("nowhere",), {}, "nowhere is no run folder"),
        (
            "train.py",
            ("tiny.py",),
            {"JAX_PLATFORMS": "bogus"},
            "JAX_PLATFORMS is 'bogus', which JAX cannot start here (Unable to initialize backend",
        ),
        ("eval.py", ("nowhere",), {"JAX_PLATFORMS": "tpu,cuda"}, "JAX_PLATFORMS is 'tpu,cuda'"),
        ("eval.py", ("nowhere", "--imports", ""), {}, "--imports is '', no name of a module"),
        ("eval.py", ("nowhere", "--imports", "../x"), {}, "--imports is '../x', no name of a"),
    ],
)
def test_programs_exit_with_2(place, program_file, arguments, settings, message):
    before = sorted(place.folder.iterdir())
    code, out, err = place.run(program_file, *arguments, **settings)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(place.folder.iterdir()) == before


def test_help_and_usage(place):
    code, out, _ = place.run("train.py", "--help")
    assert code == 0
    assert "train.py CONFIG[:VARIANT]" in out
