"""Checkpoints through Orbax: the newest two and the best; the newest whole one is restored."""

import fcntl
import json
import logging
import math
import shutil
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from instahide_jax.distributed import is_first, together
from instahide_jax.errors import InputError, writing

Tree = Any
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run folder.

    Saving is asynchronous: the state is copied and written while training goes on. A checkpoint
    appears under its name only when complete, so a kill at any moment leaves the ones before.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        """Open or create `folder`; leftovers of interrupted saves are removed.

        With `read_only` nothing is created or removed: a run may be saving there at the time.

        Raises:
          InputError: if another process has the folder open to save, or it is no folder, or a score
            cannot be read and `read_only` forbids to mend that.
        """
        self._lock: IO[str] | None = None
        together(lambda: self._prepare(folder, read_only))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(
                [
                    keep.LatestN(2),
                    keep.BestN(
                        get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            best_fn=_accuracy,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        # Without a handler given, Orbax looks into the newest checkpoint for what it holds, and
        # where that one is damaged it reads none of the others.
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def _prepare(self, folder: Path, read_only: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is no folder; move it away, or choose another --workdir")
        if is_first():  # of several processes one has the folder locked, and mends
            self._lock = None if read_only else _locked(folder.with_name(".lock"))
            _check_scores(folder, mend=not read_only)

    def save(self, step: int, state: Tree, accuracy: float | None) -> None:
        """Start saving; waits only for a save that is still being written.

        Args:
          step: number of the checkpoint.
          state: pytree of arrays; no keys, which are derived and never stored.
          accuracy: on the validation split, in [0, 1]; decides which checkpoint is best. None where
            it was not measured, because the run is being stopped: such a one is never the best.

        Raises:
          InputError: if the disk is full or the like, now or at the save before.
        """
        metrics = None if accuracy is None else {"accuracy": accuracy}
        with writing(self._manager.directory):
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def steps(self) -> list[int]:
        """Steps of the checkpoints at hand, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int:
        """The step of the best validation accuracy.

        Raises:
          InputError: if there is no checkpoint.
        """
        step = self._manager.best_step()
        if step is None:
            raise InputError(f"no checkpoint in {self._manager.directory}; train first")
        return step

    def restore(self, abstract: Tree, step: int, sharding: Tree) -> Tree:
        """The state of one step, on any number of devices and processes.

        Args:
          abstract: pytree of `jax.ShapeDtypeStruct`.
          step: one of `steps()`.
          sharding: of every leaf, or one for all.

        Raises:
          InputError: if it cannot be read.
        """
        target = jax.tree.map(
            lambda x, of: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of),
            abstract,
            jax.tree.broadcast(sharding, abstract),
        )
        try:
            state = self._manager.restore(step, args=ocp.args.StandardRestore(target))
            return jax.block_until_ready(state)
        except Exception as error:  # Orbax raises a different type for every kind of damage
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"checkpoint {step} in {self._manager.directory} cannot be read: {reason}"
            ) from error

    def restore_newest(self, abstract: Tree, sharding: Tree) -> Tree | None:
        """The state of the newest checkpoint that can be read; None where there is none at all.

        A damaged one is reported, and removed once an earlier one was read. Where none can be read,
        nothing is removed: the reason may lie elsewhere. All processes of a job restore the same.

        Args:
          abstract: as for `restore`.
          sharding: as for `restore`.

        Raises:
          InputError: if there are checkpoints but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state = together(partial(self.restore, abstract, step, sharding))
            except InputError as error:
                _log.warning("%s; trying the one before", str(error))  # keep no frames alive
                continue
            for damaged in steps[steps.index(step) + 1 :]:
                self._manager.delete(damaged)
            return state
        if steps:
            raise InputError(
                f"none of the checkpoints {steps} in {self._manager.directory} can be read; "
                "start anew in another --workdir"
            )
        return None

    def close(self) -> None:
        """Wait until everything is on the disk.

        Raises:
          InputError: as `save`.
        """
        with closing(self._lock) if self._lock else nullcontext(), writing(self._manager.directory):
            self._manager.wait_until_finished()
            self._manager.close()


def _check_scores(folder: Path, mend: bool) -> None:
    """Find scores that cannot be read: Orbax would open none of the checkpoints because of one."""
    for file in folder.glob("*/metrics/metrics"):
        if not file.parent.parent.name.isdigit():  # of a save that has not ended
            continue
        try:
            if math.isfinite(json.loads(file.read_bytes())["accuracy"]):
                continue
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if not mend:
            raise InputError(f"{file} cannot be read; start the training again, which mends it")
        _log.warning("%s cannot be read; this checkpoint is not taken for the best", file)
        shutil.rmtree(file.parent)


def _locked(path: Path) -> IO[str]:
    """A file that this process alone has locked; the lock ends with the process at the latest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another process trains in {path.parent}; wait for it, or choose another --workdir"
        ) from None
    except OSError as error:  # a file system without locks
        _log.warning("%s: %s; see to it that nothing else trains there", path, error.strerror)
    return file


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]
