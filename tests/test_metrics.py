"""The metrics file: cut off, resumed, rounded."""

import gc
import json
import logging
import re
import time
from contextlib import closing

import pytest
from programs import files_up_to

from instahide_jax.errors import InputError
from instahide_jax.metrics import MetricWriter, progress_bar, read_metrics


def _write(folder, resume_step, steps):
    with closing(MetricWriter(folder, resume_step)) as writer:
        for step in steps:
            writer.write(step, loss=step / 3)
    return (folder / "metrics.jsonl").read_text()


def test_lines_are_json_and_rounded_to_6_digits(tmp_path):
    text = _write(tmp_path, 0, [1, 2])
    assert text == '{"step": 1, "loss": 0.333333}\n{"step": 2, "loss": 0.666667}\n'
    writer = MetricWriter(tmp_path, 2)
    writer.write(3, images_per_s=1234567.8, loss=1.2345678e-9)
    writer.close()
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last == {"step": 3, "images_per_s": 1234570.0, "loss": 1.23457e-9}


def test_lines_are_on_the_disk_at_once(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, loss=1.0)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    writer.close()


@pytest.mark.parametrize("cut", range(1, 31))
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path, cut):
    text = _write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(text[:-cut])
    expected = [1] if cut <= text[::-1].index("\n", 1) else []
    assert [line["step"] for line in read_metrics(path)] == expected


def test_resuming_cuts_the_file_and_writes_the_same_again(tmp_path):
    whole = _write(tmp_path, 0, range(1, 9))
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 9, "lo')
    assert _write(tmp_path, 5, []) == "".join(whole.splitlines(keepends=True)[:5])
    assert _write(tmp_path, 5, [6, 7, 8]) == whole
    assert _write(tmp_path, 0, []) == ""


def test_no_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard_gets_the_same_values(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    _write(tmp_path, 7, [8])
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # records of TFRecord files: length, its checksum, contents, their checksum
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert (events[1].session_log.status, events[1].step) == (SessionLog.START, 8)  # forget later
    (value,) = events[2].summary.value
    assert (events[2].step, value.tag) == (8, "loss")
    assert value.simple_value == pytest.approx(8 / 3, rel=1e-5)
    assert abs(events[2].wall_time - time.time()) < 600


# tensorboardX leaves its file open where the last flush fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_is_an_error_and_nothing_waits(tmp_path):
    message = "metrics.jsonl cannot be written: File too large; what was saved before is kept"
    with files_up_to(1 << 10), pytest.raises(InputError, match=message):
        _write(tmp_path, 0, range(1_000))
    gc.collect()  # here, and not in a later test, which would fail


def test_metrics_do_not_need_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr("instahide_jax.metrics.find_spec", lambda name: None)
    assert json.loads(_write(tmp_path, 0, [1]))["step"] == 1
    assert not (tmp_path / "tensorboard").exists()


def test_progress_bar_starts_where_a_run_resumes(capsys):
    bar = progress_bar(10, "train", " steps", initial=4)
    bar.update()
    bar.close()
    assert "5/10" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"nonsense", b"\0" * 40, b"[1]", b'{"a": 1}', b"\xff"])
def test_lines_after_damage_are_left_out_with_a_warning(tmp_path, caplog, damage):
    whole = _write(tmp_path, 0, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    lines = whole.encode().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + damage + b"\n" + lines[2])
    with caplog.at_level(logging.WARNING, "instahide_jax"):
        assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert re.search(r"metrics.jsonl: line 3 cannot be read; left out", caplog.text)
    assert _write(tmp_path, 2, [3]) == whole
