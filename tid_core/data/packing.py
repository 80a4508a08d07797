"""Batches on their way out of a loader process: few tensors, and failures that arrive as what they were."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tid_core.data.coco import CocoDetection, Sample
from tid_core.events import TrainingFailure

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Failed:
    """A TrainingFailure on its way out of a worker; as an exception it would arrive as a bare RuntimeError."""

    def __init__(self, failure: TrainingFailure) -> None:
        self.reason = failure.reason
        self.detail = failure.detail


class Told(torch.utils.data.Dataset[Any]):
    """The dataset, whose failures are samples."""

    def __init__(self, dataset: CocoDetection) -> None:
        self.dataset = dataset

    def __getitem__(self, position: tuple[int, int]) -> Sample | Failed:
        try:
            return self.dataset[position]
        except TrainingFailure as failure:
            return Failed(failure)


class Packed(NamedTuple):
    """A batch in three tensors, as each tensor of a worker holds a file descriptor until its batch is used."""

    pixels: Tensor
    shapes: list[torch.Size]
    boxes: Tensor
    labels: Tensor
    counts: list[int]
    others: list[dict[str, Any]]

    def pin_memory(self) -> "Packed":
        """As DataLoader asks for it; by itself it would walk through every number of every target."""
        tensors = {name: getattr(self, name).pin_memory() for name in ("pixels", "boxes", "labels")}
        return self._replace(**tensors)


def collate(samples: list[Sample | Failed]) -> Batch | Packed | Failed:
    images, targets = [], []
    for sample in samples:
        if isinstance(sample, Failed):
            return sample
        images.append(sample[0])
        targets.append(sample[1])
    if get_worker_info() is None:
        return images, targets
    return Packed(
        pixels=torch.cat([image.flatten() for image in images]),
        shapes=[image.shape for image in images],
        boxes=torch.cat([target["boxes"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]),
        counts=[len(target["labels"]) for target in targets],
        others=[{k: v for k, v in target.items() if k not in ("boxes", "labels")} for target in targets],
    )


def unpack(packed: Packed) -> Batch:
    pixels = torch.split(packed.pixels, [math.prod(shape) for shape in packed.shapes])
    images = [flat.view(*shape) for flat, shape in zip(pixels, packed.shapes, strict=True)]
    boxes, labels = torch.split(packed.boxes, packed.counts), torch.split(packed.labels, packed.counts)
    parts = zip(boxes, labels, packed.others, strict=True)
    return images, [{"boxes": boxes_M4, "labels": labels_M, **others} for boxes_M4, labels_M, others in parts]
