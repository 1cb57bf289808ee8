"""Whether training survives kills, and whether its memory stays flat.

    python benchmarks/faults.py kills [--kills 20] [--processes 1 2]
    python benchmarks/faults.py memory [--steps 10000]

`kills` trains a small network on MNIST-5k once to the end, and once with SIGKILL at random moments,
a quarter of them while it starts, the others at random steps, and started again after each; the
last checkpoints are compared bit for bit. With 2 processes each kill hits one of them, at random.
`memory` trains for many steps, and reads the resident memory of the process every half second. Exit
code 1 says that a check failed.
"""

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from instahide_jax.checkpoint import Checkpoints
from instahide_jax.encoders import make_model
from instahide_jax.optimizers import make_optimizer
from instahide_jax.parallel import replicated
from instahide_jax.placement import local_mesh
from instahide_jax.run import read_experiment
from instahide_jax.training import init_state

ROOT = Path(__file__).resolve().parent.parent
STEPS_PER_PASS = 38
# A small network: these runs are about everything around the step.
RUN = ("--encoder.widths", "8", "--encoder.strides", "4", "--insecure-seed", "1")
WARM_UP = 0.2  # of the steps, before memory is compared
FLAT = 1.05


class Place:
    """A folder for runs that share what they compile."""

    def __init__(self, folder: Path, processes: int):
        self.folder, self.processes = folder, processes
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
        }

    def start(self, workdir: str, epochs: int, *more: str) -> "subprocess.Popen[bytes]":
        """Start a run."""
        command = [str(ROOT / "train.py"), str(ROOT / "configs" / "mnist5k.py"), *RUN, *more]
        command += ["--workdir", str(self.folder / workdir), "--epochs", str(epochs)]
        if self.processes > 1:
            launcher = str(ROOT / "scripts" / "launch_local.py")
            together = ["-n", str(self.processes), "--devices", "1", "--"]
            command = [launcher, *together, *command]
        log = (self.folder / f"{workdir}.log").open("ab")
        return subprocess.Popen(
            [sys.executable, *command], env=self.environment, stdout=log, stderr=log
        )

    def measure(self, workdir: str, epochs: int, *more: str) -> float | None:
        """Seconds of a run to the end; None, and its output, if it fails."""
        begin = time.monotonic()
        if self.start(workdir, epochs, *more).wait() != 0:
            print((self.folder / f"{workdir}.log").read_text(), file=sys.stderr)
            return None
        return time.monotonic() - begin

    def step(self, workdir: str) -> int:
        """The last step of which a run wrote metrics."""
        file = self.folder / workdir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        whole = [line for line in lines[-2:] if line.endswith("}")]
        return int(json.loads(whole[-1])["step"]) if whole else 0

    def victim(self, run: "subprocess.Popen[bytes]", rng: random.Random) -> int:
        """The process to kill: of several one at random."""
        if self.processes == 1:
            return run.pid
        file = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        children = file.read_text(encoding="ascii").split()
        return int(rng.choice(children)) if children else run.pid


def last_checkpoint(folder: Path) -> tuple[int, Any]:
    """Number and content of the newest checkpoint of a run on MNIST."""
    experiment = read_experiment(folder)
    model = make_model(experiment.encoder, (28, 28, 1), 10)
    optimizer = make_optimizer(experiment.optimizer, 1, 1)  # shapes do not depend on steps
    abstract = jax.eval_shape(partial(init_state, model, optimizer), jax.random.key(0))
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as checkpoints:
        step = max(checkpoints.steps())
        return step, jax.device_get(checkpoints.restore(abstract, step, replicated(local_mesh())))


