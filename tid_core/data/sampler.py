"""Which images make which batch: a function of (seed, epoch) alone, so a run can stop and go on anywhere."""

from collections.abc import Iterator

import torch

from tid_core.data.transforms import sample_seed


class EpochSampler:
    """Batches of (epoch, index) of one epoch, from batch `start_batch` on; of each, what belongs to `rank`.

    Shuffled (training), the batches are the same whatever `world` is, and a rank gets its contiguous slice of each; of
    each of its `parts`, where a batch is worked off in several, so that these hold the same images, too.
    The last, incomplete batch is left out, unless it is the only one. With `shuffle=False` (evaluation) the order is
    0, 1, 2, ..., every image comes up once, and rank r gets the batches r, r + world, ... whole.

    Raises:
        ValueError: `start_batch` lies beyond the epoch, or a batch has too few images for every rank to get one.
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
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.parts = parts
        self.batches_per_epoch = num_batches(num_images, batch_size, drop_last=shuffle)
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(f"start_batch is {start_batch}, but an epoch has {self.batches_per_epoch} batches")
        if shuffle and min(num_images, batch_size) < world:
            raise ValueError(f"a batch of {min(num_images, batch_size)} images is too small for {world} ranks")
        self.start_batch = start_batch

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        for batch in self._batches():
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in self._share(indices)]

    def _batches(self) -> range:
        if self.shuffle:
            return range(self.start_batch, self.batches_per_epoch)
        return range(self.start_batch + self.rank, self.batches_per_epoch, self.world)

    def _share(self, indices: list[int]) -> list[int]:
        if not self.shuffle:
            return indices
        size = -(-len(indices) // self.parts)
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        return [index for part in parts for index in self._slice(part)]

    def _slice(self, part: list[int]) -> list[int]:
        first, last = (len(part) * rank // self.world for rank in (self.rank, self.rank + 1))
        return part[first:last]

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
