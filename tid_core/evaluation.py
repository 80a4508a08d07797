"""COCO evaluation, and VOC's where it is asked for, once over all detections of a split.

hotcoco and pycocotools give the same arrays; the twelve numbers are taken from those here, so that they mean the same
for both and for any limit of detections.

Shape suffixes: D detections of the split, B ground-truth boxes. Of COCOeval: T IoU thresholds, R recalls, K classes,
A area ranges (all, small, medium, large), M limits of detections.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tid_core.data.annotations import CocoFile
from tid_core.spec import EvaluationSpec
from tid_core.voc_metric import voc_precision

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
IOU_50, IOU_75 = 0, 5
"""Indices of the IoU thresholds .50 and .75 among .50, .55, ... .95."""


@dataclass(frozen=True)
class GroundTruth:
    """What a split's detections are compared with. Images are numbered in the order of their ids, classes by label."""

    classes: list[str]
    category_ids: list[int]
    image_ids: list[int | str]
    sizes: list[tuple[int, int]]
    """Per image, (height, width)."""
    image_B: Ints
    label_B: Ints
    xywh_B4: Floats
    area_B: Floats
    crowd_B: Ints


@dataclass(frozen=True)
class Evaluation:
    """AP and AR in 0..1; None where undefined, as nothing in the ground truth could have been found."""

    stats: dict[str, float | None]
    """AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 (of `max_detections`, whatever it is), ARs, ARm, ARl; with the
    metric `voc`, also VOC07_mAP (eleven points) and VOC_mAP (area)."""
    per_class: dict[str, float | None]
    """Class name to AP, in label order."""
    voc07_per_class: dict[str, float | None] = field(default_factory=dict)
    """The same for VOC's eleven points; empty without the metric `voc`."""


def ground_truth(coco: CocoFile) -> GroundTruth:
    """The usable boxes of `coco`, crowds included, unclipped, with the file's own areas."""
    boxes = coco.boxes
    return GroundTruth(
        classes=coco.classes,
        category_ids=coco.category_ids,
        image_ids=[image.id for image in coco.images],
        sizes=[(image.height, image.width) for image in coco.images],
        image_B=np.array([box.image for box in boxes], dtype=np.int64),
        label_B=np.array([box.label for box in boxes], dtype=np.int64),
        xywh_B4=np.array([box.xywh for box in boxes], dtype=np.float64).reshape(-1, 4),
        area_B=np.array([box.area for box in boxes], dtype=np.float64),
        crowd_B=np.array([box.crowd for box in boxes], dtype=np.int64),
    )


def evaluate(
    detections: Sequence[Mapping[str, Tensor]], truth: GroundTruth, settings: EvaluationSpec | None = None
) -> Evaluation:
    """Average precision and recall of `detections`.

    Args:
        detections: one mapping per image of `truth`, in its order: `boxes` (n, 4) xyxy in pixels of the image file,
            `scores` (n,), `labels` (n,) in 0..K-1. Each may be empty.

    Raises:
        ValueError: the number of images differs, or a label is not a class.
    """
    settings = settings or EvaluationSpec()
    if len(detections) != len(truth.sizes):
        raise ValueError(f"{len(detections)} images with detections, {len(truth.sizes)} with ground truth")
    rows_D7 = detection_rows(detections, settings.max_detections)
    if len(rows_D7) and not 0 <= rows_D7[:, 6].min() <= rows_D7[:, 6].max() < len(truth.classes):
        raise ValueError(f"labels must lie in 0..{len(truth.classes) - 1}")
    limits = [min(limit, settings.max_detections) for limit in (1, 10, settings.max_detections)]
    run = _with_hotcoco if settings.backend == "hotcoco" else _with_pycocotools
    precision_TRKAM, recall_TKAM = run(rows_D7, truth, limits)
    summary = _summary(precision_TRKAM, recall_TKAM, truth.classes)
    return _with_voc(summary, rows_D7, truth) if "voc" in settings.metrics else summary


def to_coco_results(detections: Sequence[Mapping[str, Tensor]], truth: GroundTruth) -> list[dict[str, Any]]:
    """The detections as a COCO results file holds them, under the ids of the annotation file."""
    rows = detection_rows(detections, None)
    return [
        {
            "image_id": truth.image_ids[int(image)],
            "category_id": truth.category_ids[int(label)],
            "bbox": [round(value, 2) for value in bbox],
            "score": round(score, 5),
        }
        for image, *bbox, score, label in rows.tolist()
    ]