def metrics(folder: Path) -> list[dict[str, float]]:
    """What a run wrote, without speeds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in lines]


def kills(count: int, processes: int, epochs: int, seed: int) -> bool:
    """Train with and without kills; print what came of it; whether both end alike."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(Path(temporary), processes)
        every = ("--save-every", "100", "--log-every", "10")
        place.start("compiled", 1, *every).wait()
        starting = place.measure("one", 1, *every)
        if starting is None or place.measure("whole", epochs, *every) is None:
            return False
        latest = epochs * STEPS_PER_PASS * 9 // 10  # a run that ends first cannot be killed
        moments = sorted(rng.sample(range(latest), count))
        for moment in tqdm(moments, f"kills, {processes} processes"):
            step, until = moment, math.inf
            if rng.random() < 0.25:  # while it starts
                step, until = latest, time.monotonic() + rng.uniform(0.1, starting)
            run = place.start("killed", epochs, *every)
            while run.poll() is None and place.step("killed") < step and time.monotonic() < until:
                time.sleep(0.01)
            if until == math.inf:
                time.sleep(rng.uniform(0, 0.2))
            if run.poll() is not None:
                print("A run ended before its kill; try more --epochs.", file=sys.stderr)
                return False
            os.kill(place.victim(run, rng), signal.SIGKILL)
            run.wait()
        code = place.start("killed", epochs, *every).wait()
        log = (place.folder / "killed.log").read_text()
        resumed_at = [int(step) for step in re.findall(r"Resuming at step (\d+)", log)]
        same = code == 0
        if same:
            (step, whole), (_, killed) = (
                last_checkpoint(place.folder / name) for name in ("whole", "killed")
            )
            pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(killed), strict=True)
            same = all(np.array_equal(a, b) for a, b in pairs)
            same &= metrics(place.folder / "whole") == metrics(place.folder / "killed")
            print(
                f"| {processes} | {step:,} | {count} | {len(resumed_at)} | "
                f"{', '.join(map(str, resumed_at))} | {'yes' if same else 'NO'} |"
            )
        else:
            print(log[-2000:], file=sys.stderr)
        return same


def memory(steps: int) -> bool:
    """Train for many steps; print memory over time; whether it stays flat."""
    epochs = -(-steps // STEPS_PER_PASS)
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(Path(temporary), 1)
        place.environment |= {"JAX_LOG_COMPILES": "1"}
        run = place.start("long", epochs, "--save-every", "500")
        seen: list[tuple[int, float]] = []
        total = epochs * STEPS_PER_PASS
        with tqdm(total=total, desc="memory", unit="step") as bar:
            while run.poll() is None:
                status = Path(f"/proc/{run.pid}/status").read_text(encoding="utf-8")
                held = re.search(r"VmRSS:\s+(\d+) kB", status)
                step = place.step("long")
                if held and step:
                    bar.update(step - bar.n)
                    seen.append((step, int(held[1]) / 1024))
                time.sleep(0.5)
        log = (place.folder / "long.log").read_text()
        compiled = len(re.findall(r"Finished XLA compilation of jit\(train_step\)", log))
    if run.returncode != 0:
        print(log[-2000:], file=sys.stderr)
        return False
    warm = [(step, held) for step, held in seen if step >= WARM_UP * total]
    parts = np.array_split(np.array(warm), 4)
    print("| steps | resident memory, MiB: median | largest |")
    print("|---|---|---|")
    for part in parts:
        low, high = part[0, 0], part[-1, 0]
        print(f"| {low:,.0f}-{high:,.0f} | {np.median(part[:, 1]):.0f} | {part[:, 1].max():.0f} |")
    growth = float(np.median(parts[-1][:, 1]) / np.median(parts[0][:, 1]))
    print(f"Last quarter to first: {growth:.3f}. Compiled train steps: {compiled}.")
    return growth < FLAT and compiled == 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "memory"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=100, help="of the runs that are killed")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    given = parser.parse_args()
    if given.what == "memory":
        sys.exit(0 if memory(given.steps) else 1)
    print("| processes | steps | kills | resumed | at step | same bits as without kills |")
    print("|---|---|---|---|---|---|")
    good = [kills(given.kills, count, given.epochs, given.seed) for count in given.processes]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
