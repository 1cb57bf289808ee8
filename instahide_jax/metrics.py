"""Metrics as JSON lines, in TensorBoard where it is installed, and in a progress bar."""

import importlib.util
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

_log = logging.getLogger(__name__)
T = TypeVar("T")


class MetricWriter:
    """Appends one JSON object per line to metrics.jsonl, and to TensorBoard files.

    A resumed run truncates the file to the step it resumes from and writes the same lines again.
    """

    def __init__(self, folder: Path, resume_step: int):
        """Open the files below `folder`, dropping lines after `resume_step`."""
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a", buffering=1)
        self._board: Any = None
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step)

    def write(self, step: int, **values: float) -> None:
        """Write one line of values, each rounded to 6 significant digits."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        if self._board is not None:
            for name, value in rounded.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


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


def progress(
    items: Iterable[T], description: str, total: int, unit: str, shown: bool = True
) -> Iterable[T]:
    """The items, with a bar that appears where they take longer than two seconds."""
    return tqdm(items, description, total, unit=unit, delay=2, leave=False, disable=not shown)


def progress_bar(total: int, initial: int, description: str, shown: bool = True) -> tqdm:
    """A progress bar over steps."""
    return tqdm(
        disable=not shown,
        total=total,
        initial=initial,
        desc=description,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5,
        smoothing=0.05,
    )
