"""Accuracies of a config's variants over seeds: train, score, print the table of docs/results.md.

    python benchmarks/results.py configs/mnist5k.py vanilla mixup inside cross --seeds 0 1 2
    python benchmarks/results.py configs/cifar10.py inside vanilla --at-once 2 -- \
        --encoder.dtype bfloat16

Every run is `train.py CONFIG:VARIANT --seed SEED` with what follows `--`, then `eval.py` on it.
Runs are kept in the folder --workdir: the same command at the same commit resumes them. Times are
summed over the starts of train.py, with compiling.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

ARCHIVED = "$Format:%h$"  # what git archive puts here is the commit
ROOT = Path(__file__).resolve().parent.parent
COUNTS = ("1", "5", "10", "20")  # encryptions per test image, as eval.py does by default
TIMES = {"cpu_s": "CPU time", "wall_s": "time"}  # of training, as noted and as printed


def run_folder(config: str, variant: str, seed: int, folder: Path) -> Path:
    """Where a run lies; its log and what is noted about it lie beside it."""
    return folder / f"{Path(config).stem}-{variant}-{seed}"


def finish(run: Path, arguments: list[str], environment: dict[str, str]) -> None:
    """Train and score one run, unless that is done.

    Args:
      run: its folder.
      arguments: of train.py, without the folder.
      environment: of both programs.
    """
    asked = {"arguments": arguments, "commit": _commit()}
    new: dict[str, Any] = asked | dict.fromkeys(TIMES, 0.0)
    notes = noted(run) if _notes(run).exists() else new
    for name, value in asked.items():
        if notes[name] != value:
            raise SystemExit(
                f"{run} has the {name} {notes[name]}, not {value}: remove it, or choose another "
                "--workdir"
            )
    if (run / "eval.json").exists():
        return
    _notes(run).write_text(json.dumps(notes), encoding="utf-8")
    start, log = time.perf_counter(), run.with_suffix(".log")
    code, cpu = _call(["train.py", *arguments, "--workdir", str(run)], log, environment)
    notes["cpu_s"] += cpu
    notes["wall_s"] += time.perf_counter() - start
    _notes(run).write_text(json.dumps(notes), encoding="utf-8")
    if not code:
        code, _ = _call(["eval.py", str(run)], log, environment)
    if code:
        raise SystemExit(f"{run} failed: see {log}")
    if _commit() != notes["commit"]:
        (run / "eval.json").unlink()
        raise SystemExit(f"the sources have changed since {run} began: remove it")


def _commit() -> str:
    if not ARCHIVED.startswith("$"):
        return ARCHIVED
    git = ("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def _call(command: list[str], log: Path, environment: dict[str, str]) -> tuple[int, float]:
    """Run a program of this project; its exit code and processor time in seconds."""
    program, *arguments = command
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / program), *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


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
    notes = [noted(run) for run in runs]
    cells += [f"{np.mean([note[name] for note in notes]):,.0f} s" for name in TIMES]
    return f"| {variant} | {' | '.join(cells)} |"


def noted(run: Path) -> dict[str, Any]:
    """What `finish` noted."""
    values: dict[str, Any] = json.loads(_notes(run).read_text())
    return values


def _notes(run: Path) -> Path:
    return run.with_suffix(".noted.json")


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
    end = words.index("--") if "--" in words else len(words)
    given, overrides = parser.parse_args(words[:end]), words[end + 1 :]
    given.workdir.mkdir(parents=True, exist_ok=True)
    runs = {
        (variant, seed): run_folder(given.config, variant, seed, given.workdir)
        for variant in given.variants
        for seed in given.seeds
    }
    # Otherwise JAX takes three quarters of a GPU's memory for each of them.
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / given.at_once:.2f}"}
    environment = {**(share if given.at_once > 1 else {}), **os.environ}
    with ThreadPoolExecutor(given.at_once) as threads:
        waiting = [
            threads.submit(
                finish,
                run,
                [f"{given.config}:{variant}", "--seed", str(seed), *overrides],
                environment,
            )
            for (variant, seed), run in runs.items()
        ]
        for run, done in zip(runs.values(), waiting, strict=True):
            done.result()
            print(f"{run} is done", file=sys.stderr)
    heads = [f"seed {seed}" for seed in given.seeds] + ["mean"] * (len(given.seeds) > 1)
    heads += [f"{who}T={count}" for who in ("", "oracle ") for count in COUNTS]
    heads += TIMES.values()
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
