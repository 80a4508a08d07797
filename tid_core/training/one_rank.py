"""One of the processes of a run that the launcher started."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from tid_core.events import Event, Finished, Reporter
from tid_core.plan import RunPlan
from tid_core.ranks import joined
from tid_core.training.guards import as_failure
from tid_core.training.loop import train
from tid_core.training.meeting import STOP, STORE, leave_word


def train_as_rank(plan: RunPlan, folder: Path, report: Reporter, stop_asked: Callable[[], bool]) -> NoReturn:
    """Take part in the run, leave word in `folder` of how it ended, and end the process.

    Its exit code is 0 for a stop, too: torchrun would take another for a failure, and end ranks that still write.
    """
    number = int(os.environ["RANK"])

    def should_stop() -> bool:
        return stop_asked() or (os.environ["LOCAL_RANK"] == "0" and (folder / STOP).exists())

    try:
        with joined(_device(plan), folder / STORE if plan.node is None else None):
            finished = train(plan, _all_but_the_last_word(report, number), should_stop)
            if finished.outcome == "failed":
                _leave(folder, number, finished)
    except Exception as error:  # of joining: train itself raises none
        traceback.print_exc()
        failure = as_failure(error, plan.spec)
        _leave(folder, number, Finished(outcome="failed", reason=failure.reason, detail=failure.detail))
    _leave(folder, number, finished)


def _device(plan: RunPlan) -> torch.device:
    if plan.spec.training.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _all_but_the_last_word(report: Reporter, number: int) -> Reporter:
    """The first rank speaks for all, but for how the run ended: the launcher tells, who hears of every rank."""

    def tell(event: Event) -> None:
        if number == 0 and event.type != "finished":
            report(event)

    return tell


def _leave(folder: Path, number: int, finished: Finished) -> NoReturn:
    """End at once. After a failure an orderly end would wait for ranks that wait for this one, and it takes seconds in
    any case."""
    leave_word(folder, number, finished)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if finished.outcome == "failed" else 0)
