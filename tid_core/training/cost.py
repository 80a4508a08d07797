"""What a step costs: how much of it is the teacher, and how much memory the run has needed."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import torch

_STATUS = Path("/proc/self/status")


class TeacherClock:
    """Seconds that a step spends in the teacher.

    On the CPU every step is timed. A GPU works behind the program: there, events are put into its queue, in the steps
    that `watch` names, and read at the next `per_step`. Nothing waits for the GPU that does not wait for it anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._watching = True
        self._steps_ever = 0
        self._restart()

    def watch(self, *, logs: bool) -> None:
        """Say before a step whether its scalars will be read right after it."""
        self._watching = logs or self._device.type != "cuda"

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Around every forward of the teacher."""
        if self._device.type != "cuda":
            start = perf_counter()
            yield
            self._seconds += perf_counter() - start
        elif self._watching:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._events.append((first, last))
        else:
            yield

    def step_done(self) -> None:
        self._steps_ever += 1
        self._steps += self._watching
        if self._steps_ever == 1:  # it allocates and warms up: no measure of the rest
            self._restart()

    def per_step(self) -> float | None:
        """Mean over the watched steps since the last call; None where there was none."""
        steps, seconds = self._steps, self._seconds
        if self._events:
            self._events[-1][1].synchronize()
            seconds += sum(first.elapsed_time(last) for first, last in self._events) / 1000
        self._restart()
        return seconds / steps if steps else None

    def _restart(self) -> None:
        self._steps = 0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU what PyTorch has allocated at most, on the CPU the largest resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # getrusage's figure would begin with that of the process that started this one
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
