"""From a name of the catalogue to a detector with its weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.detection._utils import overwrite_eps

from tid_core.catalogue import COCO_CATEGORIES, DETECTORS, DetectorInfo, Family, close_names
from tid_core.detectors.assigned import OneAnchorDetector
from tid_core.detectors.atss import build_atss
from tid_core.detectors.backbones import Norm, build_backbone, freeze_stages
from tid_core.detectors.base import DenseDetector, teacher_class_index
from tid_core.detectors.fcos import FcosDetector, build_fcos
from tid_core.detectors.gfl import build_gfl
from tid_core.detectors.retinanet import RetinaNetDetector, build_retinanet
from tid_core.detectors.weights import (
    State,
    file_classes,
    is_trunk,
    load_state,
    match_classes,
    modern_keys,
    norm_of,
    read_state,
    torchvision_state,
    trunk_keys,
)
from tid_core.events import TrainingFailure
from tid_core.plan import TeacherPlan
from tid_core.spec import DataSpec, EvaluationSpec

FAMILIES: dict[Family, tuple[type[DenseDetector], Callable[..., nn.Module]]] = {
    "retinanet": (RetinaNetDetector, build_retinanet),
    "fcos": (FcosDetector, build_fcos),
    "gfl": (OneAnchorDetector, build_gfl),
    "atss": (OneAnchorDetector, build_atss),
}
DEFAULT_TRAINABLE = 3
"""torchvision's default with its weights, for all its detectors."""


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
    """A detector of the catalogue around a plain torchvision model.

    Args:
        weights: a torchvision name, `imagenet` for the backbone alone, the path of a checkpoint (of the detector, or
            of a torchvision classifier for its backbone), or None.
        classes: names of the `num_classes` outputs. Given these, class outputs of other classes are matched by name,
            and all else is kept.
        weights_classes: names of the outputs in a checkpoint file that does not carry them itself.
        norm: of the backbone; `auto` = as torchvision does it, or as the checkpoint was trained.
        trainable_layers: stages of the backbone left trainable; None = torchvision's default with its weights, else
            all.

    Raises:
        ValueError: an unknown name, or options that contradict each other.
        TrainingFailure: `checkpoint_invalid` or `weights_unavailable`.
    """
    info = detector_info(name)
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"{len(classes)} class names for {num_classes} outputs")
    if norm == "group" and isinstance(weights, str):
        raise ValueError(f"norm: group does not fit the weights {weights!r}, which have batch normalisation")
    state = _state(info, weights)
    if norm == "auto":
        norm = _auto_norm(info, weights, state)
    detector = _random(info, norm, num_classes, data or DataSpec(), evaluation or EvaluationSpec())
    _load(detector, state, weights, classes, weights_classes)
    freeze_stages(detector.model.backbone, info.trunk, _trainable_layers(info, weights, state, trainable_layers))
    return detector


def build_teacher(
    plan: TeacherPlan, classes: Sequence[str], *, data: DataSpec | None = None, evaluation: EvaluationSpec | None = None
) -> tuple[DenseDetector, Tensor]:
    """A frozen teacher in eval mode, and the index (K,) of `classes` among its outputs.

    Raises:
        ValueError: the plan names no weights of the whole detector.
        TrainingFailure: `classes_missing`, `checkpoint_invalid` or `weights_unavailable`.
    """
    if plan.file is None and plan.weights not in detector_info(plan.detector).weights:
        raise ValueError(f"{plan.detector} has no weights {plan.weights!r} to teach with; name a file or a job")
    if plan.file is not None:
        weights: str | Path | None = plan.file
        known = plan.classes or file_classes(plan.file) or list(classes)
    else:
        weights, known = plan.weights, list(COCO_CATEGORIES)
    index_K = teacher_class_index(known, classes)
    if isinstance(weights, Path) and is_trunk(read_state(weights)):
        raise TrainingFailure("checkpoint_invalid", f"{weights}: holds a backbone alone; a teacher is a whole detector")
    teacher = build_detector(plan.detector, num_classes=len(known), weights=weights, data=data, evaluation=evaluation)
    return teacher.eval().requires_grad_(False), index_K


def _random(
    info: DetectorInfo, norm: Norm, num_classes: int, data: DataSpec, evaluation: EvaluationSpec
) -> DenseDetector:
    backbone = build_backbone(info, norm)
    options = model_options(data, evaluation)
    detector, build = FAMILIES[info.family]
    return detector(build(backbone, info, num_classes=num_classes, **options), info)


def model_options(data: DataSpec, evaluation: EvaluationSpec) -> dict[str, Any]:
    """The settings that torchvision's detectors take themselves, under their names there."""
    return {
        "min_size": tuple(data.min_size),
        "max_size": data.max_size,
        "score_thresh": evaluation.score_threshold,
        "nms_thresh": evaluation.nms_threshold,
        "detections_per_img": evaluation.max_detections,
    }


def _state(info: DetectorInfo, weights: str | Path | None) -> State | None:
    if weights is None:
        return None
    if isinstance(weights, Path):
        state = read_state(weights)
        return trunk_keys(state) if is_trunk(state) else modern_keys(info, state)
    return torchvision_state(info, weights)


def _auto_norm(info: DetectorInfo, weights: str | Path | None, state: State | None) -> Norm:
    """torchvision freezes the statistics of pretrained backbones, except in RetinaNet v2."""
    if isinstance(weights, Path) and state is not None and not is_trunk(state):
        return norm_of(state)
    return "frozen" if weights is not None and info.version == "v1" else "batch"


def _load(
    detector: DenseDetector,
    state: State | None,
    weights: str | Path | None,
    classes: Sequence[str] | None,
    weights_classes: Sequence[str] | None,
) -> None:
    if state is None:
        return
    model, info = detector.model, detector.info
    if is_trunk(state):
        _load_trunk(model.backbone.body, state, str(weights))
        return
    source_classes = weights_classes or file_classes(weights) if isinstance(weights, Path) else COCO_CATEGORIES
    if classes is not None and source_classes is not None and list(classes) != list(source_classes):
        state = match_classes(
            state,
            model,
            source_classes=source_classes,
            classes=classes,
            anchors=info.anchors_per_location,
            source=str(weights),
        )
    load_state(model, state, source=str(weights))
    if (info.name, weights) == ("retinanet_resnet50_fpn", "COCO_V1"):
        overwrite_eps(model, 0.0)  # as torchvision does: these weights were trained so


def _load_trunk(body: nn.Module, state: State, source: str) -> None:
    """ImageNet weights without the layers that a detector has no use for."""
    modules = {name for name, _ in body.named_children()}
    load_state(body, {k: v for k, v in state.items() if k.split(".")[0] in modules}, source=source)


def _trainable_layers(
    info: DetectorInfo, weights: str | Path | None, state: State | None, trainable_layers: int | None
) -> int:
    """All without weights, as in torchvision: a stage frozen at random would be a loss."""
    if trainable_layers is not None and weights is not None:
        return trainable_layers
    pretrained_trunk = isinstance(weights, str) or (state is not None and is_trunk(state))
    return DEFAULT_TRAINABLE if pretrained_trunk else len(info.trunk.stages)
