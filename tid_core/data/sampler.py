"""Which images make which batch: a function of (seed, epoch) alone, so a run can stop and go on anywhere."""

from collections.abc import Iterator

import torch

from tid_core.data.transforms import sample_seed


class EpochSampler:
    """Batches of (epoch, index) of one epoch, from batch `start_batch` on.

    The last, incomplete batch is left out, unless it is the only one. With `shuffle=False` the order is 0, 1, 2, ...
    and every image comes up (evaluation).
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        self.batches_per_epoch = num_batches(num_images, batch_size, drop_last=shuffle)
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(f"start_batch is {start_batch}, but an epoch has {self.batches_per_epoch} batches")
        self.start_batch = start_batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        for batch in range(self.start_batch, self.batches_per_epoch):
            yield [(self.epoch, i) for i in order[batch * self.batch_size : (batch + 1) * self.batch_size]]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_images))
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        order: list[int] = torch.randperm(self.num_images, generator=generator).tolist()
        return order


def num_batches(num_images: int, batch_size: int, *, drop_last: bool = True) -> int:
    """Batches in an epoch; with `drop_last` only full ones, but at least one."""
    if drop_last:
        return max(1, num_images // batch_size)
    return -(-num_images // batch_size)
