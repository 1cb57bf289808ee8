"""Accuracies of a config's variants over seeds: train, score, print the table of docs/results.md.

    python benchmarks/results.py configs/mnist5k.py vanilla mixup inside cross --seeds 0 1 2
    python benchmarks/results.py configs/cifar10.py inside vanilla --at-once 2 -- \
        --encoder.dtype bfloat16

Every run is `train.py CONFIG:VARIANT --seed SEED` with what follows `--`, then `eval.py` on it.
Runs are kept in the folder --workdir: the same command goes on where it was. The time is the
processor time of the last start of train.py, with compiling.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ("1", "5", "10", "20")  # encryptions per test image, as eval.py does by default


def run_folder(config: str, variant: str, seed: int, folder: Path) -> Path:
    """Where a run lies; its log and what is noted about it lie beside it."""
    return folder / f"{Path(config).stem}-{variant}-{seed}"


def finish(config: str, variant: str, seed: int, folder: Path, overrides: list[str]) -> None:
    """Train and score one run, unless that is done."""
    run = run_folder(config, variant, seed, folder)
    if (run / "eval.json").exists():
        return
    train = ("train.py", f"{config}:{variant}", "--workdir", str(run), "--seed", str(seed))
    seconds = _call(*train, *overrides, log=run.with_suffix(".log"))
    git = ("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    noted = {"cpu_s": seconds, "commit": commit}
    run.with_suffix(".noted.json").write_text(json.dumps(noted), encoding="utf-8")
    _call("eval.py", str(run), log=run.with_suffix(".log"))


def _call(program: str, *arguments: str, log: Path) -> float:
    """Run a program of this project; its processor time in seconds."""
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, str(ROOT / program), *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{program} {' '.join(arguments)} failed: see {log}")
    return usage.ru_utime + usage.ru_stime


def row(variant: str, runs: list[Path]) -> str:
    """A line of the table: accuracies by seed, means, encrypted inference, its oracle, the time."""
    scores: list[dict[str, Any]] = [json.loads((run / "eval.json").read_text()) for run in runs]
    plain = [score["plain_accuracy"] for score in scores]
    cells = [f"{accuracy:.3f}" for accuracy in plain]
    if len(runs) > 1:
        cells.append(f"{np.mean(plain):.3f}")
    for name in ("encrypted_accuracy", "oracle_accuracy"):
        for count in COUNTS:
            found = [score[name][count] for score in scores if count in score[name]]
            cells.append(f"{np.mean(found):.3f}" if found else "")
    cells.append(f"{np.mean([noted(run)['cpu_s'] for run in runs]):,.0f} s")
    return f"| {variant} | {' | '.join(cells)} |"


def noted(run: Path) -> dict[str, Any]:
    """What `finish` noted."""
    values: dict[str, Any] = json.loads(run.with_suffix(".noted.json").read_text())
    return values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/results"))
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:own])
    given.workdir.mkdir(parents=True, exist_ok=True)
    runs = {
        (variant, seed): run_folder(given.config, variant, seed, given.workdir)
        for variant in given.variants
        for seed in given.seeds
    }
    with ThreadPoolExecutor(given.at_once) as threads:
        waiting = [
            threads.submit(finish, given.config, *job, given.workdir, words[own + 1 :])
            for job in runs
        ]
        for run, done in zip(runs.values(), waiting, strict=True):
            done.result()
            print(f"{run} is done", file=sys.stderr)
    heads = [f"seed {seed}" for seed in given.seeds] + ["mean"] * (len(given.seeds) > 1)
    heads += [f"{who}T={count}" for who in ("", "oracle ") for count in COUNTS] + ["CPU time"]
    print(f"| variant | {' | '.join(heads)} |")
    print(f"|---|{'---|' * len(heads)}")
    for variant in given.variants:
        print(row(variant, [runs[variant, seed] for seed in given.seeds]))
    commits = sorted({noted(run)["commit"] for run in runs.values()})
    print(
        f"\nCommit {', '.join(commits)}; {jax.devices()[0].device_kind} ({platform.machine()}), "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


if __name__ == "__main__":
    main()
