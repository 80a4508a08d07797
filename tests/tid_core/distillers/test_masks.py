"""Where objects are on the grid: by hand, and against plain loops."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.distillers import masks
from tid_core.truth import pad_truth

Make = Callable[..., Any]


def line(make_outputs: Make, points: int = 5, **more: Any) -> Any:
    """One level of stride 8: points at x = 0, 8, 16 ... and y = 0."""
    rest = {"features": [torch.zeros(1, 1, 1, points)], "logits_NLK": torch.zeros(1, points, 2)}
    return make_outputs(grid=[(1, points)], strides=[8], boxes_NL4=torch.zeros(1, points, 4), **(rest | more))


def truth(*boxes: list[float], crowd: tuple[int, ...] = ()) -> Any:
    iscrowd = torch.tensor([index in crowd for index in range(len(boxes))])
    labels = torch.zeros(len(boxes), dtype=torch.long)
    return pad_truth([{"boxes": torch.tensor(boxes), "labels": labels, "iscrowd": iscrowd}])


def test_inside_boxes_by_hand(make_outputs: Make) -> None:
    """A side that goes through a centre has it outside; a crowd holds nothing; the fourth point is padding."""
    valid = torch.tensor([[[True, True, True, False, True]]])
    outputs = line(make_outputs, valid=[valid])
    found = masks.inside_boxes(
        outputs, truth([-4.0, -4, 12, 4], [8.0, -4, 40, 4], [-4.0, -4, 90, 4], [-4.0, 1, 90, 4], crowd=(2,))
    )
    assert found[0].int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0] * 5, [0] * 5]


def test_smallest_box_by_hand(make_outputs: Make) -> None:
    """Areas 16 x 8 and 40 x 8: the second point lies in both and takes the smaller; the last two lie in none."""
    boxes = truth([-4.0, -4, 36, 4], [-4.0, -4, 12, 4])
    index_NP, some_NP = masks.smallest_box(masks.inside_boxes(line(make_outputs, 7), boxes), boxes)
    assert some_NP[0].tolist() == [True] * 5 + [False] * 2
    assert index_NP[0, :5].tolist() == [1, 1, 0, 0, 0]


def test_bells_by_hand(make_outputs: Make) -> None:
    """Half sides 20 and 4 around (16, 0): the points lie .8, .4, 0, .4, .8 half sides away; width 2 divides by 4.

    The second box, around (0, 0) with half sides of 4, is 1 at the first point and larger than the first box's there.
    """
    found = masks.bells(line(make_outputs), truth([-4.0, -4, 36, 4], [-4.0, -4, 4, 4]), width=2.0)
    assert found[0].tolist() == pytest.approx([1.0, math.exp(-0.04), 1.0, math.exp(-0.04), math.exp(-0.16)])


def test_near_anchors_by_hand(make_outputs: Make) -> None:
    """Squares of 64 around x = 0, 8 ... 56, a ground truth of 64 x 64 around x = 16: IoUs (64 - d) / (64 + d).

    d = 16, 8, 0, 8 ... 40: .6, .78, 1, .78, .6, .45, .33, .23; above half of the best: the first five.
    """
    outputs, boxes = line(make_outputs, 8), truth([-16.0, -32, 48, 32])
    found = masks.near_anchors(outputs, boxes, outputs.all_valid, ratio=0.5)
    assert found[0].tolist() == [True] * 5 + [False] * 3
    # Without the best points the best IoU is .6: above .3 are .45 and .33, too.
    valid = outputs.all_valid.clone()
    valid[:, 1:4] = False
    found = masks.near_anchors(outputs, boxes, valid, ratio=0.5)
    assert found[0].tolist() == [True, False, False, False, True, True, True, False]


def test_an_object_without_anchors_is_near_none(make_outputs: Make) -> None:
    """No overlap at all is a best of zero, which nothing exceeds."""
    outputs = line(make_outputs)
    assert not masks.near_anchors(outputs, truth([900.0, 900, 950, 950]), outputs.all_valid, ratio=0.0).any()
    assert not masks.near_anchors(outputs, truth([0.0, 0, 9, 9], crowd=(0,)), outputs.all_valid, ratio=0.0).any()


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def _near(outputs: Any, targets: list[dict[str, Tensor]], valid: Tensor, ratio: float) -> Tensor:
    anchors = [a.tolist() for a in outputs.anchors_L4]
    step = outputs.num_anchors
    found = torch.zeros_like(valid)
    for image, target in enumerate(targets):
        crowd = target.get("iscrowd", torch.zeros(len(target["labels"])))
        for box in [b.tolist() for b, c in zip(target["boxes"], crowd, strict=True) if not c]:
            ious = [max(_iou(a, box) for a in anchors[i : i + step]) for i in range(0, len(anchors), step)]
            best = max(iou for iou, ok in zip(ious, valid[image].tolist(), strict=True) if ok)
            found[image] |= valid[image] & torch.tensor([iou > ratio * best for iou in ious])
    return found


@pytest.mark.parametrize("pairs", [2**20, 7])
def test_near_anchors_against_loops(make_scene: Make, monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    """Three anchors at each location, larger than a cell; compared at once and a few at a time."""
    monkeypatch.setitem(masks.PAIRS_AT_ONCE, "cpu", pairs)
    scene = make_scene(seed=4)
    generator = torch.Generator().manual_seed(0)
    teacher = scene.teacher
    grow = 6 + 20 * torch.rand(len(teacher.anchors_L4), 2, generator=generator)
    anchors = teacher.anchors_L4 + torch.cat([-grow, grow], dim=1)
    teacher.anchors_L4.copy_(anchors)
    valid = scene.student.all_valid
    found = masks.near_anchors(teacher, pad_truth(scene.targets), valid, ratio=0.5)
    assert 0 < int(found.sum()) < int(valid.sum())
    assert found.equal(_near(teacher, scene.targets, valid, 0.5))
