"""Two owners, each with a process, a folder and data of its own, of different sizes."""

import json
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
from programs import CONFIG, ROOT, Place, last_step
from tiny import labelled, write_tfds

from instahide_jax.config import load_config
from instahide_jax.errors import InputError
from instahide_jax.image_data import agree, open_images

SIZES = (60, 84)
SHAPE = (12, 12, 1)
OWN = """

def own():
    data = TfdsImages(name="scans", train="train", test="test", validation=12, data_dir="tfds")
    return replace(default(), data=data, clients=2, client_data="own", epochs=3)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for what both see, and one for each owner's data."""
    place = Place(tmp_path_factory.mktemp("own"))
    place.config.write_text(CONFIG + OWN)
    for owner, size in enumerate(SIZES):
        folder = place.folder / f"hospital{owner}"
        folder.mkdir()
        sets = {"train": labelled(size, SHAPE, seed=owner), "test": labelled(20, SHAPE, seed=9)}
        write_tfds(folder / "tfds", "scans", sets)
    return place


def _start(place, owner, port, *arguments):
    where = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", owner)
    run = (f"{place.config}:own", "--workdir", place.folder / "run")
    return place.within(f"hospital{owner}").start("train.py", *run, *where, *arguments)


def test_owners_train_on_what_each_has(place, monkeypatch, free_port):
    secrets = [place.folder / f"hospital{owner}" / "mine.secret" for owner in (0, 1)]
    both = [_start(place, i, free_port, "--secret-file", "mine.secret") for i in (0, 1)]
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    run = place.folder / "run"
    assert "120 private examples of 2 clients" in ends[0][0]  # 12 of each are for validation
    assert ends[1][0].count("\n") <= 4  # what Gloo says
    assert last_step(run) == 3 * (48 // 12)  # a pass is as long as the smaller one's
    assert not (run / "samples.png").exists()
    assert secrets[0].read_text() != secrets[1].read_text()
    described = json.loads((run / "run.json").read_text())
    images = []
    for owner in (0, 1):
        monkeypatch.chdir(place.folder / f"hospital{owner}")
        (own,) = open_images(load_config(f"{place.config}:own"), [owner]).values()
        images.append(own.dataset.train.images / 255)
        here = place.within(f"hospital{owner}")
        code, out, err = here.run("eval.py", run, "--client", owner, "--encryptions", 1)
        assert code == 0, err
        assert "encrypted, mean over T=1" in out
        code, _, err = here.run("eval.py", run, "--client", 1 - owner, "--encryptions")
        assert (code, err.count("other data")) == (2, 1)
    everything = np.concatenate(images)
    np.testing.assert_allclose(described["mean"], [everything.mean()], atol=1e-6)
    np.testing.assert_allclose(described["std"], [everything.std()], atol=1e-6)


@pytest.fixture
def free_port():
    sys.path.insert(0, str(ROOT / "scripts"))
    import launch_local

    return launch_local.free_port()


def test_owners_need_the_same_classes_and_shapes(place, monkeypatch):
    monkeypatch.chdir(place.folder / "hospital0")
    experiment = replace(load_config(f"{place.config}:own"), client_data="parts")
    data = open_images(experiment, range(2))
    agreed = agree(data)
    assert agreed.counts == [24, 24]
    other = data[1].dataset
    for changed, message in (
        (other._replace(image_shape=(9, 9, 1)), r"client 1 has shape \[9, 9, 1\]"),
        (
            other._replace(train=replace(other.train, class_names=("a", "b", "c", "x"))),
            r"client 1 has classes \['a', 'b', 'c', 'x'\]",
        ),
    ):
        with pytest.raises(InputError, match=message):
            agree({**data, 1: data[1]._replace(dataset=changed)})


def test_two_jobs_cannot_have_one_port(place, free_port):
    first = _start(place, 0, free_port)  # waits for the other owner
    while first.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", free_port)) == 0:
                break
    job = ("--coordinator", f"127.0.0.1:{free_port}", "--num-processes", 1, "--process-id", 0)
    code, _, err = place.run("train.py", place.config, "--workdir", "never", *job)
    first.kill()
    first.communicate()
    assert code == 2, err
    assert "another job listens at 127.0.0.1" in err
    assert not (place.folder / "never").exists()
