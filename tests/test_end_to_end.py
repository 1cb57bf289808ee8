"""The programs as users run them: train, kill, resume, score; wrong input; no secret leaks."""

import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from instahide_jax import read_secret
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.encoders import make_model
from instahide_jax.errors import run_main
from instahide_jax.metrics import read_metrics
from instahide_jax.run import read_experiment
from instahide_jax.training import init_state, make_optimizer

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
from dataclasses import replace

from instahide_jax import InstaHide, NoHiding
from instahide_jax.config import Experiment, Schedule, Sgd
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import Mnist5k, PoolFile, PoolHeldOut, TfdsImages
from instahide_jax.encoders import ConvNet, LeNet5


def default():
    return Experiment(
        data=Mnist5k(validation=3880),  # 120 images to train on, 5 steps per pass
        encoder=ConvNet(widths=(4,), strides=(4,)),
        scheme=InstaHide.inside(k=4),
        augment=Augment(padding=2),
        optimizer=Sgd(learning_rate=0.05, schedule=Schedule()),
        epochs=18,
        batch_size=24,
        save_every=7,
        log_every=1,
    )


def vanilla():
    return replace(default(), scheme=NoHiding())


def lenet():
    return replace(default(), encoder=LeNet5())


def cross():
    return replace(default(), scheme=InstaHide.cross(k=6), public_pool=PoolHeldOut(20))


def cross_from_file():
    return replace(cross(), public_pool=PoolFile("nowhere.npy"))


def cross_without_pool():
    return replace(cross(), public_pool=None)


def tfds():
    return replace(default(), data=TfdsImages())
"""
STEPS = 90


def _snapshot(folder):
    """Everything in a folder: name -> bytes."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Place:
    """A folder with a config, where programs are run on one device."""

    def __init__(self, folder):
        self.folder = folder
        self.config = folder / "tiny.py"
        self.config.write_text(CONFIG)
        # What is compiled is kept between the processes: most of their time goes there.
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.environment = os.environ | cache | {"XLA_FLAGS": "", "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, program, *arguments, **settings):
        command = [sys.executable, "-W", "error", str(ROOT / program), *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, program, *arguments, **settings):
        """(exit code, stdout, stderr) of a program."""
        process = self.start(program, *arguments, **settings)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("end_to_end"))


@pytest.fixture(scope="module")
def finished(place):
    """A run from start to end: its folder, stdout and stderr."""
    code, out, err = place.run("train.py", "tiny.py", "--workdir", "finished")
    assert code == 0, err
    return place.folder / "finished", out, err


@pytest.fixture(scope="module")
def scored(place, finished):
    """stdout and stderr of eval.py on that run."""
    code, out, err = place.run("eval.py", finished[0], "--encryptions", "1", "5")
    assert code == 0, err
    return out, err


# The main job


def test_a_run_leaves_what_it_promises(finished):
    folder, out, err = finished
    assert "120 private images" in out
    assert f"Done: {STEPS} steps" in out
    assert "Warning" not in err
    for name in ("samples.png", "curves.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    lines = read_metrics(folder / "metrics.jsonl")
    trained = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert all({"train_loss", "train_accuracy", "images_per_s"} < set(line) for line in trained)
    validated = [line["step"] for line in lines if "validation_accuracy" in line]
    assert validated == [*range(7, STEPS, 7), STEPS]
    assert json.loads((folder / "run.json").read_text())["secret"].startswith("256 bits")
    assert read_experiment(folder).batch_size == 24
    secret_file = folder.with_name("finished.secret")
    assert secret_file.stat().st_mode & 0o777 == 0o600


def test_score_is_printed_and_written(finished, scored):
    folder, (out, _) = finished[0], scored
    values = json.loads((folder / "eval.json").read_text())
    assert (values["step"], values["test_images"]) == (STEPS, 1000)
    assert f"accuracy {values['plain_accuracy']:.4f}" in out
    assert set(values["encrypted_accuracy"]) == {"1", "5"}
    for count, accuracy in values["encrypted_accuracy"].items():
        assert re.search(rf"T={count} +accuracy {accuracy:.4f}", out)
        assert 0 <= accuracy <= 1


def test_a_finished_run_is_not_trained_again(place, finished):
    folder = finished[0]
    names = ("metrics.jsonl", "config.json", "run.json", "samples.png")
    before = {name: (folder / name).read_bytes() for name in names}
    steps = sorted(p.name for p in (folder / "checkpoints").iterdir())
    code, out, _ = place.run("train.py", "tiny.py", "--workdir", "finished")
    assert code == 0
    assert f"Resuming at step {STEPS} of {STEPS}" in out
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == steps


# Killed and resumed


def _final_state(folder):
    experiment = read_experiment(folder)
    model = make_model(experiment.encoder, (28, 28, 1), 10)
    optimizer = make_optimizer(experiment.optimizer, 5, STEPS)
    abstract = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0)))
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = jax.device_get(checkpoints.restore(abstract, max(checkpoints.steps()), one_device))
    checkpoints.close()
    return state


