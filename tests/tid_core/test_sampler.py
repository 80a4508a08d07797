"""Batches are a function of (seed, epoch), and an epoch can be entered anywhere."""

import pytest

from tid_core.data.sampler import EpochSampler


def test_an_epoch_holds_each_image_at_most_once_and_only_full_batches() -> None:
    batches = list(EpochSampler(23, 5, seed=3, epoch=2))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    positions = [position for batch in batches for position in batch]
    assert {epoch for epoch, _ in positions} == {2}
    assert len({index for _, index in positions}) == 20


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(index for batch in EpochSampler(50, 10, seed=seed, epoch=epoch) for _, index in batch)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4
    assert list(EpochSampler(50, 10, seed=1, epoch=1)) == list(EpochSampler(50, 10, seed=1, epoch=1))


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have(start: int) -> None:
    rest = EpochSampler(23, 5, seed=3, epoch=2, start_batch=start)
    assert list(rest) == list(EpochSampler(23, 5, seed=3, epoch=2))[start:]
    assert len(rest) == 4 - start


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    (batch,) = EpochSampler(3, 16)
    assert sorted(batch) == [(0, 0), (0, 1), (0, 2)]


def test_evaluation_takes_every_image_in_order() -> None:
    batches = list(EpochSampler(7, 3, shuffle=False))
    assert [[index for _, index in batch] for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_start_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="start_batch is 5, but an epoch has 4 batches"):
        EpochSampler(23, 5, start_batch=5)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_each_batch_and_the_batches_stay_the_same(world: int) -> None:
    alone = list(EpochSampler(23, 5, seed=3, epoch=2, start_batch=1))
    shares = [list(EpochSampler(23, 5, seed=3, epoch=2, start_batch=1, rank=r, world=world)) for r in range(world)]
    together = [[position for share in parts for position in share] for parts in zip(*shares, strict=True)]
    assert together == alone
    sizes = {len(share) for rank in shares for share in rank}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_evaluate_every_image_once(world: int) -> None:
    alone = list(EpochSampler(7, 3, shuffle=False))
    for rank in range(world):
        sampler = EpochSampler(7, 3, shuffle=False, rank=rank, world=world)
        assert list(sampler) == alone[rank::world]
        assert len(sampler) == len(alone[rank::world])


@pytest.mark.parametrize(("images", "batch"), [(3, 16), (23, 3)])
def test_more_ranks_than_images_in_a_batch_are_refused(images: int, batch: int) -> None:
    with pytest.raises(ValueError, match="a batch of 3 images is too small for 4 ranks"):
        EpochSampler(images, batch, rank=0, world=4)
