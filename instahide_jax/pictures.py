"""Pictures of a run: what was hidden, and how training went."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instahide_jax.files import private_file
from instahide_jax.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(**settings: Any) -> "Figure":
    """A figure that pyplot does not know, drawn by Agg.

    The backend that a notebook leaves in the environment is of no use here, and importing
    Matplotlib may fail because of it.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return Figure(**settings)


_PNG: dict[str, Any] = {"format": "png", "dpi": 110}


def save_samples(path: Path, columns: dict[str, np.ndarray], labels: list[str], note: str) -> None:
    """Images side by side, one row per example.

    The picture shows private images: it is for their owner, and has mode 0600.

    Args:
      path: of the PNG.
      columns: title -> float images [N, H, W, C], standardised; each image is stretched to its own
        range for display.
      labels: one line of text per row.
      note: below the picture.
    """
    rows = len(labels)
    figure = _figure(figsize=(2.0 * len(columns) + 2.4, 1.6 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for c, (title, images) in enumerate(columns.items()):
        for r in range(rows):
            axes = grid[r][c]
            low, high = float(images[r].min()), float(images[r].max())
            shown = (images[r].astype(np.float32) - low) / max(high - low, 1e-12)
            axes.imshow(shown.squeeze(-1) if shown.shape[-1] == 1 else shown, cmap="gray")
            axes.set_axis_off()
            if not r:
                axes.set_title(title, fontsize=10)
            if c == len(columns) - 1:
                axes.text(1.06, 0.5, labels[r], transform=axes.transAxes, fontsize=8, va="center")
    figure.supxlabel(note, fontsize=8)
    with private_file(path) as file:
        figure.savefig(file, **_PNG)


def save_curves(path: Path, metrics_file: Path, title: str) -> None:
    """Losses over steps beside all other scores, from metrics.jsonl."""
    lines = read_metrics(metrics_file)
    figure = _figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    parts = {"train": "training (hidden)", "validation": "validation"}
    names = dict.fromkeys(name for line in lines for name in line)
    for name in names:
        part, _, score = name.partition("_")
        if part not in parts:
            continue
        axes = left if score == "loss" else right
        label = parts[part] if score == "loss" else f"{score}, {parts[part]}"
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=label)
    for axes, name in ((left, "loss"), (right, "score")):
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, **_PNG)
    os.replace(temporary, path)