def _last_step(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def _without_speed(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


def test_killed_runs_end_as_one_that_was_not(place, finished):
    """Once while starting, then four times at random steps of training and saving."""
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed of the kills:", seed)
    rng = random.Random(seed)
    folder = place.folder / "killed"
    shutil.copy(finished[0].with_name("finished.secret"), place.folder / "killed.secret")
    arguments = ("train.py", "tiny.py", "--workdir", "killed")
    kills = []
    process = place.start(*arguments)
    time.sleep(rng.uniform(0, 4))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while len(kills) < 4:
        threshold = _last_step(folder) + rng.randint(1, 10)
        process = place.start(*arguments)
        while _last_step(folder) < min(threshold, STEPS) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), err
        kills.append(_last_step(folder))
        if process.returncode == 0 or kills[-1] == STEPS:
            break
    print("killed after steps", kills)
    code, out, err = place.run(*arguments)
    assert code == 0, err
    assert kills[0] < STEPS
    assert "is damaged" not in err
    assert "Resuming at step" in out
    for expected, got in zip(
        jax.tree.leaves_with_path(_final_state(finished[0])),
        jax.tree.leaves_with_path(_final_state(folder)),
        strict=True,
    ):
        np.testing.assert_array_equal(expected[1], got[1], err_msg=str(expected[0]))
    assert _without_speed(folder) == _without_speed(finished[0])


# Where the secret is not


def _spellings(key):
    """How 256 bits might be written: 8 bytes at a time, as bytes, hexadecimal and decimal."""
    words = np.asarray(jax.random.key_data(key)).astype(np.uint32)
    spelled = {str(w).encode() for w in words if w > 10**7}
    spelled |= {str(w.astype(np.int32)).encode() for w in words if w > 2**31}
    for order in ("<u4", ">u4"):
        raw = words.astype(order).tobytes()
        for i in range(0, 28, 4):
            spelled |= {raw[i : i + 8], raw[i : i + 8].hex().encode()}
    return spelled


def test_secret_is_nowhere_but_in_its_file(place, finished, scored):
    folder, out, err = finished
    secret_file = folder.with_name("finished.secret")
    secret = read_secret(secret_file)
    mark = bytes.fromhex(json.loads((folder / "run.json").read_text())["fingerprint"])
    spellings = _spellings(secret.key) | _spellings(secret.run(mark).key)
    assert len(spellings) > 40
    texts = _snapshot(folder) | {"output": "\n".join((out, err, *scored)).encode()}
    assert len(texts) > 20
    for name, content in texts.items():
        found = [s for s in spellings if s in content.lower() or s in content]
        assert not found, name
    # The search finds it where it is.
    assert any(s in secret_file.read_bytes() for s in spellings)
    raw = np.asarray(jax.random.key_data(secret.key)).tobytes()
    assert any(s in b"..." + raw for s in spellings)
    # Checkpoints are compressed: nothing in them is of a key's type.
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(_final_state(folder))}
    assert kinds == {"float32", "int32"}


# Wrong input


