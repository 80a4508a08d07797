"""The losses and the decoding of ATSS against values worked out by hand and against plain loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from tid_core.detectors.assigned import Positives
from tid_core.detectors.atss import centerness
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.detectors.one_anchor import decode_deltas
from tid_core.spec import DataSpec

torch.set_num_threads(1)


def build() -> DenseDetector:
    torch.manual_seed(0)
    data = DataSpec(min_size=[64], max_size=96)
    return build_detector("atss_conv5_tiny", num_classes=4, norm="group", data=data).train()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-10.0, -10.0, 10.0, 10.0), 1.0),
        ((-10.0, -10.0, 30.0, 10.0), math.sqrt(1 / 3)),
        ((-10.0, -40.0, 30.0, 10.0), math.sqrt(1 / 12)),
        ((-0.02, -10.0, 20.0, 10.0), math.sqrt(0.001)),
    ],
)
def test_centerness(box: tuple[float, ...], expected: float) -> None:
    row = torch.zeros(1, dtype=torch.int64)
    found = centerness(Positives(row, row, torch.tensor([[-32.0, -32.0, 32.0, 32.0]]), torch.tensor([box]), row))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_deltas_by_hand() -> None:
    """Standard deviations .1 of the side for the centre, .2 for the logarithm of the size."""
    anchor = torch.tensor([[68.0, 36.0, 132.0, 100.0]])  # centre (100, 68), side 64
    deltas = torch.tensor([[[0.0, 0.0, 0.0, 0.0]], [[1.0, -2.0, 5 * math.log(2), -5 * math.log(2)]]])
    boxes = decode_deltas(deltas, anchor)
    assert boxes[0, 0].tolist() == pytest.approx([68.0, 36.0, 132.0, 100.0])
    # centre (106.4, 55.2), 128 wide, 32 high
    assert boxes[1, 0].tolist() == pytest.approx([42.4, 39.2, 170.4, 71.2], abs=1e-4)


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
    head = {name: output.detach().double() for name, output in outputs.head_outputs.items()}
    labels: dict[tuple[int, int], int] = {}
    box_sum = weight_sum = centre_sum = 0.0
    for row, (image, place) in enumerate(zip(chosen.image_P.tolist(), chosen.location_P.tolist(), strict=True)):
        truth, anchor = chosen.boxes_P4[row].tolist(), chosen.anchors_P4[row].tolist()
        side, centre = anchor[2] - anchor[0], [(anchor[i] + anchor[i + 2]) / 2 for i in (0, 1)]
        dx, dy, dw, dh = head["bbox_regression"][image, place].tolist()
        x, y = centre[0] + 0.1 * dx * side, centre[1] + 0.1 * dy * side
        w, h = side * math.exp(0.2 * dw), side * math.exp(0.2 * dh)
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        width = max(0.0, min(box[2], truth[2]) - max(box[0], truth[0]))
        height = max(0.0, min(box[3], truth[3]) - max(box[1], truth[1]))
        union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth)) - width * height
        hull = (max(box[2], truth[2]) - min(box[0], truth[0])) * (max(box[3], truth[3]) - min(box[1], truth[1]))
        left, top, right, bottom = (abs(centre[i % 2] - truth[i]) for i in range(4))
        weight = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
        p = 1 / (1 + math.exp(-float(head["bbox_ctrness"][image, place])))
        box_sum += weight * (1 - width * height / union + (hull - union) / hull)
        centre_sum += -(weight * math.log(p) + (1 - weight) * math.log(1 - p))
        weight_sum += weight
        labels[image, place] = int(chosen.labels_P[row])
    class_sum = 0.0
    for image, place in valid_NL.nonzero().tolist():
        for k, p in enumerate(head["cls_logits"][image, place].sigmoid().tolist()):
            is_class = labels.get((image, place)) == k
            class_sum += -0.25 * (1 - p) ** 2 * math.log(p) if is_class else -0.75 * p**2 * math.log(1 - p)
    return {
        "classification": class_sum / max(1, len(labels)),
        "bbox_regression": 2 * box_sum / max(1.0, weight_sum),
        "bbox_ctrness": centre_sum / max(1, len(labels)),
    }


def test_losses_one_location_at_a_time() -> None:
    detector = build()
    regression = detector.model.head.regression_head
    torch.nn.init.normal_(regression.bbox_reg.weight, std=0.2)
    torch.nn.init.normal_(regression.bbox_ctrness.weight, std=0.1)
    images, targets = scene(detector)
    outputs = detector.dense_forward(images, targets)
    expected = slow_losses(detector, outputs, targets)
    assert {name: loss.item() for name, loss in outputs.losses.items()} == pytest.approx(expected, rel=1e-4)
    assert all(value > 1e-3 for value in expected.values())


def test_centerness_lowers_the_score_after_the_choice() -> None:
    """The class decides what is a detection, both how good it is."""
    detector = build().eval()
    images, _ = detector.transform([torch.rand(3, 64, 64)])
    outputs = detector.dense_forward(images)
    logits, centres = outputs.head_outputs["cls_logits"], outputs.head_outputs["bbox_ctrness"]
    logits.data.fill_(-20.0)
    logits.data[0, 30, 2] = math.log(0.06 / 0.94)
    logits.data[0, 9, 1] = math.log(0.04 / 0.96)
    centres.data.fill_(math.log(0.5 / 0.5))
    found = detector.detections(outputs, images, [(64, 64)])[0]
    assert found["labels"].tolist() == [2]
    assert found["scores"].tolist() == pytest.approx([0.03])
