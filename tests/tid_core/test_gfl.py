"""The losses and the decoding of GFL against values worked out by hand and against plain loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from tid_core.detectors.assigned import Positives
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.detectors.gfl import distribution_focal_loss, quality_focal_loss, side_distances
from tid_core.detectors.one_anchor import BINS, decode_distribution, expected_distance
from tid_core.spec import DataSpec

torch.set_num_threads(1)


def build(**options: Any) -> DenseDetector:
    torch.manual_seed(0)
    data = DataSpec(min_size=[64], max_size=96)
    return build_detector("gfl_conv5_tiny", num_classes=4, norm="group", data=data, **options).train()


def positives(anchors: list[list[float]], boxes: list[list[float]]) -> Positives:
    count = len(anchors)
    rows = torch.arange(count)
    return Positives(rows, rows, torch.tensor(anchors), torch.tensor(boxes), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize(
    ("probability", "quality", "expected"),
    [
        (0.5, 0.8, 0.3**2 * math.log(2)),
        (0.5, 0.0, 0.5**2 * math.log(2)),
        (0.9, 0.0, 0.9**2 * -math.log(0.1)),
        (0.7, 0.7, 0.0),
        (0.2, 1.0, 0.8**2 * -math.log(0.2)),
        (0.25, 0.75, 0.5**2 * -(0.75 * math.log(0.25) + 0.25 * math.log(0.75))),
    ],
)
def test_quality_focal_loss(probability: float, quality: float, expected: float) -> None:
    logit = torch.tensor(math.log(probability / (1 - probability)))
    assert quality_focal_loss(logit, torch.tensor(quality)).item() == pytest.approx(expected, abs=1e-6)


def test_distribution_focal_loss() -> None:
    """Three of four parts for bin 3, one for bin 4: that very distribution is best, and even odds cost log 17."""
    logits_14B = torch.full((1, 4, BINS), -30.0)
    logits_14B[0, 0, 3], logits_14B[0, 0, 4] = math.log(0.75), math.log(0.25)
    logits_14B[0, 1, 3], logits_14B[0, 1, 4] = math.log(0.5), math.log(0.5)
    logits_14B[0, 2] = 0.0
    logits_14B[0, 3, 15], logits_14B[0, 3, 16] = math.log(0.1), math.log(0.9)
    losses = distribution_focal_loss(logits_14B, torch.tensor([[3.25, 3.25, 3.25, 15.9]]))
    best, even = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2)
    last = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert losses[0].tolist() == pytest.approx([best, even, math.log(17), last], abs=1e-5)


def test_expected_distance() -> None:
    logits_14B = torch.full((1, 4, BINS), -60.0)
    logits_14B[0, 0, 5] = 0.0
    logits_14B[0, 1, 4] = logits_14B[0, 1, 8] = 0.0
    logits_14B[0, 2] = 0.0
    logits_14B[0, 3, 16] = 0.0
    assert expected_distance(logits_14B)[0].tolist() == pytest.approx([5.0, 6.0, 8.0, 16.0])


def test_decode_turns_encode_back() -> None:
    generator = torch.Generator().manual_seed(0)
    strides_P = torch.tensor([8, 16, 32, 64, 128])[torch.randint(5, (200,), generator=generator)].float()
    centres_P2 = torch.rand(200, 2, generator=generator) * 500
    anchors_P4 = torch.cat([centres_P2 - 4 * strides_P[:, None], centres_P2 + 4 * strides_P[:, None]], dim=1)
    reach_P4 = torch.rand(200, 4, generator=generator) * 15.8 * strides_P[:, None]
    boxes_P4 = torch.cat([centres_P2 - reach_P4[:, :2], centres_P2 + reach_P4[:, 2:]], dim=1)
    rows = torch.arange(200)
    distances_P4 = side_distances(Positives(rows, rows, anchors_P4, boxes_P4, rows))
    parts_P4B = (1 - (distances_P4[..., None] - torch.arange(BINS)).abs()).clamp(min=0)
    decoded_P4 = decode_distribution(parts_P4B.clamp(min=1e-30).log().flatten(1), anchors_P4)
    torch.testing.assert_close(decoded_P4, boxes_P4, rtol=0, atol=2e-3)


def test_distances_stay_within_the_bins() -> None:
    """16 strides and more leave room for a bin above; a centre beyond a side counts as on it."""
    sides = side_distances(positives([[-32.0, -32.0, 32.0, 32.0]], [[-500.0, 8.0, 40.0, 128.0]]))
    assert sides[0].tolist() == pytest.approx([15.9, 0.0, 5.0, 15.9])


def scene(detector: DenseDetector) -> tuple[ImageList, list[dict[str, Tensor]]]:
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 90), torch.rand(3, 64, 70)]
    targets = [
        {"boxes": torch.tensor([[4.0, 6, 40, 50], [30, 20, 60, 62]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.tensor([[10.0, 5, 85, 60]]), "labels": torch.tensor([0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return detector.transform(images, targets)


def slow_losses(detector: DenseDetector, outputs: Any, targets: list[dict[str, Tensor]]) -> dict[str, float]:
    """The three terms summed up one location at a time."""
    chosen = detector.model._positives(targets, outputs.anchors_L4, outputs.valid)
    valid_NL = torch.cat([v.flatten(1) for v in outputs.valid], dim=1)
    probabilities_NLK = outputs.logits_NLK.detach().sigmoid().double()
    quality: dict[tuple[int, int], tuple[float, int]] = {}
    box_sum = side_sum = weight_sum = 0.0
    for row, (image, place) in enumerate(zip(chosen.image_P.tolist(), chosen.location_P.tolist(), strict=True)):
        truth, anchor = chosen.boxes_P4[row].tolist(), chosen.anchors_P4[row].tolist()
        stride, centre = (anchor[2] - anchor[0]) / 8, [(anchor[i] + anchor[i + 2]) / 2 for i in (0, 1)]
        sides = outputs.head_outputs["bbox_regression"][image, place].double().view(4, BINS).softmax(1)
        reach = [sum(b * p for b, p in enumerate(side)) * stride for side in sides.tolist()]
        box = [centre[0] - reach[0], centre[1] - reach[1], centre[0] + reach[2], centre[1] + reach[3]]
        width = max(0.0, min(box[2], truth[2]) - max(box[0], truth[0]))
        height = max(0.0, min(box[3], truth[3]) - max(box[1], truth[1]))
        union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth)) - width * height
        hull = (max(box[2], truth[2]) - min(box[0], truth[0])) * (max(box[3], truth[3]) - min(box[1], truth[1]))
        iou = width * height / union
        weight = float(probabilities_NLK[image, place].max())
        goals = [centre[0] - truth[0], centre[1] - truth[1], truth[2] - centre[0], truth[3] - centre[1]]
        for side, goal in zip(sides.tolist(), goals, strict=True):
            distance = min(max(goal / stride, 0.0), 15.9)
            low = int(distance)
            part = distance - low
            side_sum += weight * -((1 - part) * math.log(side[low]) + part * math.log(side[low + 1])) / 4
        box_sum += weight * (1 - iou + (hull - union) / hull)
        weight_sum += weight
        quality[image, place] = (iou, int(chosen.labels_P[row]))
    class_sum = 0.0
    for image, place in valid_NL.nonzero().tolist():
        for k, p in enumerate(probabilities_NLK[image, place].tolist()):
            iou, label = quality.get((image, place), (0.0, -1))
            q = iou if label == k else 0.0
            class_sum += abs(q - p) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p))
    return {
        "classification": class_sum / max(1, len(quality)),
        "bbox_regression": 2 * box_sum / max(1.0, weight_sum),
        "bbox_distribution": 0.25 * side_sum / max(1.0, weight_sum),
    }


@pytest.mark.parametrize("sure", [False, True])
def test_losses_one_location_at_a_time(sure: bool) -> None:
    """Also where the scores, which weight the boxes, sum up to more than 1."""
    detector = build()
    if sure:
        torch.nn.init.constant_(detector.model.head.classification_head.cls_logits.bias, 1.0)
    torch.nn.init.normal_(detector.model.head.regression_head.bbox_reg.weight, std=0.2)
    images, targets = scene(detector)
    outputs = detector.dense_forward(images, targets)
    expected = slow_losses(detector, outputs, targets)
    assert {name: loss.item() for name, loss in outputs.losses.items()} == pytest.approx(expected, rel=1e-4)
    assert all(value > 1e-3 for value in expected.values())


def test_the_scores_that_weight_the_boxes_are_not_trained_by_them() -> None:
    detector = build()
    images, targets = scene(detector)
    losses = detector.dense_forward(images, targets).losses
    classifier = detector.model.head.classification_head
    boxes = losses["bbox_regression"] + losses["bbox_distribution"]
    given = torch.autograd.grad(boxes, classifier.cls_logits.weight, retain_graph=True, allow_unused=True)[0]
    assert given is None or not given.any()
    regression = detector.model.head.regression_head.bbox_reg.weight
    given = torch.autograd.grad(losses["classification"], regression, allow_unused=True)[0]
    assert given is None or not given.any(), "nor does the quality train the box"


def test_the_raw_distributions_stay_in_the_outputs() -> None:
    detector = build().eval()
    images, _ = scene(detector)
    outputs = detector.dense_forward(images)
    assert outputs.head_outputs["bbox_regression"].shape == (3, len(outputs.anchors_L4), 4 * BINS)
    assert outputs.boxes_NL4.shape == (3, len(outputs.anchors_L4), 4)
