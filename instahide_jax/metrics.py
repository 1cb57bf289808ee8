"""Metrics as JSON lines, in TensorBoard where it is installed, and in a progress bar."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from instahide_jax.errors import writing

_log = logging.getLogger(__name__)
T = TypeVar("T")


class MetricWriter:
    """Appends one JSON object per line to metrics.jsonl, and to TensorBoard files.

    A resumed run truncates the file to the step it resumes from and writes the same lines again.
    """

    def __init__(self, folder: Path, resume_step: int):
        """Open the files below `folder`, dropping lines after `resume_step`.

        Raises:
          InputError: here and in the methods, if the disk is full or the like.
        """
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= resume_step]
        temporary = self._path.with_suffix(".tmp")
        with writing(self._path):
            temporary.write_text(
                "".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8"
            )
            os.replace(temporary, self._path)
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            self._board = _Board(folder, resume_step) if find_spec("tensorboardX") else None

    def write(self, step: int, **values: float) -> None:
        """Write one line of values, each rounded to 6 significant digits."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **rounded}) + "\n")
            if self._board is not None:
                self._board.write(step, rounded)

    def close(self) -> None:
        """Close the files."""
        with writing(self._path), closing(self._file):
            if self._board is not None:
                self._board.close()


class _Board:
    """An event file of TensorBoard.

    Not a `SummaryWriter`: on a full disk its thread ends, and whoever writes next waits for ever.
    """

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        (folder / "tensorboard").mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "tensorboard" / "events"))
        self._event, self._scalar = Event, scalar
        if resume_step:  # TensorBoard forgets what comes after it
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=resume_step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(self._event(step=step, summary=self._scalar(name, value)))
        self._file.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)

    def close(self) -> None:
        self._file.close()


class NoWriter:
    """In the place of a `MetricWriter` where another process writes."""

    def write(self, step: int, **values: float) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file, up to the first that cannot be read.

    A last line that a kill cut short is left out in silence, what stands after damage with a
    warning.
    """
    if not path.exists():
        return []
    read: list[dict[str, float]] = []
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(whole_lines, 1):
        try:
            values = json.loads(line)
            read.append({"step": int(values["step"]), **values})
        except (ValueError, KeyError, TypeError):
            _log.warning("%s: line %d cannot be read; left out from there on", path, number)
            break
    return read


class _Lines:
    """Where progress goes without a terminal: whole lines instead of one that is overwritten."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            with suppress(OSError):  # a log on a full disk must not end what it tells of
                print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(
    total: int,
    description: str,
    unit: str,
    *,
    initial: int = 0,
    delay: float = 0,
    leave: bool = True,
    shown: bool = True,
) -> tqdm:
    """A progress bar; without a terminal a line now and then.

    The environment's TQDM_DISABLE=1 and the like are honoured.

    Args:
      total: of the units.
      description: what goes on.
      unit: of the total, with a leading blank where it is a word.
      initial: units that were done before.
      delay: seconds after which it appears.
      leave: keep it when the end is reached.
      shown: False where another process shows it.
    """
    settings: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.5}
    if sys.stderr is None:  # closed by whoever started the program
        settings["disable"] = True
    elif not sys.stderr.isatty():
        settings = {"file": _Lines(), "ncols": 100, "mininterval": 30, "maxinterval": 60}
    if not shown:
        settings["disable"] = True  # otherwise tqdm asks the environment
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        delay=delay,
        leave=leave,
        smoothing=0.05,
        **settings,
    )


def progress(
    items: Iterable[T], description: str, total: int, unit: str, shown: bool = True
) -> Iterator[T]:
    """The items, with a `progress_bar` that appears where they take longer than two seconds."""
    with progress_bar(total, description, unit, delay=2, leave=False, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()
