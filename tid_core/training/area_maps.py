"""Pictures of where the finished student still has something to learn, for a few fixed validation images."""

import torch

from tid_core.detectors.base import DenseDetector
from tid_core.distillers.tid import TidDistiller
from tid_core.events import Artifact, Reporter
from tid_core.plan import RunPlan
from tid_core.training.precision import Precision
from tid_core.training.setup import Parts


@torch.no_grad()
def draw_area_maps(student: DenseDetector, parts: Parts, plan: RunPlan, precision: Precision, report: Reporter) -> None:
    """Write `evaluation.maps` pictures to OUT/maps. Only TID has areas; other methods draw nothing."""
    distiller, teacher = parts.module.distiller, parts.teacher
    if not isinstance(distiller, TidDistiller) or teacher is None or plan.spec.evaluation.maps == 0:
        return
    from tid_core.maps import draw_maps  # brings matplotlib

    folder = plan.out_dir / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    student.eval()
    for index in chosen_images(parts, plan.spec.evaluation.maps):
        image, target = parts.val[0, index]
        boxes = {key: target[key].to(precision.device) for key in ("boxes", "labels")}
        images, (resized,) = student.transform([image.to(precision.device)], [boxes])
        with precision.autocast():
            outputs = student.dense_forward(images)
        areas = distiller.areas(outputs, teacher(images), [resized])
        record = parts.val.record(index)
        path = folder / f"{index:05d}.png"
        on_cpu = {key: value.cpu() for key, value in resized.items()}
        draw_maps(image, areas, on_cpu, path, size=images.image_sizes[0], classes=parts.classes, title=record.file_name)
        report(Artifact(kind="map", name=path.name, path=path))


def chosen_images(parts: Parts, number: int) -> list[int]:
    """Indices of `number` validation images with boxes, evenly spread; the same in every run on the dataset."""
    assert parts.val.truth is not None  # noqa: S101 - a split opened without `train` has it
    filled = sorted(set(parts.val.truth.image_B[parts.val.truth.crowd_B == 0].tolist()))
    if len(filled) <= number:
        return filled
    return [filled[i * len(filled) // number] for i in range(number)]
