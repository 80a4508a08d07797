"""ATSS matching against the algorithm read off the paper, in plain loops and double precision."""

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.detectors.atss_matcher import assign, find_candidates, iou_thresholds
from tid_core.detectors.build import build_detector
from tid_core.distillers.atss import atss_thresholds
from tid_core.spec import DataSpec
from tid_core.truth import pad_truth

torch.set_num_threads(1)

Box = tuple[float, float, float, float]


@dataclass
class Scene:
    strides: list[int]
    grids: list[tuple[int, int]]
    sizes: list[tuple[int, int]]
    """(height, width) of each image, in a batch as large as the grids."""
    boxes: list[list[Box]]
    crowds: list[list[bool]]

    @property
    def centres_L2(self) -> Tensor:
        return torch.tensor([centre for level in self.points() for centre in level])

    @property
    def valid(self) -> list[Tensor]:
        levels = self.points()
        return [
            torch.tensor([[x < width and y < height for x, y in points] for height, width in self.sizes]).view(
                -1, *grid
            )
            for points, grid in zip(levels, self.grids, strict=True)
        ]

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        return [
            {
                "boxes": torch.tensor(boxes).reshape(-1, 4),
                "labels": torch.arange(len(boxes)),
                "iscrowd": torch.tensor(crowds, dtype=torch.bool),
            }
            for boxes, crowds in zip(self.boxes, self.crowds, strict=True)
        ]

    def points(self) -> list[list[tuple[float, float]]]:
        return [
            [(float(x * stride), float(y * stride)) for y in range(height) for x in range(width)]
            for stride, (height, width) in zip(self.strides, self.grids, strict=True)
        ]


def iou(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def slow_thresholds(scene: Scene, image: int, box: Box, topk: int) -> tuple[float, dict[int, float]]:
    """Mean + standard deviation of the candidates' IoUs, and these by location."""
    height, width = scene.sizes[image]
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    ious: dict[int, float] = {}
    start = 0
    for stride, points in zip(scene.strides, scene.points(), strict=True):
        inside = [i for i, (x, y) in enumerate(points) if x < width and y < height]
        for i in sorted(inside, key=lambda i: math.dist(points[i], middle))[:topk]:
            x, y = points[i]
            ious[start + i] = iou((x - 4 * stride, y - 4 * stride, x + 4 * stride, y + 4 * stride), box)
        start += len(points)
    mean = sum(ious.values()) / len(ious)
    spread = sum((value - mean) ** 2 for value in ious.values())
    return mean + math.sqrt(spread / max(1, len(ious) - 1)), ious


def slow_assign(scene: Scene, topk: int) -> list[list[int]]:
    points = [point for level in scene.points() for point in level]
    rows = []
    for image, boxes in enumerate(scene.boxes):
        row, best = [-1] * len(points), [-1.0] * len(points)
        for index, box in enumerate(boxes):
            if scene.crowds[image][index]:
                continue
            threshold, ious = slow_thresholds(scene, image, box, topk)
            for location, value in ious.items():
                x, y = points[location]
                inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
                if value >= threshold and inside and value > best[location]:
                    row[location], best[location] = index, value
        rows.append(row)
    return rows


def random_box(draw: random.Random, height: int, width: int) -> Box:
    w, h = (math.exp(draw.uniform(math.log(3), math.log(1.2 * side))) for side in (width, height))
    x, y = draw.uniform(-0.1 * width, width - w / 2), draw.uniform(-0.1 * height, height - h / 2)
    return (x, y, x + w, y + h)


def random_scene(seed: int) -> Scene:
    """Images of several sizes, without and with many ground truths, some of them inside others, some crowds."""
    draw = random.Random(seed)
    strides = [[8, 16, 32], [8, 16, 32, 64, 128], [16, 32]][seed % 3]
    sizes = [(draw.randint(20, 150), draw.randint(20, 150)) for _ in range(draw.randint(1, 3))]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    grids = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]
    boxes, crowds = [], []
    for h, w in sizes:
        found = [random_box(draw, h, w) for _ in range(draw.choice([0, 1, 3, 12, 60]))]
        for x0, y0, x1, y1 in found[:4]:
            found.append((x0 + (x1 - x0) / 5, y0 + (y1 - y0) / 7, x1 - (x1 - x0) / 6, y1 - (y1 - y0) / 9))
        boxes.append(found)
        crowds.append([draw.random() < 0.1 for _ in found])
    return Scene(strides, grids, sizes, boxes, crowds)


def fast_assign(scene: Scene, **options: Any) -> Tensor:
    return assign(scene.centres_L2, scene.valid, pad_truth(scene.targets), strides=scene.strides, **options)


@pytest.mark.parametrize("seed", range(60))
def test_as_the_algorithm_says(seed: int) -> None:
    scene = random_scene(seed)
    topk = [9, 9, 3, 1][seed % 4]
    assert fast_assign(scene, topk=topk).tolist() == slow_assign(scene, topk)


