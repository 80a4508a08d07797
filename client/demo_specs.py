"""The jobs of `tid demo`: every number of it in one place.

Small scenes and small detectors, so that a teacher, a student and its baseline train on two cores in minutes.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class DemoSize:
    """What makes the demo long or short.

    Attributes:
        images: training images; validation gets 3 for every 10.
        teacher_epochs, student_epochs: passes over them.
        shares: expected parts of the whole time: the teacher, then each student and each baseline.
    """

    images: int
    teacher_epochs: int
    student_epochs: int
    batch_size: int
    warmup_steps: int
    log_every_steps: int
    shares: tuple[float, float, float] = (0.60, 0.22, 0.18)

    def split(self, seeds: int) -> tuple[float, float, float]:
        """The shares when the pair is trained once for each seed."""
        teacher, student, baseline = self.shares
        whole = teacher + seeds * (student + baseline)
        return teacher / whole, seeds * student / whole, seeds * baseline / whole


FULL = DemoSize(images=1000, teacher_epochs=12, student_epochs=8, batch_size=16, warmup_steps=50, log_every_steps=10)
QUICK = DemoSize(images=48, teacher_epochs=2, student_epochs=2, batch_size=8, warmup_steps=4, log_every_steps=2)

TEACHER = "fcos_conv10_small"
STUDENT = "fcos_conv5_tiny"
SIDE = 96
DATA = {"min_size": [SIDE], "max_size": SIDE, "flip": 0.0}


def chosen(*, quick: bool, images: int | None) -> DemoSize:
    size = QUICK if quick else FULL
    return size if images is None else replace(size, images=images)


def teacher_spec(dataset: str, size: DemoSize) -> dict[str, Any]:
    """A detector trained alone: `teacher: null`."""
    return {
        "name": "demo-teacher",
        "teacher": None,
        "student": {"detector": TEACHER},
        "dataset": dataset,
        "data": DATA,
        "training": _recipe(size, size.teacher_epochs, seed=0),
        "evaluation": {"maps": 0, "every_epochs": 2},
    }


def student_spec(dataset: str, teacher_job: str, size: DemoSize, seed: int) -> dict[str, Any]:
    """A small student taught by that teacher, and its twin without distillation."""
    return {
        "name": f"demo-student-{seed}",
        "teacher": {"weights": {"job": teacher_job, "checkpoint": "best"}},
        "student": {"detector": STUDENT},
        "dataset": dataset,
        "method": "tid",
        "data": DATA,
        "training": _recipe(size, size.student_epochs, seed=seed),
        "evaluation": {"maps": 4, "every_epochs": 2},
        "baseline": True,
    }


def _recipe(size: DemoSize, epochs: int, *, seed: int) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "batch_size": size.batch_size,
        "optimizer": "adamw",
        "lr": 0.003,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_steps": size.warmup_steps,
        "clip_grad_norm": 10.0,
        "log_every_steps": size.log_every_steps,
        "seed": seed,
    }
