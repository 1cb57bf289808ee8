"""Running the programs: a tiny configuration, in processes of their own or in this one."""

import copy
import importlib
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from xla_flags import QUICK

from instahide_jax import cli
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.encoders import make_model
from instahide_jax.errors import run_main
from instahide_jax.metrics import read_metrics
from instahide_jax.optimizers import make_optimizer
from instahide_jax.run import read_experiment
from instahide_jax.training import init_state

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
from dataclasses import replace

from instahide_jax import InstaHide, NoHiding
from instahide_jax.config import ImageExperiment
from instahide_jax.optimizers import Cosine, Schedule, Sgd
from instahide_jax.data.augment import Augment
from instahide_jax.data.sources import Mnist5k, PoolFile, PoolHeldOut, TfdsImages, TfdsStream
from instahide_jax.encoders import ConvNet, LeNet5


def default():
    return ImageExperiment(
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


def scheduled():
    optimizer = Sgd(learning_rate=0.05, schedule=Cosine(warmup_epochs=1), accumulate=2)
    return replace(vanilla(), optimizer=optimizer)


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


def streamed():
    data = TfdsStream(
        name="photos",
        train="train[:48]",
        validation="train[48:]",
        test="test",
        resize=12,
        mean=(0.5,),
        std=(0.25,),
        data_dir="tfds",
    )
    return replace(
        default(), data=data, augment=Augment(size=8, flip=True), partners="batch", batch_size=8
    )
"""


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
        self.environment = os.environ | cache | {"XLA_FLAGS": QUICK, "PYTHONDONTWRITEBYTECODE": "1"}

    def within(self, name):
        """The same, seen from a folder within."""
        other = copy.copy(self)
        other.folder = self.folder / name
        return other

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

    def interrupt(self, sent, folder, ready, *arguments):
        """Start train.py and send a signal once `ready()`: exit code, stdout and stderr.

        On a busy machine a run may end before the signal reaches it. It is then started anew, up
        to four times.
        """
        for _ in range(5):
            shutil.rmtree(folder, ignore_errors=True)
            process = self.start("train.py", *arguments)
            while process.poll() is None and not ready():
                time.sleep(0.001)
            process.send_signal(sent)
            out, err = process.communicate(timeout=300)
            if process.returncode != 0:
                break
        return process.returncode, out, err

    def run(self, program, *arguments, **settings):
        """(exit code, stdout, stderr) of a program."""
        process = self.start(program, *arguments, **settings)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


def prepare_photos(folder):
    """Prepare 60 training and 12 test pictures of three classes and many sizes, for `streamed`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 12)):
        for number in range(count):
            of_class = folder / "photos" / split / "abc"[number % 3]
            of_class.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (12 + number % 7, 14 + number % 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(of_class / f"{number}.png")
    source, target = folder / "photos", folder / "tfds"
    cli.run(["prepare", "photos", "--source", str(source), "--data-dir", str(target)])


def final_state(folder, image_shape=(28, 28, 1), num_classes=10):
    """The newest checkpoint of a run, in host memory."""
    experiment = read_experiment(folder)
    return _newest(folder, experiment, make_model(experiment.encoder, image_shape, num_classes))


def final_text_state(folder, num_outputs=2):
    """The newest checkpoint of a run on texts, in host memory."""
    experiment = read_experiment(folder)
    shape = (experiment.data.length,)
    model = make_model(experiment.encoder, shape, num_outputs, experiment.head)
    return _newest(folder, experiment, model)


def _newest(folder, experiment, model):
    optimizer = make_optimizer(experiment.optimizer, 1, 1)  # shapes do not depend on steps
    abstract = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0)))
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = jax.device_get(checkpoints.restore(abstract, max(checkpoints.steps()), one_device))
    checkpoints.close()
    return state


def assert_same_state(expected, got):
    """Bit for bit."""
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def last_step(folder):
    """The last step in a run's metrics."""
    lines = read_metrics(folder / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def whole_checkpoints(folder):
    """Steps whose checkpoints are complete: the folder of one that is being saved has a suffix."""
    return [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]


def without_speed(folder):
    """A run's metrics but for what differs from run to run."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in lines]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run train.py or eval.py in this process, on 8 devices: exit code, stdout, stderr."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(ROOT))
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        try:
            run_main(module.main)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@contextmanager
def files_up_to(num_bytes):
    """Within, no file grows beyond this size, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def without_modes():
    """Within, every file that is opened has mode 0777, as on a file system that keeps no modes."""
    everybody = os.stat_result([stat.S_IFREG | 0o777, *9 * [0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", lambda _: everybody)
        yield


@pytest.fixture
def short_files():
    """No file grows beyond 64 kB."""
    with files_up_to(1 << 16):
        yield
