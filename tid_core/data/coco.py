"""A split of a COCO dataset as torch sees it.

Shape suffixes: B boxes of the split, I images, M boxes of one image.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tid_core.data.annotations import CocoFile, ImageRecord, read_coco
from tid_core.data.images import ImageProblem, open_image
from tid_core.data.problems import UNUSABLE_BOXES, DatasetError
from tid_core.data.transforms import Pixels, build_augmentation, planes, sample_seed
from tid_core.evaluation import GroundTruth, ground_truth
from tid_core.events import TrainingFailure
from tid_core.plan import SplitPaths
from tid_core.spec import DataSpec

Sample = tuple[Tensor, dict[str, Any]]


class CocoDetection(torch.utils.data.Dataset[Sample]):
    """Images and boxes of one split.

    `dataset[epoch, index]` is `(image, target)`: image (3, H, W) uint8; target with `boxes` (M, 4) float32 xyxy in
    pixels of that image, `labels` (M,) int64 in 0..K-1, `index` and `image_id` (the file's), and `size` (H, W) of the
    image file. Crowd boxes are not in the target, only in `truth`. With `train`, the image is augmented by draws that
    depend on (seed, epoch, index) alone; without, the epoch makes no difference.

    Args:
        classes: label order by name; None = the file's categories sorted by id.

    Raises:
        TrainingFailure: `dataset_invalid`: the file cannot be used, or has boxes that `data.invalid_boxes` refuses,
            or nothing to train on.
    """

    def __init__(
        self, split: SplitPaths, classes: list[str] | None, data: DataSpec, *, train: bool, seed: int = 0
    ) -> None:
        coco = _read(split, classes, data)
        self.folder = split.images
        self.classes = coco.classes
        self.problems = coco.problems.report()
        self.train = train
        self.seed = seed
        self.truth: GroundTruth | None = None if train else ground_truth(coco)
        self._augment = build_augmentation(data) if train else None
        self._keep(coco, drop_empty=train and data.drop_empty)

    def _keep(self, coco: CocoFile, *, drop_empty: bool) -> None:
        """Hold everything in flat arrays: worker processes share those, while touching Python objects copies them."""
        per_image: list[list[int]] = [[] for _ in coco.images]
        for i, box in enumerate(coco.boxes):
            if not box.crowd:
                per_image[box.image].append(i)
        kept = [i for i, boxes in enumerate(per_image) if boxes or not drop_empty]
        order = [b for i in kept for b in per_image[i]]
        if self.train and not order:
            raise TrainingFailure("dataset_invalid", f"{coco.path}: no box that can be trained on")
        self._offsets_I = np.cumsum([0, *(len(per_image[i]) for i in kept)])
        boxes_B4 = np.array([coco.boxes[b].xyxy for b in order], dtype=np.float32).reshape(-1, 4)
        self._boxes_B4 = torch.from_numpy(boxes_B4)
        self._labels_B = torch.from_numpy(np.array([coco.boxes[b].label for b in order], dtype=np.int64))
        self._names_I = np.array([coco.images[i].file_name for i in kept])
        ids = [coco.images[i].id for i in kept]
        self._ids_I = np.array(ids, dtype=None if len({type(identity) for identity in ids}) == 1 else object)
        self._sizes_I2 = np.array([(coco.images[i].width, coco.images[i].height) for i in kept])
        self._digests_I = np.array([coco.images[i].sha256 or "" for i in kept], dtype="S64")

    def __len__(self) -> int:
        return len(self._names_I)

    def record(self, index: int) -> ImageRecord:
        width, height = self._sizes_I2[index].tolist()
        (identity,) = self._ids_I[index : index + 1].tolist()
        sha256 = self._digests_I[index].decode() or None
        return ImageRecord(identity, str(self._names_I[index]), width, height, sha256)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        """
        Raises:
            TrainingFailure: `dataset_invalid`: the image is missing, truncated, not of the stated size, or changed.
        """
        epoch, index = position
        record = self.record(index)
        pixels_HW3, (boxes, labels) = self._pixels(record), self._targets(index)
        if self._augment is None:
            image = planes(pixels_HW3)
        else:
            image, boxes, labels = self._augment(sample_seed(self.seed, epoch, index), pixels_HW3, boxes, labels)
        size = (record.height, record.width)
        return image, {"boxes": boxes, "labels": labels, "index": index, "image_id": record.id, "size": size}

    def _pixels(self, record: ImageRecord) -> Pixels:
        try:
            return np.asarray(open_image(self.folder, record))
        except ImageProblem as problem:
            raise TrainingFailure("dataset_invalid", f"{problem.code}: {problem.detail}") from problem

    def _targets(self, index: int) -> tuple[Tensor, Tensor]:
        part = slice(int(self._offsets_I[index]), int(self._offsets_I[index + 1]))
        return self._boxes_B4[part].clone(), self._labels_B[part].clone()


def _read(split: SplitPaths, classes: list[str] | None, data: DataSpec) -> CocoFile:
    try:
        coco = read_coco(split.annotations, classes)
    except DatasetError as error:
        raise TrainingFailure("dataset_invalid", str(error)) from error
    refused = coco.problems.report(UNUSABLE_BOXES)
    if refused and data.invalid_boxes == "refuse":
        found = "; ".join(str(problem) for problem in refused)
        detail = f"{split.annotations} has boxes that cannot be used, and data.invalid_boxes is `refuse`: {found}"
        raise TrainingFailure("dataset_invalid", detail)
    return coco
