"""Pictures of what the student still has to learn of its teacher, for a few fixed validation images."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tid_core.detectors.base import DenseDetector
from tid_core.distillers.areas import find_areas
from tid_core.events import Artifact, Reporter
from tid_core.methods import TidSpec
from tid_core.plan import RunPlan
from tid_core.spec import JobSpec
from tid_core.training.precision import Precision
from tid_core.training.setup import Parts
from tid_core.training.step import Teacher


@dataclass(frozen=True)
class AreaMaps:
    """Draws the areas of a run with a teacher; without one, or where the two have not the same levels, nothing.

    Whatever the method, the areas are TID's: by the job's settings of it, else by its defaults.
    """

    plan: RunPlan
    parts: Parts
    precision: Precision
    report: Reporter

    @torch.no_grad()
    def draw(self, student: DenseDetector, *, epoch: int | None = None) -> None:
        """Write `evaluation.maps` pictures to OUT/maps: 00012-epoch-003.png, or without `epoch` 00012-best.png.

        The student is left as it was.
        """
        teacher, number = self.parts.teacher, self.plan.spec.evaluation.maps
        if teacher is None or number == 0 or teacher.detector.info.strides != student.info.strides:
            return
        was_training = student.training
        student.eval()
        try:
            for index in chosen_images(self.parts, number):
                path = self._draw(index, student, teacher, epoch)
                self.report(Artifact(kind="map", name=path.name, path=path))
        finally:
            student.train(was_training)

    def _draw(self, index: int, student: DenseDetector, teacher: Teacher, epoch: int | None) -> Path:
        from tid_core.maps import draw_maps  # brings matplotlib

        spec, device = self.plan.spec, self.precision.device
        image, target = self.parts.val[0, index]
        boxes = {key: target[key].to(device) for key in ("boxes", "labels")}
        images, (resized,) = student.transform([image.to(device)], [boxes])
        with self.precision.autocast():
            outputs = student.dense_forward(images)
        tid = spec.tid if "tid" in spec.methods else TidSpec()
        areas = find_areas(
            outputs,
            teacher(images),
            [resized],
            tid,
            student_matcher=student.matcher_thresholds,
            teacher_matcher=teacher.detector.matcher_thresholds,
        )
        path = self.plan.out_dir / "maps" / f"{index:05d}-{moment_name(epoch, spec)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        on_cpu = {key: value.cpu() for key, value in resized.items()}
        title, note = _words(self.parts.val.record(index).file_name, epoch, spec)
        size, classes = images.image_sizes[0], self.parts.classes
        draw_maps(image, areas, on_cpu, path, size=size, tid=tid, classes=classes, title=title, note=note)
        return path


def chosen_images(parts: Parts, number: int) -> list[int]:
    """Indices of `number` validation images with boxes, evenly spread; the same in every run on the dataset."""
    assert parts.val.truth is not None  # noqa: S101 - a split opened without `train` has it
    filled = sorted(set(parts.val.truth.image_B[parts.val.truth.crowd_B == 0].tolist()))
    if len(filled) <= number:
        return filled
    return [filled[i * len(filled) // number] for i in range(number)]


def moment_name(epoch: int | None, spec: JobSpec) -> str:
    """As part of a file name: epochs in as many digits as let names sort."""
    digits = max(3, len(str(spec.training.epochs)))
    return "best" if epoch is None else f"epoch-{epoch:0{digits}d}"


def _words(file_name: str, epoch: int | None, spec: JobSpec) -> tuple[str, str]:
    """Title and note of a picture."""
    when = "the best student" if epoch is None else f"after epoch {epoch} of {spec.training.epochs}"
    if "tid" in spec.methods:
        return f"{file_name}: {when}", ""
    taught = f"is taught by {spec.method_name}, not by its areas" if spec.methods else "is not taught by its teacher"
    return f"{file_name}: {when}", f"areas by the default settings of TID; this student {taught}"
