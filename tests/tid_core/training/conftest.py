"""A tiny dataset, a tiny teacher, and runs of a second or two."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tid_core.data.index import build_index, index_splits
from tid_core.data.synthetic import write_demo_data
from tid_core.detectors.build import build_detector
from tid_core.events import EVENT, Event, Finished
from tid_core.plan import RunPlan, SplitPaths, TeacherPlan
from tid_core.spec import JobSpec
from tid_core.training.loop import train

CLASSES = [str(digit) for digit in range(10)]


torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 7 validation scenes."""
    root = tmp_path_factory.mktemp("digits")
    write_demo_data(root, images=24, seed=1)
    return root


@pytest.fixture(scope="session")
def splits(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SplitPaths]:
    """The dataset's index, as the service hands it to a training."""
    index = tmp_path_factory.mktemp("index")
    build_index(dataset, index, name="digits")
    return index_splits(dataset, index)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, but another network than any student, with features of an ordinary size."""
    torch.manual_seed(1234)
    teacher = build_detector("fcos_conv5_tiny", num_classes=len(CLASSES)).train()
    with torch.no_grad():
        for _ in range(30):  # until BatchNorm's statistics have settled
            teacher.model.backbone(torch.randn(4, 3, 64, 64))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(teacher.model.state_dict(), path, metadata={"format": "pt", "classes": "\n".join(CLASSES)})
    return path


SPEC: dict[str, Any] = {
    "name": "tiny",
    "student": {"detector": "fcos_conv5_tiny"},
    "dataset": "digits",
    "data": {"min_size": [64], "max_size": 96},
    "training": {
        "epochs": 2,
        "batch_size": 4,
        "lr": 0.01,
        "warmup_steps": 3,
        "log_every_steps": 2,
        "threads": 1,
        "device": "cpu",
    },
    "evaluation": {"maps": 0},
}


@pytest.fixture
def make_plan(splits: dict[str, SplitPaths], teacher_file: Path, tmp_path: Path) -> Callable[..., RunPlan]:
    """A plan of 6 steps an epoch; keyword arguments change the spec, section by section. `plain` = no teacher."""

    def make(*, out: str = "out", plain: bool = False, **changes: Any) -> RunPlan:
        content: dict[str, Any] = {**SPEC}
        if not plain:
            content["teacher"] = {"detector": "fcos_conv5_tiny", "weights": {"file": str(teacher_file)}}
        for name, value in changes.items():
            content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
        spec = JobSpec.model_validate(content)
        teacher = TeacherPlan(detector="fcos_conv5_tiny", file=teacher_file) if spec.teacher else None
        folder = tmp_path / out
        return RunPlan(
            spec=spec,
            train=splits["train"],
            val=splits["val"],
            teacher=teacher,
            out_dir=folder,
            resume_from=folder / "resume",
        )

    return make


@dataclass
class Outcome:
    finished: Finished
    events: list[Event]
    series: dict[str, dict[int, float]] = field(default_factory=dict)
    """Metric name to step to value."""

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.type == kind]

    @property
    def warnings(self) -> dict[str, str]:
        return {event.code: event.detail for event in self.of("warning")}


def read_series(events: list[Event]) -> dict[str, dict[int, float]]:
    series: dict[str, dict[int, float]] = {}
    for event in events:
        if event.type == "metrics":
            for name, value in event.values.items():
                series.setdefault(name, {})[event.step] = value
    return series


@pytest.fixture
def run() -> Callable[..., Outcome]:
    """Train in this process; `stop_after` asks to stop once so many questions were answered with no."""

    def start(plan: RunPlan, *, stop_after: int | None = None, trainer: Callable[..., Finished] = train) -> Outcome:
        events: list[Event] = []
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return stop_after is not None and asked > stop_after

        finished = trainer(plan, events.append, should_stop)
        return Outcome(finished, events, read_series(events))

    return start


class Process:
    """`python -m tid_core.run PLAN --events-fd N`, heard event by event."""

    def __init__(self, plan: RunPlan) -> None:
        plan.out_dir.mkdir(parents=True, exist_ok=True)
        path = plan.out_dir / "plan.json"
        path.write_text(plan.model_dump_json())
        read, write = os.pipe()
        command = [sys.executable, "-m", "tid_core.run", str(path), "--events-fd", str(write)]
        self.log = plan.out_dir / "log.txt"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--parent-pid", str(os.getpid())],
                pass_fds=(write,),
                stdout=log,
                stderr=log,
            )
        os.close(write)
        self._pipe = os.fdopen(read, "rb")
        self.events: list[Event] = []

    def listen(self) -> Iterator[Event]:
        for line in self._pipe:
            if not line.endswith(b"\n"):
                return  # cut off by a kill
            event = EVENT.validate_json(line)
            self.events.append(event)
            yield event

    def end_when(self, condition: Callable[[Event], bool], number: signal.Signals) -> int:
        """Send `number` on the first event that meets `condition`; hear the rest and give the exit code."""
        for event in self.listen():
            if condition(event):
                self.process.send_signal(number)
                break
        else:
            raise AssertionError(f"it never came to that: {self.log.read_text()[-2000:]}")
        return self.wait()

    def wait(self) -> int:
        for _ in self.listen():
            pass
        self._pipe.close()
        return self.process.wait(timeout=60)


@pytest.fixture
def start_process() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(plan: RunPlan) -> Process:
        started.append(Process(plan))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
