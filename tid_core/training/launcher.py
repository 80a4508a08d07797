"""A run in as many processes as it gets GPUs: started by torchrun's agent, heard and answered as if it were one.

    launcher                 asks for the stop, passes on the events, gives the verdict
      `- agent (a thread)    torchrun's: makes the ranks meet, ends all of them as soon as one has failed
           |- rank 0         `python -m tid_core.run FOLDER/plan.json --rank-in FOLDER`, speaks for all
           `- rank 1, ...

Ranks inherit nothing but standard output: torchrun closes descriptors and gives each a session of its own. So they meet
the launcher in FOLDER, and ask the kernel to be killed when the launcher ends.
"""

import logging
import os
import selectors
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pydantic import ValidationError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tid_core.events import EVENT, Event, Finished, Reporter, Warned
from tid_core.plan import RunPlan
from tid_core.spec import JobSpec
from tid_core.training.files import replace_file
from tid_core.training.guards import as_failure
from tid_core.training.loop import train
from tid_core.training.meeting import EVENTS, PLAN, RENDEZVOUS, STOP, TORCHRUN
from tid_core.training.verdict import verdict

_LISTEN_SECONDS = 0.1
_READ_BYTES = 1 << 16


def run(plan: RunPlan, report: Reporter, should_stop: Callable[[], bool]) -> Finished:
    """As `train`, in as many processes as `resources.gpus` asks for and this host has."""
    processes, available = count_processes(plan.spec)
    wanted = plan.spec.resources.gpus
    if processes < wanted:
        told = f"resources.gpus is {wanted}, {available} are visible here, and the run uses {processes}"
        report(Warned(code="fewer_gpus", detail=f"{told}; training.batch_size stays {plan.spec.training.batch_size}"))
    if processes <= 1:
        return train(plan, report, should_stop)
    try:
        finished = _launch(plan, processes, report, should_stop)
    except Exception as error:
        traceback.print_exc()
        failure = as_failure(error, plan.spec)
        finished = Finished(outcome="failed", reason=failure.reason, detail=failure.detail)
    report(finished)
    return finished


def count_processes(spec: JobSpec) -> tuple[int, int]:
    """How many processes train, and how many the host could hold.

    One for each GPU that is asked for and visible, but only as many as divide every micro-batch evenly. With
    `training.device: cpu` they share the CPU. A host without a GPU has one process, which trains on the CPU.
    """
    wanted, training = spec.resources.gpus, spec.training
    if wanted <= 1:
        return wanted, wanted  # no need to wake a GPU for that
    available = wanted if training.device == "cpu" else torch.cuda.device_count()
    micro_batch = training.batch_size // training.accumulate
    even = [n for n in range(1, min(wanted, available) + 1) if micro_batch % n == 0]
    return max(even, default=1), available


def _launch(plan: RunPlan, processes: int, report: Reporter, should_stop: Callable[[], bool]) -> Finished:
    with tempfile.TemporaryDirectory(prefix="tid-ranks-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        replace_file(folder / PLAN, plan.model_dump_json().encode())
        with _Ears(folder / EVENTS) as ears:
            agent = _Agent(folder, processes)
            agent.start()
            while agent.is_alive():
                if should_stop():
                    (folder / STOP).touch()
                for event in ears.listen(_LISTEN_SECONDS):
                    report(event)
            for event in ears.drain():
                report(event)
        return verdict(folder, processes, agent.exit_codes, agent.error)


class _Agent(threading.Thread):
    """torchrun in a thread, so that it takes no signal handler from the process and its main thread can listen.

    It meets itself, the only node, in a file: its TCP stores would listen on every network of the host. The ranks are
    killed when this thread dies, which is when they have ended or the whole process dies.
    """

    def __init__(self, folder: Path, processes: int) -> None:
        super().__init__(name="torchrun", daemon=True)
        self.exit_codes: dict[int, int] = {}
        """Of the ranks that failed, the first to be noticed first; negative = ended by that signal."""
        self.error: Exception | None = None
        command = ["-m", "tid_core.run", str(folder / PLAN), "--rank-in", str(folder)]
        self._command = [*command, "--parent-pid", str(os.getpid())]
        self._config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=str(folder / RENDEZVOUS),
            rdzv_configs={"store_type": "file", "keep_alive_interval": 3600},  # the file grows with each
            local_addr="127.0.0.1",
            max_restarts=0,  # a lost run continues as the worker's next attempt
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / TORCHRUN)),
        )

    def run(self) -> None:
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        # It warns that it cannot handle signals here, and of every process that it ends.
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
        try:
            elastic_launch(self._config, sys.executable)(*self._command)
        except ChildFailedError as error:
            self.exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        except Exception as error:
            traceback.print_exc()
            self.error = error


class _Ears:
    """The reading end of a named pipe that the first rank writes its events to."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        # Open for writing, too: otherwise it would be at its end before the first rank opens it.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._descriptor, selectors.EVENT_READ)
        self._partial = b""

    def __enter__(self) -> "_Ears":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        os.close(self._descriptor)

    def listen(self, timeout: float) -> Iterator[Event]:
        """Some of what has been said, after waiting up to `timeout` seconds for a word."""
        if self._selector.select(timeout):
            *lines, self._partial = (self._partial + os.read(self._descriptor, _READ_BYTES)).split(b"\n")
            yield from _parse(lines)

    def drain(self) -> Iterator[Event]:
        """All that has been said."""
        while self._selector.select(0):
            yield from self.listen(0)


def _parse(lines: list[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            yield EVENT.validate_json(line)
        except ValidationError:
            sys.stderr.write(f"not an event: {line[:500].decode(errors='replace')}\n")
