"""Processes as /proc shows them: who belongs to whom, and what the kernel says of them. Linux."""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    parent: int
    state: str
    command: str


def listing() -> list[Process]:
    """Everything that runs, zombies left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state != "Z":
                found.append(Process(int(entry.name), int(parent), state, command))
    return found


def tree(root: int) -> list[Process]:
    """A process and its descendants, parents first; empty where it is gone."""
    everything = listing()
    found = [process for process in everything if process.pid == root]
    for process in found:  # grows while it is gone through
        found += [one for one in everything if one.parent == process.pid]
    return found


def training(scratch: Path) -> int:
    """The training process that runs the plan in this folder.

    Raises:
        LookupError: there is none.
    """
    plan = str(scratch / "plan.json")
    for process in listing():
        if plan in process.command:
            return process.pid
    raise LookupError(f"no process runs {plan}")


def gone(pid: int) -> bool:
    return all(process.pid != pid for process in listing())


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """A signal to each that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def has_pending(pid: int, number: signal.Signals) -> bool:
    """Whether the signal waits for a process that is stopped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("ShdPnd:")[1].split()[0], 16) >> (number - 1) & 1)
