"""The training as a process of its own.

    python -m tid_core.run PLAN.json --events-fd N --parent-pid P    as the worker starts it: events as JSON lines to N
    python -m tid_core.run SPEC.yaml --out DIR [--dataset DIR]       without the service: told on stdout
    python -m tid_core.run PLAN.json --rank-in DIR --parent-pid P    one rank of a run in several processes

Where `resources.gpus` asks for several and the host has them, either of the first two starts the ranks by torchrun and
goes on as their launcher (tid_core.training.launcher); so it does where the plan names a node among several machines.

Exit codes: 0 succeeded, 75 stopped with its state saved (SIGTERM), 1 failed. Stdout and stderr are the log.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tid_core.events import Event, Finished
from tid_core.lifetime import ParentGone, die_with_parent
from tid_core.plan import RunPlan

# torch is imported only once the process is sure to die with its parent.

EXIT_CODES = {"succeeded": 0, "stopped": 75, "failed": 1}


class PipeReporter:
    """Writes each event as a line to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def __call__(self, event: Event) -> None:
        line = memoryview(event.model_dump_json().encode() + b"\n")
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError as error:
            raise ParentGone from error


class StopFlag:
    """Set by SIGTERM (and SIGINT, where asked); the second SIGINT interrupts at once."""

    def __init__(self, *signals: signal.Signals) -> None:
        self._set = False
        for number in signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._set = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self) -> bool:
        return self._set


def run_child(plan_path: Path, descriptor: int, parent_pid: int) -> int:
    die_with_parent(parent_pid)
    report = PipeReporter(descriptor)
    should_stop = StopFlag(signal.SIGTERM)
    try:
        plan = RunPlan.model_validate_json(plan_path.read_bytes())
        from tid_core.training.launcher import run
    except Exception as error:
        traceback.print_exc()
        detail = f"{type(error).__name__}: {str(error)[:500]}"
        report(Finished(outcome="failed", reason="internal_error", detail=detail))
        return EXIT_CODES["failed"]
    return EXIT_CODES[run(plan, report, should_stop).outcome]


def run_rank(plan_path: Path, folder: Path, parent_pid: int) -> NoReturn:
    """One rank; how it ended is left in `folder`."""
    die_with_parent(parent_pid)
    should_stop = StopFlag(signal.SIGTERM)
    plan = RunPlan.model_validate_json(plan_path.read_bytes())
    from tid_core.training.meeting import EVENTS
    from tid_core.training.one_rank import train_as_rank

    train_as_rank(plan, folder, PipeReporter(os.open(folder / EVENTS, os.O_WRONLY)), should_stop)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tid_core.run", description="Train one job in this process.")
    parser.add_argument("file", type=Path, help="a plan (with --events-fd) or a spec (with --out)")
    parser.add_argument("--events-fd", type=int, help="file descriptor for events")
    parser.add_argument("--parent-pid", type=int, help="process to live and die with")
    parser.add_argument("--rank-in", type=Path, help="folder where the launcher meets its ranks")
    parser.add_argument("--out", type=Path, help="folder for checkpoints, maps and detections")
    parser.add_argument("--dataset", type=Path, help="folder of the dataset, instead of the spec's `dataset`")
    parser.add_argument("--dataset-options", default="{}", help='as JSON: {"format": "voc", "val_fraction": 0.2}')
    arguments = parser.parse_args(argv)
    modes = (arguments.events_fd, arguments.rank_in, arguments.out)
    if sum(mode is not None for mode in modes) != 1:
        parser.error("give either --events-fd and --parent-pid, or --out")
    if (arguments.out is not None) == (arguments.parent_pid is not None):
        parser.error("--events-fd and --parent-pid go together")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    if arguments.out is not None:
        from tid_core.data.options import read_options
        from tid_core.training.standalone import run_spec

        try:
            options = read_options(arguments.dataset_options)
        except ValueError as error:
            sys.stderr.write(f"--dataset-options: {error}\n")
            return EXIT_CODES["failed"]
        should_stop = StopFlag(signal.SIGTERM, signal.SIGINT)
        return EXIT_CODES[run_spec(arguments.file, arguments.out, arguments.dataset, should_stop, options)]
    try:
        if arguments.rank_in is not None:
            run_rank(arguments.file, arguments.rank_in, arguments.parent_pid)
        return run_child(arguments.file, arguments.events_fd, arguments.parent_pid)
    except ParentGone:
        sys.stderr.write("the process that started this one is gone; stopping\n")
        return EXIT_CODES["failed"]


if __name__ == "__main__":
    sys.exit(main())
