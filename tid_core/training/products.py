"""What a run hands over: students, detections on the validation split, pictures of the areas."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tid_core.data.coco import CocoDetection
from tid_core.detectors.base import DenseDetector
from tid_core.error_breakdown import ErrorKind
from tid_core.evaluation import Evaluation, to_coco_results
from tid_core.events import Artifact, Checkpoint, Reporter
from tid_core.export import export_student
from tid_core.plan import RunPlan
from tid_core.training.files import replace_file, sha256_of
from tid_core.training.inference import Detections


def evaluation_values(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """Metric names to values; what is undefined is left out."""
    named = {f"{prefix}/{name}": value for name, value in evaluation.stats.items()}
    named |= {f"{prefix}/class/{name}/AP": value for name, value in evaluation.per_class.items()}
    named |= {f"{prefix}/class/{name}/VOC07_AP": value for name, value in evaluation.voc07_per_class.items()}
    return {name: value for name, value in named.items() if value is not None}


def error_values(errors: Mapping[str, ErrorKind], prefix: str) -> dict[str, float]:
    """Metric names to values: PREFIX/error/KIND/count and, where it is defined, PREFIX/error/KIND/dAP50."""
    values = {f"{prefix}/error/{kind}/count": float(found.count) for kind, found in errors.items()}
    gains = {f"{prefix}/error/{kind}/dAP50": found.dap50 for kind, found in errors.items()}
    return values | {name: gain for name, gain in gains.items() if gain is not None}


def write_checkpoint(
    detector: DenseDetector,
    plan: RunPlan,
    report: Reporter,
    *,
    name: str,
    step: int,
    epoch: int,
    classes: list[str],
    values: Mapping[str, float],
    teacher_ap: float | None,
) -> None:
    """Export `detector` as `name` and say so."""
    card: dict[str, Any] = {
        "name": plan.spec.name,
        "checkpoint": name,
        "step": step,
        "epoch": epoch,
        "classes": classes,
        "evaluation": dict(values),
        "teacher_ap": teacher_ap,
        "method": plan.spec.method_name,
        "spec": plan.spec.model_dump(mode="json"),
        "provenance": plan.provenance,
    }
    files = export_student(detector, plan.out_dir / "checkpoints", name, card)
    sha256 = {format_: sha256_of(path) for format_, path in files.items()}
    ap = values.get("val/AP")
    report(Checkpoint(name=name, step=step, epoch=epoch, ap=ap, files=files, sha256=sha256))


def write_detections(detections: Detections, val: CocoDetection, plan: RunPlan, report: Reporter, *, step: int) -> None:
    """The best student's detections: COCO results, and the images they belong to."""
    assert val.truth is not None  # noqa: S101 - a split opened without `train` has it
    images = [val.record(index) for index in range(len(val))]
    content = {
        "step": step,
        "images": [{"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in images],
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(val.truth.category_ids, val.truth.classes, strict=True)
        ],
        "results": to_coco_results(detections, val.truth),
    }
    path: Path = plan.out_dir / "detections.json"
    replace_file(path, json.dumps(content).encode())
    report(Artifact(kind="detections", name=path.name, path=path))
