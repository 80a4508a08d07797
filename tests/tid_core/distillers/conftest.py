"""Hand-made outputs of two detectors on one grid, no detector needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tid_core.detectors.outputs import DenseOutputs

Targets = list[dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Scene:
    student: DenseOutputs
    teacher: DenseOutputs
    targets: Targets


def build_outputs(
    *,
    grid: Sequence[tuple[int, int]],
    strides: Sequence[int],
    features: list[Tensor],
    logits_NLK: Tensor,
    boxes_NL4: Tensor,
    num_anchors: int = 1,
    valid: list[Tensor] | None = None,
) -> DenseOutputs:
    """Anchors are squares of one stride around the corner of each cell, as torchvision places them."""
    images = len(boxes_NL4)
    anchors = []
    for (height, width), stride in zip(grid, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centre = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).float()
        square = torch.tensor([-0.5, -0.5, 0.5, 0.5]) * stride
        anchors.append((centre + square).expand(-1, num_anchors, 4).reshape(-1, 4))
    return DenseOutputs(
        features=features,
        logits_NLK=logits_NLK,
        boxes_NL4=boxes_NL4,
        anchors_L4=torch.cat(anchors),
        strides=list(strides),
        num_anchors=num_anchors,
        valid=valid or [torch.ones(images, h, w, dtype=torch.bool) for h, w in grid],
    )


def _predictions(
    generator: torch.Generator, targets: Targets, *, count: int, classes: int, skill: float
) -> tuple[Tensor, Tensor]:
    """Boxes spread around the ground truths, near and far, and logits that are right with probability `skill`."""
    boxes, logits = [], []
    for target in targets:
        truth = target["boxes"] if len(target["boxes"]) else torch.tensor([[10.0, 10.0, 30.0, 30.0]])
        labels = target["labels"] if len(target["labels"]) else torch.tensor([0])
        pick = torch.randint(len(truth), (count,), generator=generator)
        side = (truth[pick, 2:] - truth[pick, :2]).repeat(1, 2)
        spread = torch.tensor([0.02, 0.12, 0.3, 1.5])[torch.randint(4, (count, 1), generator=generator)]
        noisy = truth[pick] + torch.randn(count, 4, generator=generator) * side * spread
        corners = noisy.view(count, 2, 2).sort(dim=1).values.reshape(count, 4)
        boxes.append(corners + torch.tensor([0.0, 0.0, 0.5, 0.5]))
        logit = torch.randn(count, classes, generator=generator)
        knows = torch.rand(count, generator=generator) < skill
        logit[knows, labels[pick][knows]] += 3
        logits.append(logit)
    return torch.stack(boxes), torch.stack(logits)


def build_scene(
    seed: int = 0,
    *,
    images: int = 3,
    grid: Sequence[tuple[int, int]] = ((6, 5), (3, 3)),
    channels: tuple[int, int] = (4, 4),
    anchors: tuple[int, int] = (1, 3),
    classes: int = 3,
) -> Scene:
    """A teacher that often is right and a student that often is not; one image without ground truth, one crowd box."""
    generator = torch.Generator().manual_seed(seed)
    strides = [8 * 2**level for level in range(len(grid))]
    targets: Targets = []
    for image in range(images):
        count = 0 if image == 1 else int(torch.randint(1, 5, (1,), generator=generator))
        corner = torch.rand(count, 2, generator=generator) * 25
        side = 6 + torch.rand(count, 2, generator=generator) * 18
        labels = torch.randint(classes, (count,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + side], dim=1), "labels": labels})
    crowd = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    targets[0] = {
        "boxes": torch.cat([crowd, targets[0]["boxes"]]),
        "labels": torch.cat([torch.tensor([0]), targets[0]["labels"]]),
        "iscrowd": torch.tensor([True] + [False] * len(targets[0]["labels"])),
    }
    outputs = []
    valid = [torch.ones(images, h, w, dtype=torch.bool) for h, w in grid]
    for mask in valid:
        mask[-1, :, -1] = False  # the last image is narrower than the batch
    for num_channels, num_anchors, skill in zip(channels, anchors, (0.5, 0.9), strict=True):
        count = sum(h * w for h, w in grid) * num_anchors
        boxes, logits = _predictions(generator, targets, count=count, classes=classes, skill=skill)
        features = [3 * torch.randn(images, num_channels, h, w, generator=generator) + 1 for h, w in grid]
        outputs.append(
            build_outputs(
                grid=grid,
                strides=strides,
                features=features,
                logits_NLK=logits,
                boxes_NL4=boxes,
                num_anchors=num_anchors,
                valid=valid,
            )
        )
    return Scene(outputs[0], outputs[1], targets)


@pytest.fixture
def make_outputs() -> Callable[..., DenseOutputs]:
    return build_outputs


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    return build_scene
