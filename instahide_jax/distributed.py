"""Several processes as one job: joining it, agreeing on facts and failures, and ending together.

JAX's own runtime connects the processes (`jax.distributed`). What they tell one another here are
small facts in clear: counts, statistics, digests, messages. Nothing private and no key is among
them.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from instahide_jax.errors import STOPPED, InputError, report, stop_request

AUTO = "auto"
# How long JAX waits for signs of life of a process before it takes it for lost and ends the others.
HEARTBEAT_SECONDS = 30
# Variables in which launchers tell a process that it is one of many.
_JOB_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# What JAX's runtime says of a process that no longer answers.
_LOST = re.compile(
    r"gloo|nccl|coordination|barrier|^(unavailable|deadline_exceeded|cancelled|aborted)",
    re.IGNORECASE,
)
T = TypeVar("T")


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int = 300
) -> None:
    """Become one process of a job, or make sure to be alone; before JAX is used for anything else.

    Args:
      coordinator: address HOST:PORT at which process 0 listens; "auto" takes everything from the
        cluster (TPU pod slice, SLURM, Open MPI); None for a single process.
      num_processes: of the job; None with "auto".
      process_id: of this process, from 0; None with "auto".
      timeout: seconds to wait for the other processes. A process that waits longer ends the program
        with one line and exit code 2.

    Raises:
      InputError: for numbers that do not fit; for None where a launcher says that there are others:
        they would train one by one, each believing itself alone.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise InputError("--num-processes and --process-id need --coordinator HOST:PORT too")
        _check_alone()
        return
    _check_numbers(coordinator, num_processes, process_id)
    if timeout < 1:
        raise InputError(f"--join-timeout is {timeout}; give at least 1 second")
    if process_id == 0:
        _check_free(coordinator)
    # JAX aborts the process with a stack trace where the others do not come. This speaks first.
    alarm = threading.Timer(timeout, _nobody_came, (coordinator, process_id, timeout))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            coordinator_address=None if coordinator == AUTO else coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=timeout + 600,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        there = jax.process_count()  # starts the backend, which waits for the others too
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the job at {coordinator} cannot be joined: {reason}; start all processes with one "
            "--coordinator, which every host can reach"
        ) from error
    finally:
        alarm.cancel()
    if num_processes is not None and there != num_processes:
        raise InputError(
            f"--num-processes is {num_processes} but JAX sees {there}; does this platform support "
            "several processes?"
        )


def start_backend() -> None:
    """Start JAX's backend, as the first array would; in a job, after `join`.

    Raises:
      InputError: if the user has named platforms that cannot be started here.
    """
    named = jax.config.values["jax_platforms"]
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for "cuda" without JAX's plugin
        if not named:
            raise
        reason = " ".join(str(error).partition(" (set ")[0].split()) or "this machine has none"
        raise InputError(
            f"JAX_PLATFORMS is {named!r}, which JAX cannot start here ({reason}); unset it, or "
            "name what this machine has, such as cpu"
        ) from error


def _check_alone() -> None:
    sizes = {name: os.environ.get(name, "") for name in _JOB_SIZES}
    sizes["TPU_WORKER_HOSTNAMES"] = str(len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")))
    for name, size in sizes.items():
        if size.isdigit() and int(size) > 1:
            raise InputError(
                f"{name} says that this is one of {size} processes, but --coordinator is not "
                f"given and each would train by itself: pass --coordinator auto, or unset {name}"
            )


def _check_numbers(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    if coordinator == AUTO:
        if num_processes is not None or process_id is not None:
            raise InputError(
                "--coordinator auto finds --num-processes and --process-id; leave them out"
            )
        return
    if not re.fullmatch(r"\S+:\d{1,5}", coordinator):
        raise InputError(f"--coordinator is {coordinator!r}; give HOST:PORT, or 'auto'")
    if num_processes is None or process_id is None:
        raise InputError(f"--coordinator {coordinator} needs --num-processes and --process-id too")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process-id is {process_id} of --num-processes {num_processes}; "
            "give a number from 0 on, below the number of processes"
        )


def _check_free(coordinator: str) -> None:
    # Of two coordinators at one port neither is told, and processes join the one or the other.
    host, _, port = coordinator.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        try:
            taken = probe.connect_ex((host, int(port))) == 0
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--coordinator is {coordinator}: {error}; name this host, and a port below 65536"
            ) from None
    if taken:
        raise InputError(f"another job listens at {coordinator}; give another port")


def _nobody_came(coordinator: str, process_id: int | None, timeout: int) -> None:
    whom = "the other processes" if process_id == 0 else f"a coordinator at {coordinator}"
    print(
        f"error: process {process_id} waited {timeout} s for {whom}; start all processes with "
        "one --coordinator, which every host can reach",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def is_first() -> bool:
    """Whether this process writes what there is one of: logs, pictures, the run's description."""
    return jax.process_index() == 0


def exchange(value: Any) -> list[Any]:
    """What every process says, in their order; JSON values. All processes call it."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size], np.int32)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def merged(facts: dict[int, Any]) -> dict[int, Any]:
    """What all processes say of their clients, by number of the client.

    Raises:
      InputError: if processes of one client do not say the same of it.
    """
    known: dict[int, Any] = {}
    for said in exchange({str(client): fact for client, fact in facts.items()}):
        for client, fact in said.items():
            if known.setdefault(int(client), fact) != fact:
                raise InputError(
                    f"the processes of client {client} do not have the same data or secret; give "
                    "all of them the same"
                )
    return dict(sorted(known.items()))


def together(action: Callable[[], T]) -> T:
    """Do something that may fail in one process alone; where it fails, all fail.

    Raises:
      InputError: that of `action`, or one that says which process has failed.
    """
    if jax.process_count() == 1:
        return action()
    failure = None
    try:
        made = action()
    except InputError as error:
        failure = error
    failed = [i for i, bad in enumerate(exchange(failure is not None)) if bad]
    if failure is not None:
        raise failure
    if failed:
        raise InputError(f"process {failed[0]} has failed; see its own message")
    return made


def sum_over_processes(values: np.ndarray) -> np.ndarray:
    """Sums of an array of floats over all processes, in float64."""
    return np.sum([np.asarray(said) for said in exchange(values.tolist())], axis=0)


def stopping(request: threading.Event | None, step: int) -> bool:
    """Whether to save and stop after this step, in all processes at the same one.

    Args:
      request: of `watch_for_stop`.
      step: rises by one from call to call.
    """
    if request is not None:
        return request.is_set()
    return multihost_utils.reached_preemption_sync_point(step)


def watch_for_stop() -> threading.Event | None:
    """Take notice of SIGTERM from now on; None where JAX does so for all processes of a job."""
    return stop_request() if jax.process_count() == 1 else None


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within a job, end the process where something fails, without waiting for the others.

    Closing files and checkpoints in good order would wait for processes that are lost, or that wait
    for this one. Checkpoints are whole or absent either way. Exit code 75 says that another process
    was lost and that the same command goes on; other failures keep their own.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, InputError | OSError) and _LOST.search(str(error)):
            print(
                "error: another process of the job does not answer; the checkpoints are kept, and "
                f"the same command goes on ({' '.join(str(error).split())[:160]})",
                file=sys.stderr,
            )
            code = STOPPED
        else:
            code = report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(1)  # the coordinator lives here: let the others tell what they saw
        os._exit(code)
