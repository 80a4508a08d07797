"""The seam between a dense detector and everything that needs its insides.

N images, C channels, H and W a level's grid, L anchors over all levels, A anchors per location, K classes, M boxes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.outputs import DenseOutputs, Towers
from tid_core.detectors.towers import finish_head, start_head
from tid_core.events import TrainingFailure

Target = dict[str, Tensor]


class DenseDetector(nn.Module, ABC):
    """A plain torchvision detector, run through its own public parts.

    One forward gives losses, detections and all that distillation looks at. `model` stays an ordinary torchvision
    module: its `state_dict()` is the product.
    """

    model: Any  # torchvision has no types
    tap: int | None = None
    """Convolutions of the head's towers after which the features are kept in the outputs; None = they are not."""

    def __init__(self, model: nn.Module, info: DetectorInfo) -> None:
        super().__init__()
        self.model = model
        self.info = info

    @property
    def matcher_thresholds(self) -> tuple[float, float] | None:
        """IoU from which, and below which, the detector's own matcher calls a box positive or negative."""
        return None

    def transform(
        self, images: Sequence[Tensor], targets: list[Target] | None = None
    ) -> tuple[ImageList, list[Target]]:
        """Normalise, resize and pad a batch with the detector's own transform (random size in training mode).

        Args:
            images: (3, H, W) each, uint8 or float in 0..1.
            targets: `boxes` (M, 4) xyxy are resized with the image; other keys pass unchanged.
        """
        floats = [image if image.is_floating_point() else image.float() / 255 for image in images]
        image_list, resized = self.model.transform(floats, targets)
        return image_list, resized or []

    def forward(self, images: ImageList, targets: list[Target] | None = None) -> DenseOutputs:
        return self.dense_forward(images, targets)

    def dense_forward(self, images: ImageList, targets: list[Target] | None = None) -> DenseOutputs:
        """Features, logits, boxes and, given targets, losses. Only backbone and head run under autocast.

        Args:
            images: of `transform`; teacher and student must be given the same.
            targets: resized, with `boxes` (M, 4), `labels` (M,) in 0..K-1 and optionally `iscrowd` (M,);
                crowd boxes are no training targets.
        """
        features = list(self.model.backbone(images.tensors).values())
        towers = None if self.tap is None else start_head(self.model.head, features, self.tap)
        head_outputs = self.model.head(features) if towers is None else finish_head(self.model.head, towers)
        with torch.autocast(images.tensors.device.type, enabled=False):
            # In bf16 the anchors would be rounded to whole pixels and worse, so nothing below sees it.
            head_outputs = {name: output.float() for name, output in head_outputs.items()}
            anchors_L4 = self._anchors(images, features)
            outputs = DenseOutputs(
                features=features,
                logits_NLK=head_outputs["cls_logits"],
                boxes_NL4=self.decode(head_outputs["bbox_regression"].detach(), anchors_L4),
                anchors_L4=anchors_L4,
                strides=list(self.info.strides),
                num_anchors=self.info.anchors_per_location,
                valid=self._valid(images, features),
                head_outputs=head_outputs,
                towers=towers,
            )
            if targets is None:
                return outputs
            return replace(outputs, losses=self._losses(outputs, [_trainable(target) for target in targets]))

    def finish(self, towers: Towers) -> dict[str, Tensor]:
        """The raw head outputs, fp32, for features inside the head, of this detector or another; with gradient."""
        return {name: output.float() for name, output in finish_head(self.model.head, towers).items()}

    def detections(
        self, outputs: DenseOutputs, images: ImageList, original_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes (xyxy, pixels of the original image), scores and labels per image, as torchvision's eval mode gives.

        Args:
            original_sizes: (height, width) of each image before `transform`.
        """
        per_level = self._anchors_per_level(outputs)
        sizes = images.image_sizes
        head = {name: _split(output, per_level, 1) for name, output in outputs.head_outputs.items()}
        anchors = [_split(outputs.anchors_L4, per_level, 0)] * len(sizes)
        found: list[dict[str, Tensor]] = self.model.postprocess_detections(head, anchors, sizes)
        for detection, size, original in zip(found, sizes, original_sizes, strict=True):
            detection["boxes"] = resize_boxes(detection["boxes"], list(size), list(original))
        return found

    def _anchors(self, images: ImageList, features: list[Tensor]) -> Tensor:
        # The generator reads only grid, device and dtype: a slice spares the copy of the features.
        return cast(Tensor, self.model.anchor_generator(images, [f[:1, :1].float() for f in features])[0])

    def _valid(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """Per level, (N, H, W) bool: locations whose centre lies inside the image itself."""
        sizes_N2 = torch.tensor(images.image_sizes, device=images.tensors.device)
        height, width = images.tensors.shape[-2:]
        valid = []
        for feature, stride in zip(features, self.info.strides, strict=True):
            inside_NH = self._centres(feature.shape[-2], height, stride, sizes_N2.device) < sizes_N2[:, :1]
            inside_NW = self._centres(feature.shape[-1], width, stride, sizes_N2.device) < sizes_N2[:, 1:]
            valid.append(inside_NH[:, :, None] & inside_NW[:, None, :])
        return valid

    def _centres(self, cells: int, pixels: int, stride: int, device: torch.device) -> Tensor:  # noqa: ARG002
        """Where the centres of a level's cells lie, in pixels, in one direction of the padded batch.

        A cell is the padded batch divided by the grid, which is the stride wherever the level divides the batch
        evenly and, as in torchvision's anchors, smaller on the coarse levels of a small batch.
        """
        return (torch.arange(cells, device=device) + 0.5) * (pixels / cells)

    def _anchors_per_level(self, outputs: DenseOutputs) -> list[int]:
        return [height * width * outputs.num_anchors for height, width in outputs.grid]

    @abstractmethod
    def decode(self, regression_NL4: Tensor, anchors_L4: Tensor) -> Tensor:
        """Boxes (N, L, 4) in pixels, not clipped."""

    @abstractmethod
    def _losses(self, outputs: DenseOutputs, targets: list[Target]) -> dict[str, Tensor]:
        """torchvision's own loss terms."""


def _split(values: Tensor, sizes: list[int], dim: int) -> list[Tensor]:
    return list(torch.split(values, sizes, dim))


def _trainable(target: Target) -> Target:
    """The boxes to learn from: no crowds, fp32."""
    boxes, labels = target["boxes"].float(), target["labels"]
    if "iscrowd" in target:
        single = ~target["iscrowd"].bool()
        boxes, labels = boxes[single], labels[single]
    return {"boxes": boxes, "labels": labels}


def teacher_class_index(teacher_classes: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Indices (K,) of the teacher's outputs that stand for `classes`, by name.

    Raises:
        TrainingFailure: `classes_missing`, naming what the teacher does not know.
    """
    missing = [name for name in classes if name not in teacher_classes]
    if missing:
        raise TrainingFailure(
            "classes_missing",
            f"the teacher has no output for {', '.join(missing)}; it knows {', '.join(teacher_classes)}",
        )
    return torch.tensor([list(teacher_classes).index(name) for name in classes])


def select_classes(outputs: DenseOutputs, index_K: Tensor) -> DenseOutputs:
    """The same outputs with only the class logits of `index_K`, in that order."""
    available = outputs.logits_NLK.shape[-1]
    if index_K.tolist() == list(range(available)):
        return outputs
    logits_NLK = outputs.logits_NLK[..., index_K.to(outputs.logits_NLK.device)]
    return replace(outputs, logits_NLK=logits_NLK, head_outputs={**outputs.head_outputs, "cls_logits": logits_NLK})
