"""Whether the published recipe of InstaHide trains, on a narrow ResNet-18 and real images.

    python benchmarks/learning.py [--width 16] [--steps 325] [--dtypes float32 bfloat16] [--seeds 0]

Runs `train.py configs/cifar10.py:inside` (SGD 0.1, no warm-up) on the prepared CIFAR-10 for one
epoch per dtype and seed, each with a secret of its own, and compares the training loss with that of
guessing, ln 10 = 2.303. Exit code 1 says that after --steps the loss is not 0.08 below it: the mean
of the next 50 steps, by default the last of the epoch, because the loss of a single step scatters
as the last column says. With an initialisation that does not suit the recipe it stays at 2.29 to
2.30.
"""

import argparse
import itertools
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from instahide_jax.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
MARGIN = 0.08
MEAN_OVER = 50  # steps, so that the noise of single batches averages out
STEPS_PER_EPOCH = 375  # 48,000 training images in batches of 128


def losses(width: int, dtype: str, seed: int, folder: Path) -> np.ndarray:
    """The training loss of every step of one epoch."""
    command = [
        *(sys.executable, str(ROOT / "train.py"), str(ROOT / "configs/cifar10.py:inside")),
        *("--workdir", str(folder), "--epochs", "1", "--log-every", "1"),
        *("--encoder.width", str(width), "--encoder.dtype", dtype, "--seed", str(seed)),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ)
    lines = read_metrics(folder / "metrics.jsonl")
    return np.array([line["train_loss"] for line in lines if "train_loss" in line])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--steps", type=int, default=STEPS_PER_EPOCH - MEAN_OVER)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    most = STEPS_PER_EPOCH - MEAN_OVER
    if not 0 <= given.steps <= most:
        parser.error(f"--steps is {given.steps}; it must lie in [0, {most}]")
    starts = [*range(0, given.steps, 100), given.steps]
    heads = [*map(str, starts), "deviation of one step"]
    print(f"| mean loss of {MEAN_OVER} steps after | {' | '.join(heads)} |")
    print(f"|---|{'---|' * len(heads)}")
    good = True
    for dtype, seed in itertools.product(given.dtypes, given.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            found = losses(given.width, dtype, seed, Path(temporary) / "run")
        parts = [found[start : start + MEAN_OVER] for start in starts]
        cells = [f"{part.mean():.3f}" for part in parts] + [f"{parts[-1].std():.3f}"]
        print(f"| {dtype}, seed {seed} | {' | '.join(cells)} |", flush=True)
        good &= bool(parts[-1].mean() < math.log(10) - MARGIN)
    print(f"Guessing loses {math.log(10):.3f}; the bar is {math.log(10) - MARGIN:.3f}.")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
