"""From a name of the catalogue to a detector."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tid_core.catalogue import DETECTORS, DetectorInfo, close_names
from tid_core.detectors.backbones import Norm, build_backbone, freeze_stages
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.fcos import FcosDetector, build_fcos
from tid_core.detectors.retinanet import RetinaNetDetector, build_retinanet
from tid_core.spec import DataSpec, EvaluationSpec


def detector_info(name: str) -> DetectorInfo:
    """Raises ValueError for a name that the catalogue lacks, with those that are close."""
    if name not in DETECTORS:
        close = close_names(name)
        raise ValueError(f"unknown detector {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    return DETECTORS[name]


def build_detector(
    name: str,
    *,
    num_classes: int,
    weights: str | Path | None = None,
    classes: Sequence[str] | None = None,
    weights_classes: Sequence[str] | None = None,
    norm: Norm | Literal["auto"] = "auto",
    trainable_layers: int | None = None,
    data: DataSpec | None = None,
    evaluation: EvaluationSpec | None = None,
) -> DenseDetector:
    info = detector_info(name)
    backbone = build_backbone(info, "batch" if norm == "auto" else norm)
    options = _options(data or DataSpec(), evaluation or EvaluationSpec())
    if info.family == "retinanet":
        return RetinaNetDetector(build_retinanet(backbone, info, num_classes=num_classes, **options), info)
    return FcosDetector(build_fcos(backbone, info, num_classes=num_classes, **options), info)


def _options(data: DataSpec, evaluation: EvaluationSpec) -> dict[str, Any]:
    return {
        "min_size": tuple(data.min_size),
        "max_size": data.max_size,
        "score_thresh": evaluation.score_threshold,
        "nms_thresh": evaluation.nms_threshold,
        "detections_per_img": evaluation.max_detections,
    }
