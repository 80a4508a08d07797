"""A detector over a whole split."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from tid_core.data.coco import CocoDetection
from tid_core.data.loader import make_loader, to_device
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.training.precision import Precision

Detections = list[dict[str, Tensor]]


class StopRequested(Exception):
    """Asked to stop in the middle of something that can be done again."""


@dataclass(frozen=True)
class Inference:
    """How to run a detector over `dataset`; `tick(done, total)` hears of every batch of images."""

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
        """Detections per image, in the order of the dataset, on the CPU.

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
        found: Detections = []
        loader = make_loader(self.dataset, batch_size=self.batch_size, workers=self.workers)
        for batch in loader:
            if self.should_stop():
                raise StopRequested
            pictures, targets = to_device(batch, self.precision.device)
            images, _ = detector.transform(pictures)
            with self.precision.autocast():
                outputs = forward(images)
            detections = detector.detections(outputs, images, [target["size"] for target in targets])
            found += [{key: value.cpu() for key, value in each.items()} for each in detections]
            tick(len(found), len(self.dataset))
        return found