def detection_rows(detections: Sequence[Mapping[str, Tensor]], limit: int | None) -> Floats:
    """(D, 7): image, x, y, width, height, score, label; per image the `limit` best scores."""
    counts = [len(found["scores"]) for found in detections]
    if sum(counts) == 0:
        return np.zeros((0, 7))
    rows_D7 = np.empty((sum(counts), 7))
    rows_D7[:, 0] = np.repeat(np.arange(len(counts)), counts)
    rows_D7[:, 1:5] = _joined(detections, "boxes")
    rows_D7[:, 3:5] -= rows_D7[:, 1:3]
    rows_D7[:, 5] = _joined(detections, "scores")
    rows_D7[:, 6] = _joined(detections, "labels")
    if limit is None or max(counts) <= limit:
        return rows_D7
    rows_D7 = rows_D7[np.lexsort((-rows_D7[:, 5], rows_D7[:, 0]))]
    rank_D = np.arange(len(rows_D7)) - np.repeat(np.cumsum([0, *counts[:-1]]), counts)
    kept_D7: Floats = rows_D7[rank_D < limit]
    return kept_D7


def _joined(detections: Sequence[Mapping[str, Tensor]], key: str) -> NDArray[Any]:
    return torch.cat([found[key].detach() for found in detections]).cpu().numpy()


def _with_hotcoco(rows_D7: Floats, truth: GroundTruth, limits: list[int]) -> tuple[Floats, Floats]:
    from hotcoco import COCO, COCOeval

    gt = COCO.from_arrays(
        _image_dicts(truth),
        _category_dicts(truth),
        truth.image_B,
        truth.label_B,
        truth.xywh_B4,
        area=truth.area_B,
        iscrowd=truth.crowd_B,
    )
    judge = COCOeval(gt, gt.load_res(rows_D7), "bbox")
    judge.params.max_dets = limits
    judge.evaluate()
    judge.accumulate()
    result: Any = judge.eval
    return np.asarray(result["precision"]), np.asarray(result["recall"])


def _with_pycocotools(rows_D7: Floats, truth: GroundTruth, limits: list[int]) -> tuple[Floats, Floats]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def dataset(annotations: list[dict[str, Any]]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": _image_dicts(truth),
            "categories": _category_dicts(truth),
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    # It reports its progress on stdout, which belongs to the caller.
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(dataset(_truth_dicts(truth)), dataset(_detection_dicts(rows_D7)), "bbox")
        judge.params.maxDets = limits
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"]


def _image_dicts(truth: GroundTruth) -> list[dict[str, Any]]:
    return [{"id": i, "height": h, "width": w, "file_name": ""} for i, (h, w) in enumerate(truth.sizes)]


def _category_dicts(truth: GroundTruth) -> list[dict[str, Any]]:
    return [{"id": label, "name": name} for label, name in enumerate(truth.classes)]


def _truth_dicts(truth: GroundTruth) -> list[dict[str, Any]]:
    columns = (truth.image_B, truth.label_B, truth.xywh_B4, truth.area_B, truth.crowd_B)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {"id": i, "image_id": image, "category_id": label, "bbox": bbox, "area": area, "iscrowd": crowd}
        for i, (image, label, bbox, area, crowd) in enumerate(rows, start=1)
    ]


def _detection_dicts(rows_D7: Floats) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "image_id": int(image),
            "category_id": int(label),
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "iscrowd": 0,
            "score": score,
        }
        for i, (image, *bbox, score, label) in enumerate(rows_D7.tolist(), start=1)
    ]


def _summary(precision_TRKAM: Floats, recall_TKAM: Floats, classes: list[str]) -> Evaluation:
    stats = {"AP": _mean(precision_TRKAM[:, :, :, 0, -1])}
    stats["AP50"] = _mean(precision_TRKAM[IOU_50, :, :, 0, -1])
    stats["AP75"] = _mean(precision_TRKAM[IOU_75, :, :, 0, -1])
    stats |= {f"AP{name}": _mean(precision_TRKAM[:, :, :, area, -1]) for name, area in AREAS.items() if name}
    stats |= {f"AR{limit}": _mean(recall_TKAM[:, :, 0, m]) for m, limit in enumerate((1, 10, 100))}
    stats |= {f"AR{name}": _mean(recall_TKAM[:, :, area, -1]) for name, area in AREAS.items() if name}
    per_class = {name: _mean(precision_TRKAM[:, :, k, 0, -1]) for k, name in enumerate(classes)}
    return Evaluation(stats, per_class)


def _with_voc(summary: Evaluation, rows_D7: Floats, truth: GroundTruth) -> Evaluation:
    voc = voc_precision(
        rows_D7,
        image_B=truth.image_B,
        label_B=truth.label_B,
        xywh_B4=truth.xywh_B4,
        difficult_B=truth.crowd_B,
        num_classes=len(truth.classes),
    )
    means = {"VOC07_mAP": _mean_defined(voc.eleven_points), "VOC_mAP": _mean_defined(voc.area)}
    per_class = dict(zip(truth.classes, voc.eleven_points, strict=True))
    return Evaluation(summary.stats | means, summary.per_class, per_class)


def _mean_defined(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _mean(values: Floats) -> float | None:
    """Mean of the defined values; COCOeval marks the others with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
