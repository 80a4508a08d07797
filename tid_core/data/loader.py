"""Batches of one epoch, loaded in this process or in workers, with the same content either way."""

import atexit
import os
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tid_core.data.coco import CocoDetection
from tid_core.data.packing import Batch, Failed, Packed, Told, collate, unpack
from tid_core.data.sampler import EpochSampler
from tid_core.events import TrainingFailure
from tid_core.lifetime import die_with_parent

__all__ = ["Batch", "EpochLoader", "Loader", "make_loader", "to_device"]

PREFETCH = 2
"""Batches that each worker keeps ready."""


class EpochLoader:
    """Epoch after epoch of a dataset, loaded by processes that live as long as this object, or until `close`.

    What a batch holds depends on the dataset, its seed, the epoch and the batch's number alone: not on `workers`, on
    where an epoch was entered or on what was loaded before.

    Args:
        batch_size: images of a batch over all ranks.
        rank: which of `world` slices of each batch is loaded here.
        parts: in which a batch is worked off; each is sliced.

    Raises:
        ValueError: the dataset or the batch is too small for `world` ranks.
    """

    def __init__(
        self,
        dataset: CocoDetection,
        *,
        batch_size: int,
        workers: int,
        pin_memory: bool,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        self._dataset = dataset
        self._options = {"batch_size": batch_size, "rank": rank, "world": world, "parts": parts}
        self._workers = workers
        self._pin_memory = pin_memory
        self._batches = _Batches(self._sampler(0, 0))
        self._loader: DataLoader[Any] | None = None
        self._loading: Iterator[Any] | None = None

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """This rank's share of the batches of `epoch`, from `start_batch` on; an earlier epoch ends here.

        Loading starts at once. Iterating raises:
            TrainingFailure: `dataset_invalid`, naming the image that cannot be read.
        """
        self._batches.sampler = self._sampler(epoch, start_batch)
        if self._loader is None:
            self._loader = _data_loader(
                self._dataset, self._batches, self._workers, self._pin_memory, persistent=self._workers > 0
            )
        self._loading = _start(self._loader)
        return _told(self._loading)

    def close(self) -> None:
        """End the loader processes. A later epoch would start new ones."""
        _end(self._loading)
        self._loader = self._loading = None

    def _sampler(self, epoch: int, start_batch: int) -> EpochSampler:
        dataset = self._dataset
        return EpochSampler(
            len(dataset),
            seed=dataset.seed,
            epoch=epoch,
            start_batch=start_batch,
            shuffle=dataset.train,
            **self._options,
        )


class _Batches:
    """The batches of the current epoch, asked for in the main process: a DataLoader keeps its batch sampler for life,
    and its workers hear only of the positions to load."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def make_loader(
    dataset: CocoDetection,
    *,
    batch_size: int,
    epoch: int = 0,
    start_batch: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world: int = 1,
) -> "Loader":
    """Batches of `dataset` in one `epoch`, from `start_batch` on: shuffled for training, in order without.

    A training epoch leaves out its last, incomplete batch, unless it is the only one. See EpochSampler for what
    `rank` gets.
    """
    sampler = EpochSampler(
        len(dataset),
        batch_size,
        seed=dataset.seed,
        epoch=epoch,
        start_batch=start_batch,
        shuffle=dataset.train,
        rank=rank,
        world=world,
    )
    return Loader(dataset, sampler, workers=workers, pin_memory=pin_memory)


class Loader:
    """Iterates over `(images, targets)`: a list of (3, H, W) uint8 tensors and one of targets, see CocoDetection.

    Its processes, if any, live as long as an iteration. Raises (while iterating):
        TrainingFailure: `dataset_invalid`, naming the image that cannot be read.
    """

    def __init__(self, dataset: CocoDetection, sampler: EpochSampler, *, workers: int, pin_memory: bool) -> None:
        self.sampler = sampler
        self._loader = _data_loader(dataset, sampler, workers, pin_memory, persistent=False)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        loading = _start(self._loader)
        try:
            yield from _told(loading)
        finally:
            _end(loading)


def _data_loader(
    dataset: CocoDetection, batches: Any, workers: int, pin_memory: bool, *, persistent: bool
) -> "DataLoader[Any]":
    return DataLoader(
        Told(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=persistent,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_live_with_the_run,
        # Its own generator, as otherwise each epoch would draw from the process's.
        generator=torch.Generator(),
    )


_LOADING: weakref.WeakSet[Iterator[Any]] = weakref.WeakSet()


def _start(loader: "DataLoader[Any]") -> Iterator[Any]:
    loading = iter(loader)
    if loader.num_workers:
        _LOADING.add(loading)
    return loading


def _end(loading: Iterator[Any] | None) -> None:
    """End its loader processes, if any. DataLoader has no public way to do so, and dropping it is not enough: a
    traceback holds on to it where a batch failed."""
    shut_down = getattr(loading, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()


@atexit.register  # runs before multiprocessing's own clean-up, which would wait for ever for processes deaf to SIGTERM
def _end_all() -> None:
    for loading in list(_LOADING):
        _end(loading)


def _told(batches: "Iterator[Batch | Packed | Failed]") -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, Failed):
            raise TrainingFailure(batch.reason, batch.detail)
        yield unpack(batch) if isinstance(batch, Packed) else batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Images as float32 in 0..1, boxes and labels, on `device`; the rest of the targets as it was."""
    images, targets = batch
    moved = [image.to(device, non_blocking=True).float().div_(255) for image in images]
    return moved, [
        {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in target.items()}
        for target in targets
    ]


def _live_with_the_run(_worker: int) -> None:
    """Ctrl-C and service managers signal the whole group: were the loaders to die of it, the run could not end its
    step and save. They end with the run, at once: by themselves they look for it every five seconds."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(os.getppid())
