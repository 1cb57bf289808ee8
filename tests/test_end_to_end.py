"""The programs as users run them: train, kill, resume, score; where the secret is not."""

import json
import math
import os
import random
import re
import shutil
import signal
import stat
import time

import jax
import numpy as np
import pytest
from PIL import Image
from programs import (
    Place,
    assert_same_state,
    call,
    files_up_to,
    final_state,
    last_step,
    whole_checkpoints,
    without_speed,
)

from instahide_jax import read_secret
from instahide_jax.checkpoint import Checkpoints
from instahide_jax.errors import STOPPED
from instahide_jax.image_data import open_images
from instahide_jax.metrics import read_metrics
from instahide_jax.run import read_experiment, run_secret

__all__ = ["call"]  # a fixture
STEPS = 90


def _snapshot(folder):
    """Everything in a folder: name -> bytes."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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
    assert "120 private examples" in out
    assert f"Done: {STEPS} steps" in out
    assert "Warning" not in err
    for name in ("samples.png", "curves.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    assert stat.S_IMODE((folder / "samples.png").stat().st_mode) == 0o600
    lines = read_metrics(folder / "metrics.jsonl")
    trained = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    written = {"train_loss", "train_accuracy", "images_per_s", "gradient_norm", "learning_rate"}
    assert all(set(line) == written | {"step"} for line in trained)
    assert {line["learning_rate"] for line in trained} == {0.05}
    assert all(line["gradient_norm"] > 0 for line in trained)
    validated = [line["step"] for line in lines if "validation_accuracy" in line]
    assert validated == [*range(7, STEPS, 7), STEPS]
    assert json.loads((folder / "run.json").read_text())["secret"].startswith("256 bits")
    assert read_experiment(folder).batch_size == 24
    secret_file = folder.with_name("finished.secret")
    assert secret_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("rate", "warmup", "steps"),
    [("1e-9", "0", ["200"]), ("1e-9", "44", ["225"]), ("0.05", "0", [])],
)
def test_a_run_that_does_not_learn_says_so(rate, warmup, steps, place, call, tmp_path):
    """After a warm-up and an epoch, of 5 steps here, and never before 200 steps."""
    settings = ("--optimizer.learning-rate", rate, "--optimizer.schedule.warmup-epochs", warmup)
    settings += ("--epochs", "46", "--save-every", "230")
    code, _, err = call(
        "train", f"{place.config}:vanilla", "--workdir", tmp_path / "run", *settings
    )
    assert code == 0, err
    assert re.findall(r"Warning: after (\d+) steps the training loss is [^\n]*\n", err) == steps
    assert err.count("Warning") == len(steps)


def test_the_learning_rates_of_a_schedule_are_logged(place, call, tmp_path):
    """One rate for the two steps of an update; the first epoch, of 5 steps, warms up."""
    code, _, err = call(
        "train", f"{place.config}:scheduled", "--workdir", tmp_path / "run", "--epochs", "6"
    )
    assert code == 0, err
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    logged = [line["learning_rate"] for line in lines if "learning_rate" in line]
    cosine = [0.05 * (1 + math.cos(math.pi * update / 13)) / 2 for update in range(13)]
    expected = [rate for rate in (0, 0.025, *cosine) for _ in range(2)]
    assert logged == pytest.approx(expected, abs=1e-6)


def test_score_is_printed_and_written(finished, scored):
    folder, (out, _) = finished[0], scored
    values = json.loads((folder / "eval.json").read_text())
    assert (values["step"], values["test_images"]) == (STEPS, 1000)
    assert f"accuracy {values['plain_accuracy']:.4f}" in out
    assert set(values["encrypted_accuracy"]) == {"1", "5"}
    for count, accuracy in values["encrypted_accuracy"].items():
        assert re.search(rf"T={count} +accuracy {accuracy:.4f}", out)
        assert 0 <= accuracy <= 1
        oracle = values["oracle_accuracy"][count]
        assert f"accuracy {accuracy:.4f}   oracle {oracle:.4f}" in out
    assert 0.2 < values["oracle_accuracy"]["1"] < values["oracle_accuracy"]["5"]


def test_the_best_checkpoint_is_scored_where_asked_for(finished, call, tmp_path):
    """Beside a newest one of which it is known that it is not the best."""
    folder = shutil.copytree(finished[0], tmp_path / "finished")
    scores = {
        line["step"]: line["validation_accuracy"]
        for line in read_metrics(folder / "metrics.jsonl")
        if "validation_accuracy" in line
    }
    best = {step for step, score in scores.items() if score == max(scores.values())}
    checkpoints = Checkpoints(folder / "checkpoints")
    newest = final_state(folder).replace(step=np.int32(STEPS + 1))
    checkpoints.save(STEPS + 1, jax.device_put(newest), accuracy=0.0)
    checkpoints.close()
    scored = {}
    for which in ("best", "newest"):
        code, out, err = call("eval", folder, "--checkpoint", which, "--encryptions")
        assert code == 0, err
        values = json.loads((folder / "eval.json").read_text())
        assert values["checkpoint"] == which
        assert f"{which} checkpoint (step {values['step']})" in out
        scored[which] = values["step"]
    assert scored["best"] in best
    assert scored["newest"] == STEPS + 1


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
        threshold = last_step(folder) + rng.randint(1, 10)
        process = place.start(*arguments)
        while last_step(folder) < min(threshold, STEPS) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        while len(kills) == 3 and not whole_checkpoints(folder) and process.poll() is None:
            time.sleep(0.001)  # so that there is something to resume from at the end
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), err
        kills.append(last_step(folder))
        if process.returncode == 0 or kills[-1] == STEPS:
            break  # on a busy machine it may end by itself
    print("killed after steps", kills)
    code, out, err = place.run(*arguments)
    assert code == 0, err
    assert "is damaged" not in err
    assert "Resuming at step" in out
    assert_same_state(final_state(finished[0]), final_state(folder))
    assert without_speed(folder) == without_speed(finished[0])


def test_a_terminated_run_is_saved_where_it_is_and_goes_on(place, finished):
    """SIGTERM, as schedulers send it before they take a machine away."""
    folder = place.folder / "terminated"
    shutil.copy(finished[0].with_name("finished.secret"), place.folder / "terminated.secret")
    arguments = ("tiny.py", "--workdir", "terminated")
    code, out, err = place.interrupt(
        signal.SIGTERM, folder, lambda: last_step(folder) >= 10, *arguments
    )
    assert code == STOPPED, err
    (step,) = re.findall(r"^stopped and saved at step (\d+) of 90; the same command", err, re.M)
    assert max(whole_checkpoints(folder)) == int(step) == last_step(folder)
    assert "Done" not in out
    # Order and views stay those of the seed, whatever JAX's default generator is by then.
    settings = {"JAX_DEFAULT_PRNG_IMPL": "rbg"}
    code, out, err = place.run("train.py", *arguments, **settings)
    assert code == 0, err
    assert f"Resuming at step {step} of {STEPS}" in out
    assert_same_state(final_state(finished[0]), final_state(folder))
    assert without_speed(folder) == without_speed(finished[0])


def test_a_loss_that_explodes_ends_the_run_and_no_bad_checkpoint_is_kept(place, call):
    folder = place.folder / "exploded"
    settings = ("--optimizer.learning-rate", "1e9", "--save-every", "1", "--log-every", "20")
    code, _, err = call("train", place.config, "--workdir", folder, *settings)
    assert code == 2
    message = (
        r"error: (the loss|a parameter) is .* after step (\d+) \(batch (\d) of epoch (\d)\); .*"
    )
    (step, batch, epoch), *_ = re.findall(message.replace("(the loss|a parameter)", ".*"), err)
    assert int(step) == 5 * (int(epoch) - 1) + int(batch) <= 20
    steps = whole_checkpoints(folder)
    assert max(steps, default=0) == int(step) - 1
    if steps:
        leaves = jax.tree.leaves(final_state(folder))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_it_goes_on(place, call):
    folder = place.folder / "full"
    run = (place.config, "--workdir", folder, "--encoder.widths", 4096, "--epochs", 2)
    with files_up_to(1 << 17):  # more than the picture takes, less than a checkpoint
        code, _, err = call("train", *run)
    assert code == 2, err
    assert "Traceback" not in err
    message = rf"error: {folder}/checkpoints cannot be written: File too large; what was saved .*"
    assert re.findall("error.*", err) == re.findall(message, err)
    assert whole_checkpoints(folder) == []
    assert last_step(folder) == 10  # a save is in the background: the next one tells of it
    code, _, err = call("train", *run)
    assert code == 0, err
    assert sorted(whole_checkpoints(folder)) == [7, 10]


# Where the secret is not


def _spellings(key):
    """How 256 bits might be written: 8 bytes at a time, as bytes, hexadecimal and decimal."""
    words = np.asarray(jax.random.key_data(key)).astype(np.uint32)
    # Ten digits: shorter numbers might stand among the thousands of digits of a run by chance, in
    # one run of 20,000; these do in less than one of 100,000.
    spelled = {str(w).encode() for w in words if w >= 10**9}
    spelled |= {str(w.astype(np.int32)).encode() for w in words if 2**31 < w <= 2**32 - 10**9}
    for order in ("<u4", ">u4"):
        raw = words.astype(order).tobytes()
        for i in range(0, 28, 4):
            spelled |= {raw[i : i + 8], raw[i : i + 8].hex().encode()}
    return spelled


def test_secret_is_nowhere_but_in_its_file(place, finished, scored):
    folder, out, err = finished
    secret_file = folder.with_name("finished.secret")
    secret = read_secret(secret_file)
    experiment = read_experiment(folder)
    identities = open_images(experiment, [0])[0].identities
    used = run_secret(folder, experiment, identities, secret_file)
    mark = bytes.fromhex(json.loads((folder / "run.json").read_text())["fingerprint"])
    keys = [secret.key, used.key, secret.run(mark).key]
    spellings = set().union(*(_spellings(key) for key in keys))
    assert len(spellings) > 60
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
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(final_state(folder))}
    assert kinds == {"float32", "int32"}


# Wrong input


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
    line, message, spoil, place, finished, call, tmp_path
):
    folder = shutil.copytree(finished[0], tmp_path / "finished")
    secret = tmp_path / "finished.secret"
    shutil.copy2(finished[0].with_name("finished.secret"), secret)
    if spoil:
        spoil(secret)
    before = _snapshot(tmp_path)
    code, out, err = call("train", place.config, "--workdir", folder, *line.split())
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
        (("OTHER_DATA",), "was trained on other data than its configuration now finds; restore"),
        (("RUN", "--masks", "3"), "--masks says nothing about a run on images; leave it out"),
        (("RUN", "--save-folder", "new"), "--save-folder says nothing about a run on images"),
        (
            ("RUN", "--imports", "no.such.module"),
            "--imports no.such.module: .*; install it, or",
        ),
    ],
)
def test_scoring_wrongly_is_one_line(arguments, message, finished, call, tmp_path):
    empty = tmp_path / "run"
    empty.mkdir()
    for name in ("config.json", "run.json"):
        shutil.copy(finished[0] / name, empty)
    other = shutil.copytree(empty, tmp_path / "other")
    described = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(described | {"data": ["0"]}))
    names = {"RUN": str(finished[0]), "EMPTY_RUN": str(empty), "OTHER_DATA": str(other)}
    code, _, err = call("eval", *(names.get(a, a) for a in arguments))
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert code == 2
