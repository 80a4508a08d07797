"""A detector over a whole split."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from tid_core.data.coco import CocoDetection
from tid_core.data.loader import Batch, make_loader, to_device
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.ranks import gather, num_ranks, rank
from tid_core.training.precision import Precision

Detections = list[dict[str, Tensor]]


class StopRequested(Exception):
    """Asked to stop in the middle of something that can be done again."""


@dataclass(frozen=True)
class Inference:
    """How to run a detector over `dataset`; `tick(done, total)` hears of every batch of images.

    Several ranks share the batches.
    """

    dataset: CocoDetection
    batch_size: int
    workers: int
    precision: Precision
    should_stop: Callable[[], bool]

    @torch.no_grad()
    def __call__(
        self,
        detector: DenseDetector,
        forward: Callable[[ImageList], DenseOutputs],
        tick: Callable[[int, int], None],
    ) -> Detections:
        """Detections per image, in the order of the dataset, on the CPU; nothing on ranks other than the first.

        Args:
            detector: whose transform and post-processing are used; put in eval mode and back.
            forward: its dense forward, or one that selects classes behind it.

        Raises:
            StopRequested: `should_stop` said so.
            TrainingFailure: `dataset_invalid`: an image cannot be read.
        """
        was_training = detector.training
        detector.eval()
        try:
            return self._run(detector, forward, tick)
        finally:
            detector.train(was_training)

    def _run(
        self,
        detector: DenseDetector,
        forward: Callable[[ImageList], DenseOutputs],
        tick: Callable[[int, int], None],
    ) -> Detections:
        found: list[tuple[int, dict[str, Tensor]]] = []
        for batch in self._share():
            if self.should_stop():
                raise StopRequested
            if batch is not None:
                found += self._look(batch, detector, forward)
            tick(min(len(found) * num_ranks(), len(self.dataset)), len(self.dataset))
        everything = dict(gather(found))
        return [everything[index] for index in range(len(self.dataset))] if rank() == 0 else []

    def _share(self) -> Iterator[Batch | None]:
        """This rank's batches, and None where others have one more: all ask as often whether to stop."""
        batches = iter(
            make_loader(
                self.dataset,
                batch_size=self.batch_size,
                workers=self.workers,
                pin_memory=self.precision.device.type == "cuda",
                rank=rank(),
                world=num_ranks(),
            )
        )
        for _ in range(math.ceil(len(self.dataset) / (self.batch_size * num_ranks()))):
            yield next(batches, None)

    def _look(
        self, batch: Batch, detector: DenseDetector, forward: Callable[[ImageList], DenseOutputs]
    ) -> list[tuple[int, dict[str, Tensor]]]:
        """Each image's place in the dataset, and its detections."""
        pictures, targets = to_device(batch, self.precision.device)
        images, _ = detector.transform(pictures)
        with self.precision.autocast():
            outputs = forward(images)
        detections = detector.detections(outputs, images, [target["size"] for target in targets])
        on_cpu = [{key: value.cpu() for key, value in each.items()} for each in detections]
        return [(target["index"], each) for target, each in zip(targets, on_cpu, strict=True)]