@pytest.fixture
def program(monkeypatch, capsys):
    """Run train.py or eval.py in this process, on 8 devices: exit code, stdout, stderr."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(ROOT))
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_main(module.main)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


WRONG = {
    "no config": ("", "no config is given|config .* does not exist"),
    "unknown config": (f"{ROOT}/configs/mnist5.py", r"did you mean .*configs/mnist5k\.py\?"),
    "unknown variant": ("CONFIG:vanila", r"has no variant 'vanila'; did you mean vanilla\?"),
    "unknown field": ("CONFIG --sed 3", r"unknown option --sed; did you mean --seed\?"),
    "unknown nested field": ("CONFIG --scheme.kk 3", r"did you mean --scheme\.k\?"),
    "no number": ("CONFIG --epochs many", r"--epochs: invalid .*'many'"),
    "k is 1": ("CONFIG --scheme.k 1 --scheme.num-private 1", "k is 1, .* at least 2"),
    "batch below k": ("CONFIG --batch-size 3", "batch_size is 3; mixing 4 .* lower scheme.k"),
    "bound below 1/k": ("CONFIG --scheme.max-coefficient 0.2", r"0\.2; .* in \[1/k=0\.25, 1\]"),
    "no pool": ("CONFIG:cross_without_pool", "4 public images but public_pool is not set"),
    "missing pool": ("CONFIG:cross_from_file", "cannot read the public pool nowhere.npy"),
    "other pool": (
        "CONFIG:cross_from_file --public-pool.path WRONG_POOL",
        r"holds images of \(8, 8, 3\), the private images are \(28, 28, 1\)",
    ),
    "small pool": ("CONFIG:cross --public-pool.count 3", "pool has 3 images; .* needs 4"),
    "negative pool": ("CONFIG:cross --public-pool.count -1", "-1 images are to be held out"),
    "unprepared": (
        "CONFIG:tfds --data.data-dir EMPTY",
        "fashion_mnist is not prepared in .*: run `instahide prepare fashion_mnist",
    ),
    "unknown data": ("CONFIG:tfds --data.name fashon_mnist", "did you mean fashion_mnist"),
    "nothing left": ("CONFIG --data.validation 4000", "4000 .* held out of 4000; .* at most 3999"),
    "no validation": ("CONFIG --data.validation 0", "data.validation is 0; hold out at least 1"),
    "odd batch": (
        "CONFIG --batch-size 20",
        "20, which 8 devices cannot share evenly; use 16 or 24",
    ),
    "large batch": ("CONFIG --batch-size 128", "batch_size is 128, more than the 120 training"),
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
def test_wrong_input_is_one_line_and_writes_nothing(case, place, program, tmp_path, monkeypatch):
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
    code, out, err = program("train", *line.split(), *workdir)
    assert re.fullmatch(r"error: [^\n]*\n", err), err
    assert re.search(message, err), err
    assert (code, out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "message", "spoil"),
    [
        ("--seed 3 --epochs 5", "another experiment .epochs: 18 -> 5; seed: 0 -> 3.*", None),
        ("", "secret file .*finished.secret is missing; .* restore", lambda s: s.unlink()),
        ("", "has mode 0640.* 'chmod 600", lambda s: s.chmod(0o640)),
        ("", "is damaged: not 64 hexadecimal digits", lambda s: s.write_text("0123")),
    ],
)
def test_resuming_wrongly_leaves_the_run_alone(
    line, message, spoil, place, finished, program, tmp_path
):
    folder = shutil.copytree(finished[0], tmp_path / "finished")
    secret = tmp_path / "finished.secret"
    shutil.copy2(finished[0].with_name("finished.secret"), secret)
    if spoil:
        spoil(secret)
    before = _snapshot(tmp_path)
    code, out, err = program("train", place.config, "--workdir", folder, *line.split())
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere is no run folder .config.json is missing.; train there first"),
        (("RUN", "--checkpoint", "first"), "--checkpoint"),
        (("RUN", "--encryptions", "0"), "number of encryptions is 0; it must be at least 1"),
        (("RUN", "--min-own-coefficient", "0.9"), "min_own_coefficient is 0.9"),
        (("EMPTY_RUN",), "no checkpoint in .*; train first"),
    ],
)
def test_scoring_wrongly_is_one_line(arguments, message, finished, program, tmp_path):
    empty = tmp_path / "run"
    empty.mkdir()
    shutil.copy(finished[0] / "config.json", empty)
    names = {"RUN": str(finished[0]), "EMPTY_RUN": str(empty)}
    code, _, err = program("eval", *(names.get(a, a) for a in arguments))
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert code == 2


@pytest.mark.parametrize(
    ("program_file", "arguments", "settings", "message"),
    [
        ("train.py", ("tiny.py:insid",), {}, "has no variant 'insid'; did you mean"),
        ("train.py", ("tiny.py", "--sede", "1"), {}, "unknown option --sede; did you mean --seed?"),
        (
            "train.py",
            ("tiny.py", "--batch-size", "20"),
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
            "batch_size is 20, which 8 devices cannot share evenly; use 16 or 24",
        ),
        ("eval.py", ("nowhere",), {}, "nowhere is no run folder"),
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
