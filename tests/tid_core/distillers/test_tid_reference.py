"""TID against a second implementation, slow and plain: METHOD of the paper read off point by point, in Python loops."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.catalogue import DETECTORS
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.areas import find_areas
from tid_core.distillers.tid import TidDistiller
from tid_core.methods import TidSpec
from tid_core.spec import LossSpec

Box = list[float]


def _overlap(a: Box, b: Box, kind: str) -> tuple[float, float]:
    """(IoU, IoU less the penalty of `kind`)."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    iou = width * height / union
    hull = (max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    if kind == "giou":
        return iou, iou - (hull[0] * hull[1] - union) / (hull[0] * hull[1])
    if kind == "diou":
        apart = math.dist([(a[0] + a[2]) / 2, (a[1] + a[3]) / 2], [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2])
        return iou, iou - apart**2 / (hull[0] ** 2 + hull[1] ** 2)
    return iou, iou


def _atss(outputs: DenseOutputs, image: int, box: Box, topk: int) -> float:
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    ious: list[float] = []
    for valid, stride in zip(outputs.valid, outputs.strides, strict=True):
        rows, columns = valid.shape[1:]
        points = [(x * stride, y * stride) for y in range(rows) for x in range(columns) if valid[image, y, x]]
        points.sort(key=lambda p: math.dist(p, centre))
        half = 4 * stride
        ious += [_overlap([x - half, y - half, x + half, y + half], box, "iou")[0] for x, y in points[:topk]]
    mean = sum(ious) / len(ious)
    return mean + math.sqrt(sum((iou - mean) ** 2 for iou in ious) / (len(ious) - 1))


def _scores(
    outputs: DenseOutputs, targets: list[dict[str, Tensor]], tid: TidSpec, fixed: tuple[float, float]
) -> Tensor:
    rows = []
    for image, target in enumerate(targets):
        crowd = target.get("iscrowd", torch.zeros(len(target["labels"])))
        kept = [i for i in range(len(target["labels"])) if not crowd[i]]
        boxes, labels = [target["boxes"][i].tolist() for i in kept], [int(target["labels"][i]) for i in kept]
        limits = (
            [(_atss(outputs, image, box, tid.atss_topk), 0.0) for box in boxes] if tid.thresholds == "atss" else None
        )
        per_anchor = []
        for box, logits in zip(outputs.boxes_NL4[image].tolist(), outputs.logits_NLK[image].tolist(), strict=True):
            found = [_overlap(box, gt, tid.iou) for gt in boxes]
            best = max(range(len(boxes)), key=lambda g: found[g][1]) if boxes else None
            touches = best is not None and found[best][0] > 1e-6
            score_r, score_c = tid.score_neg, 0.0 if tid.cls_score == "prob" else tid.cls_wrong
            if best is not None:
                positive, negative = (limits[best][0], limits[best][0] / 2) if limits else fixed
                value = found[best][1]
                score_r = tid.score_pos if value >= positive else tid.score_mid if value > negative else tid.score_neg
            if touches and best is not None:
                probability = 1 / (1 + math.exp(-logits[labels[best]]))
                if tid.cls_score == "prob":
                    score_c = probability
                elif logits.index(max(logits)) == labels[best]:
                    unsure = tid.cls_score == "three_level" and probability < 0.5
                    score_c = tid.cls_unsure if unsure else tid.cls_right
            per_anchor.append({"both": score_c * score_r, "cls": score_c, "reg": score_r}[tid.tasks])
        step = outputs.num_anchors
        rows.append([max(per_anchor[i : i + step]) for i in range(0, len(per_anchor), step)])
    return torch.tensor(rows, dtype=torch.float64)


def _region(teacher: float, student: float, tid: TidSpec) -> int:
    source = {"teacher": teacher, "student": student, "either": max(teacher, student)}[tid.key_source]
    key = source > tid.tau_key
    weak = (teacher - student if tid.weak_signed else abs(teacher - student)) > tid.tau_weak
    if tid.partition == "score_bands":
        return 0 if teacher > tid.tau_key else 1 if teacher > tid.score_neg else 2
    if tid.areas != "both":
        return 0 if (key if tid.areas == "key" else weak) else 2
    first = {"intersection": key and weak, "weak_first": weak, "key_first": key}[tid.partition]
    return 0 if first else 1 if key or weak else 2


def _distance(student: Tensor, teacher: Tensor, valid: Tensor, kind: str) -> Tensor:
    """(N, H, W) of one level."""

    def inside(x: Tensor) -> Tensor:
        return x.permute(1, 0, 2, 3)[:, valid]  # (C, points)

    if kind == "standardised_mse":
        student, teacher = (
            (x - inside(x).mean(1)[:, None, None]) / (inside(x).var(1, correction=0) + 1e-6).sqrt()[:, None, None]
            for x in (student, teacher)
        )
    d = (student - teacher).abs()
    d = {"l1": d, "smooth_l1": torch.where(d < 1, d**2 / 2, d - 0.5)}.get(kind, d**2)
    return d.mean(1) / (inside(teacher).var(correction=0) if kind == "normalised_mse" else 1)


def _terms(scene: Any, regions: Tensor, tid: TidSpec, loss: LossSpec) -> list[float]:
    student, teacher = scene.student, scene.teacher
    terms, start = [0.0, 0.0, 0.0], 0
    for level, (rows, columns) in enumerate(student.grid):
        valid = student.valid[level]
        distance = _distance(student.features[level], teacher.features[level], valid, tid.distance)
        level_regions = regions[:, start : start + rows * columns].view(-1, rows, columns)
        start += rows * columns
        for r, weight in enumerate((loss.high, loss.medium, loss.low)):
            points = (level_regions == r) & valid
            total, count = float(distance[points].sum()), int(points.sum())
            channels, images = student.features[level].shape[1], len(valid)
            by = {
                "weighted_mean": sum(
                    w * int(((level_regions == q) & valid).sum())
                    for q, w in enumerate((loss.high, loss.medium, loss.low))
                ),
                "region_mean": count,
                "global_mean": int(valid.sum()),
                "batch_sum": images / channels,
            }[tid.norm]
            terms[r] += weight * total / max(by, 1e-9)
    return terms


CHOICES: dict[str, list[Any]] = {
    "t_pos": [0.5, 0.7],
    "thresholds": ["fixed", "matcher", "atss"],
    "atss_topk": [9, 3],
    "score_mid": [1.5, 0.7],
    "cls_score": ["two_level", "three_level", "prob"],
    "iou": ["iou", "giou", "diou"],
    "tasks": ["both", "cls", "reg"],
    "key_source": ["teacher", "student", "either"],
    "tau_key": [1.0, 0.3],
    "tau_weak": [0.0, 0.5],
    "weak_signed": [True, False],
    "areas": ["both", "key", "weak"],
    "partition": ["intersection", "weak_first", "key_first", "score_bands"],
    "norm": ["weighted_mean", "region_mean", "global_mean", "batch_sum"],
    "distance": ["normalised_mse", "mse", "l1", "smooth_l1", "standardised_mse"],
}
ONE_AT_A_TIME = [{name: value} for name, values in CHOICES.items() for value in values[1:]]


@pytest.mark.parametrize("settings", [{}, *ONE_AT_A_TIME], ids=str)
def test_one_setting(make_scene: Callable[..., Any], settings: dict[str, Any]) -> None:
    _compare(make_scene(seed=len(str(settings))), settings)


@pytest.mark.parametrize("seed", range(40))
def test_settings_at_random(make_scene: Callable[..., Any], seed: int) -> None:
    draw = random.Random(seed)
    settings = {name: draw.choice(values) for name, values in CHOICES.items()}
    anchors = draw.choice([(1, 1), (1, 3), (3, 1), (2, 3)])
    _compare(make_scene(seed=seed, anchors=anchors, classes=draw.choice([1, 4])), settings)


def _compare(scene: Any, settings: dict[str, Any]) -> None:
    tid, loss = TidSpec(**settings), LossSpec(high=3.0, medium=1.25, low=0.5)
    own = (0.45, 0.3)
    student_limits = own if tid.thresholds == "matcher" else (tid.t_pos, tid.t_neg)
    score_student = _scores(scene.student, scene.targets, tid, student_limits)
    score_teacher = _scores(scene.teacher, scene.targets, tid, (tid.t_pos, tid.t_neg))
    areas = find_areas(scene.student, scene.teacher, scene.targets, tid, student_matcher=own)
    torch.testing.assert_close(areas.score_student_NP, score_student.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(areas.score_teacher_NP, score_teacher.float(), rtol=1e-5, atol=1e-6)

    pairs = zip(score_teacher.tolist(), score_student.tolist(), strict=True)
    regions = torch.tensor([[_region(t, s, tid) for t, s in zip(*pair, strict=True)] for pair in pairs])
    for r in range(3):
        assert areas.regions_RNP[r].equal((regions == r) & areas.valid_NP)

    info = DETECTORS["fcos_conv5_tiny"]
    distiller = TidDistiller(tid, loss, student=info, teacher=info, student_matcher=own)
    distiller.adapters = torch.nn.ModuleList(torch.nn.Identity() for _ in scene.student.strides)
    result = distiller(scene.student, scene.teacher, scene.targets)
    assert [float(t) for t in result.terms.values()] == pytest.approx(_terms(scene, regions, tid, loss), rel=1e-4)
