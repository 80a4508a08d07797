"""A run in as many processes as it gets GPUs: started by torchrun's agent, heard and answered as if it were one.

    launcher                 asks for the stop, passes on the events, gives the verdict
      `- agent (a thread)    torchrun's: makes the ranks meet, ends all of them as soon as one has failed
           |- rank 0         `python -m tid_core.run FOLDER/plan.json --rank-in FOLDER`, speaks for all
           `- rank 1, ...

Ranks inherit nothing but standard output: torchrun closes descriptors and gives each a session of its own. So they meet
the launcher in FOLDER, and ask the kernel to be killed when the launcher ends.

Where several machines train a job, each has such a launcher (`plan.node`); only that of node 0 has a rank that speaks.
They meet before their ranks do (tid_core.training.nodes).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tid_core.events import EVENT, Event, Finished, Reporter, Warned
from tid_core.plan import NodePlan, RunPlan
from tid_core.ranks import PATIENCE
from tid_core.spec import JobSpec
from tid_core.training.files import replace_file
from tid_core.training.guards import as_failure
from tid_core.training.meeting import EVENTS, PLAN, RENDEZVOUS, STOP, TORCHRUN
from tid_core.training.nodes import Stopped, met
from tid_core.training.verdict import verdict

_LISTEN_SECONDS = 0.1
_READ_BYTES = 1 << 16


def run(plan: RunPlan, report: Reporter, should_stop: Callable[[], bool]) -> Finished:
    """As `train`, in as many processes as `resources.gpus` asks for and this host has, or several hosts together."""
    if plan.gpus_required and (seen := torch.cuda.device_count()) < plan.gpus_required:
        return _conclude(plan, report, lambda: _refuse(plan.gpus_required, seen))
    if (node := plan.node) is not None:
        return _conclude(plan, report, lambda: _on_this_node(plan, node, report, should_stop))
    if plan.spec.resources.nodes > 1:
        told = f"resources.nodes is {plan.spec.resources.nodes}, and this run has one: only the service finds others"
        report(Warned(code="one_node", detail=told))
    processes, available = count_processes(plan.spec)
    wanted = plan.spec.resources.gpus
    if processes < wanted:
        told = f"resources.gpus is {wanted}, {available} are visible here, and the run uses {processes}"
        report(Warned(code="fewer_gpus", detail=f"{told}; training.batch_size stays {plan.spec.training.batch_size}"))
    if processes <= 1:
        from tid_core.training.loop import train  # a launcher of ranks does without what takes long to import

        return train(plan, report, should_stop)
    return _conclude(plan, report, lambda: _launch(plan, _Team.of_one_host(processes), report, should_stop))


def _refuse(required: int, seen: int) -> Finished:
    detail = f"the job waited for {required} GPUs, and {seen} can be used here now; `nvidia-smi` may say why"
    return Finished(outcome="failed", reason="device_missing", detail=detail)


def _conclude(plan: RunPlan, report: Reporter, work: Callable[[], Finished]) -> Finished:
    try:
        finished = work()
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


def _on_this_node(plan: RunPlan, node: NodePlan, report: Reporter, should_stop: Callable[[], bool]) -> Finished:
    """The ranks of this machine, in the same number and on the same kind of device as those of the others."""
    try:
        with met(node, plan.spec, should_stop) as agreed:
            if (warning := agreed.fewer(plan.spec)) is not None:
                report(warning)
            if agreed.on_cpu:
                training = plan.spec.training.model_copy(update={"device": "cpu"})
                plan = plan.model_copy(update={"spec": plan.spec.model_copy(update={"training": training})})
            return _launch(plan, _Team.of_node(node, agreed.ranks), report, should_stop)
    except Stopped:
        return Finished(outcome="stopped")


@dataclass(frozen=True)
class _Team:
    """The ranks of a run: those of this launcher, and all."""

    here: range
    everyone: int
    rendezvous: Callable[[Path], dict[str, Any]]
    """Where torchrun's agents meet: of one host, itself, in a file of the launcher's folder."""

    @classmethod
    def of_one_host(cls, processes: int) -> "_Team":
        """A TCP store would listen on every network of the host."""

        def in_a_file(folder: Path) -> dict[str, Any]:
            # The file grows with each sign of life.
            configuration = {"store_type": "file", "keep_alive_interval": 3600}
            place = {"rdzv_backend": "c10d", "rdzv_endpoint": str(folder / RENDEZVOUS), "run_id": uuid.uuid4().hex}
            return {**place, "rdzv_configs": configuration, "local_addr": "127.0.0.1"}

        return cls(range(processes), processes, in_a_file)

    @classmethod
    def of_node(cls, node: NodePlan, ranks: int) -> "_Team":
        """torchrun's static rendezvous: its c10d one numbers the nodes itself, and the first rank must be node 0's."""
        endpoint = f"[{node.host}]:{node.port}" if ":" in node.host else f"{node.host}:{node.port}"
        place = {"rdzv_backend": "static", "rdzv_endpoint": endpoint, "run_id": "tid", "local_addr": node.address}
        configuration = {"rank": node.number, "timeout": round(PATIENCE.total_seconds())}
        size = {"min_nodes": node.count, "max_nodes": node.count}
        here = range(node.number * ranks, (node.number + 1) * ranks)
        return cls(here, node.count * ranks, lambda _folder: {**place, **size, "rdzv_configs": configuration})


def _launch(plan: RunPlan, team: _Team, report: Reporter, should_stop: Callable[[], bool]) -> Finished:
    with tempfile.TemporaryDirectory(prefix="tid-ranks-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        replace_file(folder / PLAN, plan.model_dump_json().encode())
        with _Ears(folder / EVENTS) as ears:
            agent = _Agent(folder, team)
            agent.start()
            while agent.is_alive():
                if should_stop():
                    (folder / STOP).touch()
                for event in ears.listen(_LISTEN_SECONDS):
                    report(event)
            for event in ears.drain():
                report(event)
        return verdict(folder, team.everyone, agent.exit_codes, agent.error, here=team.here)


class _Agent(threading.Thread):
    """torchrun in a thread, so that it takes no signal handler from the process and its main thread can listen.

    The ranks are killed when this thread dies, which is when they have ended or the whole process dies.
    """

    def __init__(self, folder: Path, team: _Team) -> None:
        super().__init__(name="torchrun", daemon=True)
        self.exit_codes: dict[int, int] = {}
        """Of the ranks that failed, the first to be noticed first; negative = ended by that signal."""
        self.error: Exception | None = None
        command = ["-m", "tid_core.run", str(folder / PLAN), "--rank-in", str(folder)]
        self._command = [*command, "--parent-pid", str(os.getpid())]
        self._config = LaunchConfig(
            **{"min_nodes": 1, "max_nodes": 1, **team.rendezvous(folder)},
            nproc_per_node=len(team.here),
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
