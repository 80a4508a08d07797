"""One batch of a real pair of GFL detectors, for the checks that every method has to pass.

N images, L anchors over all levels, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.build import build_detector
from tid_core.detectors.outputs import DenseOutputs, Towers, split_levels
from tid_core.distillers import CombinedDistiller, Distiller, build_distiller
from tid_core.spec import DataSpec, JobSpec

Targets = Sequence[dict[str, Tensor]]
DATA = DataSpec(min_size=[64], max_size=96)
# Height and width: together they fill 96 x 96, so each image has padding on one side or both.
SIZES = ((64, 96), (96, 64), (64, 64), (80, 64))


@dataclass(frozen=True)
class Batch:
    student: DenseOutputs
    teacher: DenseOutputs
    targets: Targets


def build_pair() -> tuple[DenseDetector, DenseDetector]:
    """Both with 96 channels at strides 8, 16 and 32, three classes, one anchor per location, towers of two
    convolutions whose features are kept after the first."""
    torch.manual_seed(0)
    student = build_detector("gfl_conv5_tiny", num_classes=3, data=DATA).train()
    teacher = build_detector("gfl_conv10_small", num_classes=3, data=DATA).eval().requires_grad_(False)
    student.tap = teacher.tap = 1
    return student, teacher


def build_method(pair: tuple[DenseDetector, DenseDetector], method: str, **settings: Any) -> Distiller:
    """The distiller of a job with that method alone; layers it has are drawn from one seed."""
    document = {
        "student": {"detector": pair[0].info.name},
        "teacher": {"detector": pair[1].info.name, "weights": {"file": "teacher.pt"}},
        "dataset": "d",
        "method": method,
        method: settings,
    }
    torch.manual_seed(1)
    distiller = build_distiller(JobSpec.model_validate(document), *pair)
    assert distiller is not None
    assert not isinstance(distiller, CombinedDistiller)
    return distiller


def some_targets() -> list[dict[str, Tensor]]:
    """Two boxes that overlap; none; one and a crowd; a small one."""
    boxes = [[[8.0, 8, 60, 56], [40, 20, 90, 60]], [], [[0.0, 0, 64, 64], [20, 10, 50, 44]], [[30.0, 50, 44, 62]]]
    labels = [[0, 2], [], [1, 1], [2]]
    targets = [
        {"boxes": torch.tensor(box).reshape(-1, 4), "labels": torch.tensor(label, dtype=torch.long)}
        for box, label in zip(boxes, labels, strict=True)
    ]
    targets[2]["iscrowd"] = torch.tensor([True, False])
    return targets


def build_batch(pair: tuple[DenseDetector, DenseDetector], targets: Targets | None = None) -> Batch:
    """Four images; noise on the heads, because those of fresh detectors answer the same everywhere."""
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(3, *size, generator=generator) for size in SIZES]
    student, teacher = pair
    image_list, resized = student.transform(images, list(targets if targets is not None else some_targets()))
    assert tuple(image_list.tensors.shape[-2:]) == (96, 96)
    sides = []
    for detector, amount in ((student, 1.0), (teacher, 2.0)):
        with torch.no_grad():
            sides.append(_with_noise(detector, detector.dense_forward(image_list), amount, generator))
    return Batch(sides[0], sides[1], resized)


def _with_noise(
    detector: DenseDetector, outputs: DenseOutputs, amount: float, generator: torch.Generator
) -> DenseOutputs:
    heads = {
        name: head + amount * torch.randn(head.shape, generator=generator)
        for name, head in outputs.head_outputs.items()
    }
    boxes_NL4 = detector.decode(heads["bbox_regression"], outputs.anchors_L4)
    return replace(outputs, head_outputs=heads, logits_NLK=heads["cls_logits"], boxes_NL4=boxes_NL4)


def leaves(outputs: DenseOutputs) -> DenseOutputs:
    """The same with features, heads and features inside the heads that gather gradients."""
    heads = {name: head.detach().clone().requires_grad_() for name, head in outputs.head_outputs.items()}
    logits_NLK = heads.get("cls_logits", outputs.logits_NLK)
    features = [feature.detach().clone().requires_grad_() for feature in outputs.features]
    towers = on_towers(outputs.towers, lambda feature: feature.detach().clone().requires_grad_())
    return replace(outputs, features=features, head_outputs=heads, logits_NLK=logits_NLK, towers=towers)


def on_towers(towers: Towers | None, change: Callable[[Tensor], Tensor]) -> Towers | None:
    """The same with each level's features changed."""
    if towers is None:
        return None
    return Towers(towers.convs, *([change(f) for f in task] for task in (towers.classification, towers.regression)))


def inside_head(outputs: DenseOutputs) -> list[Tensor]:
    """The features inside the head, where they are kept."""
    return [] if outputs.towers is None else [*outputs.towers.classification, *outputs.towers.regression]


def part(batch: Batch, images: Sequence[int]) -> Batch:
    """Some images of the batch, as a rank would hold them; they may repeat."""
    pick = torch.tensor(images)

    def cut(side: DenseOutputs) -> DenseOutputs:
        return replace(
            side,
            features=[f[pick] for f in side.features],
            valid=[v[pick] for v in side.valid],
            logits_NLK=side.logits_NLK[pick],
            boxes_NL4=side.boxes_NL4[pick],
            head_outputs={name: head[pick] for name, head in side.head_outputs.items()},
            towers=on_towers(side.towers, lambda feature: feature[pick]),
        )

    return Batch(cut(batch.student), cut(batch.teacher), [batch.targets[image] for image in images])


def fill_padding(outputs: DenseOutputs, generator: torch.Generator) -> DenseOutputs:
    """The same with something else in the padding: features, heads, boxes."""
    features = [
        torch.where(v[:, None], f, 50 * torch.randn(f.shape, generator=generator))
        for f, v in zip(outputs.features, outputs.valid, strict=True)
    ]
    valid_NL1 = outputs.all_valid.repeat_interleave(outputs.num_anchors, dim=1)[..., None]
    heads = {
        name: torch.where(valid_NL1, head, 5 * torch.randn(head.shape, generator=generator))
        for name, head in outputs.head_outputs.items()
    }
    elsewhere = torch.tensor([5.0, 5.0, 35.0, 30.0])
    boxes_NL4 = torch.where(valid_NL1, outputs.boxes_NL4, elsewhere)
    return replace(outputs, features=features, head_outputs=heads, logits_NLK=heads["cls_logits"], boxes_NL4=boxes_NL4)


def gradient_in_padding(outputs: DenseOutputs) -> float:
    """The largest gradient there, of features, heads and inside of them, after a backward pass over `leaves`."""
    maps = [*zip(outputs.features, outputs.valid, strict=True)]
    maps += zip(inside_head(outputs), outputs.valid * 2, strict=outputs.towers is not None)
    found = [f.grad * ~v[:, None] for f, v in maps if f.grad is not None]
    for head_NLE in outputs.head_outputs.values():
        if head_NLE.grad is not None:
            by_level = split_levels(head_NLE.grad.abs().amax(dim=2), outputs.grid)
            found += [g * ~v for g, v in zip(by_level, outputs.valid, strict=True)]
    return max(float(gradient.abs().max()) for gradient in found)
