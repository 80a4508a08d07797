"""Batches of one epoch, loaded in this process or in workers, with the same content either way."""

import math
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tid_core.data.coco import CocoDetection, Sample
from tid_core.data.sampler import EpochSampler
from tid_core.events import TrainingFailure

Batch = tuple[list[Tensor], list[dict[str, Any]]]
PREFETCH = 2
"""Batches that each worker keeps ready."""


def make_loader(
    dataset: CocoDetection,
    *,
    batch_size: int,
    epoch: int = 0,
    start_batch: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> "Loader":
    """Batches of `dataset` in `epoch`, from `start_batch` on: shuffled for training, in order without.

    A training epoch leaves out its last, incomplete batch, unless it is the only one.
    """
    sampler = EpochSampler(
        len(dataset), batch_size, seed=dataset.seed, epoch=epoch, start_batch=start_batch, shuffle=dataset.train
    )
    return Loader(dataset, sampler, workers=workers, pin_memory=pin_memory)


class Loader:
    """Iterates over `(images, targets)`: a list of (3, H, W) uint8 tensors and one of targets, see CocoDetection.

    Raises (while iterating):
        TrainingFailure: `dataset_invalid`, naming the image that cannot be read.
    """

    def __init__(self, dataset: CocoDetection, sampler: EpochSampler, *, workers: int, pin_memory: bool) -> None:
        self.sampler = sampler
        self._loader: DataLoader[Any] = DataLoader(
            _Told(dataset),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=_leave_signals_to_the_run,
            # Its own generator, as otherwise each epoch would draw from the process's.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, _Failed):
                raise TrainingFailure(batch.reason, batch.detail)
            yield _unpack(batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Images as float32 in 0..1, boxes and labels, on `device`; the rest of the targets as it was."""
    images, targets = batch
    moved = [image.to(device, non_blocking=True).float().div_(255) for image in images]
    return moved, [
        {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in target.items()}
        for target in targets
    ]


def _leave_signals_to_the_run(_worker: int) -> None:
    """Ctrl-C and service managers signal the whole group: were the loaders to die of it, the run could not end its
    step and save. They end with the run, which they watch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Failed:
    """A TrainingFailure on its way out of a worker; as an exception it would arrive as a bare RuntimeError."""

    def __init__(self, failure: TrainingFailure) -> None:
        self.reason = failure.reason
        self.detail = failure.detail


class _Told(torch.utils.data.Dataset[Any]):
    def __init__(self, dataset: CocoDetection) -> None:
        self.dataset = dataset

    def __getitem__(self, position: tuple[int, int]) -> Sample | _Failed:
        try:
            return self.dataset[position]
        except TrainingFailure as failure:
            return _Failed(failure)


class _Packed(NamedTuple):
    """A batch in three tensors, as each tensor of a worker holds a file descriptor until its batch is used."""

    pixels: Tensor
    shapes: list[torch.Size]
    boxes: Tensor
    labels: Tensor
    counts: list[int]
    others: list[dict[str, Any]]


def _collate(samples: list[Sample | _Failed]) -> _Packed | _Failed:
    images, targets = [], []
    for sample in samples:
        if isinstance(sample, _Failed):
            return sample
        images.append(sample[0])
        targets.append(sample[1])
    return _Packed(
        pixels=torch.cat([image.flatten() for image in images]),
        shapes=[image.shape for image in images],
        boxes=torch.cat([target["boxes"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]),
        counts=[len(target["labels"]) for target in targets],
        others=[{k: v for k, v in target.items() if k not in ("boxes", "labels")} for target in targets],
    )


def _unpack(packed: _Packed) -> Batch:
    pixels = torch.split(packed.pixels, [math.prod(shape) for shape in packed.shapes])
    images = [flat.view(*shape) for flat, shape in zip(pixels, packed.shapes, strict=True)]
    boxes, labels = torch.split(packed.boxes, packed.counts), torch.split(packed.labels, packed.counts)
    parts = zip(boxes, labels, packed.others, strict=True)
    return images, [{"boxes": boxes_M4, "labels": labels_M, **others} for boxes_M4, labels_M, others in parts]