def test_the_random_scenes_have_what_matters() -> None:
    scenes = [random_scene(seed) for seed in range(60)]
    assert any(not boxes for scene in scenes for boxes in scene.boxes)
    assert any(len(boxes) > len(scene.centres_L2) for scene in scenes for boxes in scene.boxes)
    matched = [sum(index >= 0 for index in row) for scene in scenes for row in slow_assign(scene, 9)]
    assert sum(matched) > 1000
    contested = 0
    for scene in scenes[:10]:
        together = slow_assign(scene, 9)
        for image, boxes in enumerate(scene.boxes):
            for index, box in enumerate(boxes):
                crowd = [scene.crowds[image][index]]
                alone = Scene(scene.strides, scene.grids, [scene.sizes[image]], [[box]], [crowd])
                pairs = zip(slow_assign(alone, 9)[0], together[image], strict=True)
                contested += sum(a == 0 and b not in (-1, index) for a, b in pairs)
    assert contested > 50, "several ground truths want one anchor"


def test_nothing_to_find() -> None:
    scene = Scene([8, 16], [(4, 4), (2, 2)], [(32, 32), (32, 32)], [[], []], [[], []])
    assert (fast_assign(scene) == -1).all()


def test_by_hand() -> None:
    """One level of stride 8, a box equal to the anchor in the middle of 5 x 5: only that reaches mean + deviation."""
    scene = Scene([8], [(5, 5)], [(40, 40)], [[(-16.0, -16.0, 48.0, 48.0)]], [[False]])
    ious = [1.0] + [56 * 64 / (64 * 72)] * 4 + [56 * 56 / (2 * 64 * 64 - 56 * 56)] * 4
    mean = sum(ious) / 9
    expected = mean + math.sqrt(sum((value - mean) ** 2 for value in ious) / 8)
    found = find_candidates(scene.centres_L2, scene.valid, pad_truth(scene.targets), strides=[8])
    assert iou_thresholds(found).item() == pytest.approx(expected, abs=1e-6)
    assert found.iou_NMT.flatten().sort(descending=True).values.tolist() == pytest.approx(ious, abs=1e-6)
    assert (fast_assign(scene)[0] >= 0).nonzero().flatten().tolist() == [12]


def test_the_higher_iou_wins_whatever_the_order() -> None:
    """Two boxes around one anchor; the one that fits it better gets it."""
    fitting, loose = (-14.0, -16.0, 48.0, 48.0), (-30.0, -22.0, 60.0, 56.0)
    for boxes in ([fitting, loose], [loose, fitting]):
        scene = Scene([8], [(5, 5)], [(40, 40)], [boxes], [[False, False]])
        assert fast_assign(scene)[0, 12].item() == boxes.index(fitting)
    twins = Scene([8], [(5, 5)], [(40, 40)], [[fitting, fitting]], [[False, False]])
    assert fast_assign(twins)[0, 12].item() == 0


@pytest.mark.parametrize("box", [(4.0, 4.0, 28.0, 28.0), (0.0, 6.0, 40.0, 18.0), (12.0, 12.0, 20.0, 20.0)])
def test_padding_changes_nothing_even_for_ties(box: Box) -> None:
    """Boxes whose centres lie as far from several anchors, in a batch of the image's own size and in larger ones."""
    found = []
    for height, width in ((12, 16), (17, 16), (12, 23), (30, 40)):
        grids = [(math.ceil(height / cells), math.ceil(width / cells)) for cells in (1, 2, 4)]
        row_L = fast_assign(Scene([8, 16, 32], grids, [(96, 128)], [[box]], [[False]]))[0]
        maps = [part.view(grid) for part, grid in zip(row_L.split([h * w for h, w in grids]), grids, strict=True)]
        places = [map_HW.nonzero().tolist() for map_HW in (map_HW >= 0 for map_HW in maps)]
        found.append(places)
    assert all(places == found[0] for places in found)
    assert any(found[0])


@pytest.mark.parametrize("name", ["gfl_conv5_tiny", "atss_conv5_tiny"])
def test_tid_uses_the_matchers_own_statistics(name: str) -> None:
    """Mode `atss` of the distiller: thresholds as the matcher of a real detector has them."""
    detector = build_detector(name, num_classes=3, data=DataSpec(min_size=[64], max_size=160))
    boxes = [torch.tensor([[5.3, 7.1, 50.2, 44.9], [20.7, 3.3, 33.1, 60.4]]), torch.tensor([[9.7, 9.2, 100.3, 41.8]])]
    targets = [{"boxes": b, "labels": torch.zeros(len(b), dtype=torch.int64)} for b in boxes]
    images, targets = detector.transform([torch.rand(3, 64, 70), torch.rand(3, 64, 120)], targets)
    outputs = detector.eval().dense_forward(images)
    found_NM = atss_thresholds(outputs, pad_truth(targets), topk=9)
    listed = [[(b[0], b[1], b[2], b[3]) for b in t["boxes"].tolist()] for t in targets]
    scene = Scene(outputs.strides, outputs.grid, images.image_sizes, listed, [[False] * len(b) for b in listed])
    assert torch.equal(scene.centres_L2, (outputs.anchors_L4[:, :2] + outputs.anchors_L4[:, 2:]) / 2)
    assert all(torch.equal(one, other) for one, other in zip(scene.valid, outputs.valid, strict=True))
    for image, row in enumerate(listed):
        for index, box in enumerate(row):
            expected, _ = slow_thresholds(scene, image, box, 9)
            assert found_NM[image, index].item() == pytest.approx(expected, abs=1e-5)
