"""A run on a data set that is read as training goes on: prepare, train, kill, resume, score."""

import json
import os
import random
import re
import shutil
import signal
from importlib.metadata import version

import jax
import numpy as np
import pytest
from PIL import Image
from programs import (
    Place,
    assert_same_state,
    call,
    final_state,
    last_step,
    prepare_photos,
    whole_checkpoints,
    without_speed,
)

from instahide_jax.config import load_config
from instahide_jax.image_data import open_images

__all__ = ["call"]  # a fixture
STEPS = 18 * 6
RUN = ("train.py", "tiny.py:streamed", "--workdir")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("stream"))
    prepare_photos(place.folder)
    return place


@pytest.fixture(scope="module")
def finished(place):
    code, out, err = place.run(*RUN, "finished")
    assert code == 0, err
    return place.folder / "finished", out


def test_a_streamed_run_leaves_what_it_promises(finished):
    folder, out = finished
    assert "48 private examples" in out
    assert f"Done: {STEPS} steps" in out
    assert last_step(folder) == STEPS
    for name in ("samples.png", "curves.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    state = final_state(folder, (8, 8, 3), 3)
    assert int(state.step) == STEPS
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_killed_streamed_run_ends_as_one_that_was_not(place, finished):
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed of the kill:", seed)
    rng = random.Random(seed)
    folder = place.folder / "killed"
    shutil.copy(finished[0].with_name("finished.secret"), place.folder / "killed.secret")
    threshold = rng.randint(8, STEPS // 2)

    def ready():  # saving takes longer than a few of these steps
        return last_step(folder) >= threshold and whole_checkpoints(folder)

    code, _, err = place.interrupt(signal.SIGKILL, folder, ready, *RUN[1:], "killed")
    # 0 if each run ended by itself before: the rest then holds for a finished one.
    assert code in (-signal.SIGKILL, 0), err
    assert code != 0 or last_step(folder) == STEPS
    code, out, err = place.run(*RUN, "killed")
    assert code == 0, err
    assert "Resuming at step" in out
    shape = ((8, 8, 3), 3)
    assert_same_state(final_state(finished[0], *shape), final_state(folder, *shape))
    assert without_speed(folder) == without_speed(finished[0])


def test_a_streamed_run_is_scored(place, finished):
    code, out, err = place.run("eval.py", "finished", "--encryptions")
    assert code == 0, err
    values = json.loads((finished[0] / "eval.json").read_text())
    assert (values["test_images"], values["encrypted_accuracy"]) == (12, {})
    assert f"accuracy {values['plain_accuracy']:.4f}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--partners", "dataset"), "partners 'dataset' needs data in memory; set partners to"),
        (("--data.test", "tset"), "tset"),
        (("--batch-size", "56"), "batch_size is 56, more than the 48 training examples; lower it"),
    ],
)
def test_what_a_stream_cannot_do_is_one_line(place, call, monkeypatch, arguments, message):
    monkeypatch.chdir(place.folder)
    code, out, err = call("train", "tiny.py:streamed", "--workdir", "refused", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert not (place.folder / "refused").exists()


def test_encrypted_inference_needs_data_in_memory(place, finished, call, monkeypatch):
    monkeypatch.chdir(place.folder)
    code, out, err = call("eval", "finished")
    assert (code, out) == (2, "")
    assert err == (
        "error: encrypted inference needs data in memory; pass --encryptions without a number\n"
    )


def test_the_order_that_grain_defines_is_part_of_the_identity(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    (data,) = open_images(load_config("tiny.py:streamed"), [0]).values()
    assert data.identities[0].endswith(f" grain {version('grain')}")
