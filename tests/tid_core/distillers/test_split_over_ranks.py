"""A batch split over two ranks teaches as the whole does: the mean of their losses and of their gradients is the same.

Two real processes meet once and run every case; a new entry of BUILDERS is a case by itself.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tid_core.distillers.one_rank import attempt
from tests.tid_core.distillers.real_batch import Batch, build_batch, build_method, build_pair, part
from tid_core.distillers import BUILDERS

# Further settings that are worth a case; by default a method is tried as it is.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "tid": [{}, {"norm": "global_mean", "distance": "standardised_mse"}, {"norm": "batch_sum", "distance": "mse"}],
    "fitnet": [{}, {"distance": "mse"}],
    "tar": [{}, {"adaptive": False, "box_distance": "smooth_l1", "distance": "mse"}],
    "cwd": [{}, {"standardise": True}],
    "mgd": [{"hidden": 0.0}],  # each rank draws masks of its own
}
# Why the statement does not hold for a method at all.
NOT_SPLIT: dict[str, str] = {}
CASES = [
    (name, settings) for name in sorted(BUILDERS) if name not in NOT_SPLIT for settings in SETTINGS.get(name, [{}])
]
ROOT = Path(__file__).parents[3]
SHARES = ([0], [1, 2, 3])


def _input(batch: Batch, distillers: list[Any]) -> dict[str, Any]:
    return {"student": batch.student, "teacher": batch.teacher, "targets": batch.targets, "distillers": distillers}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What the whole batch gives, and each of the ranks; by case."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ranks")
    pair = build_pair()
    batch, distillers = build_batch(pair), [build_method(pair, name, **settings) for name, settings in CASES]
    for rank, share in enumerate(SHARES):
        torch.save(_input(part(batch, share), distillers), folder / f"in{rank}.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("one_rank.py")
    ranks = [subprocess.Popen([sys.executable, script, folder, str(rank)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    shared = [torch.load(folder / f"out{rank}.pt") for rank in range(2)]
    return [attempt(_input(batch, distillers)), *shared]


def _assert_mean(whole: dict[str, Tensor | None], shares: list[dict[str, Tensor | None]], name: str) -> None:
    expected, parts = whole[name], [share[name] for share in shares]
    if expected is None:
        assert parts == [None, None], name
        return
    given = [part for part in parts if part is not None]
    assert len(given) == 2, name
    _assert_close((given[0] + given[1]) / 2, expected)


def _assert_close(found: Tensor, expected: Tensor) -> None:
    """Up to what sums in another order make of the largest entry."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=max(1e-7, 1e-6 * float(expected.abs().max())))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(map(str, case)) for case in CASES])
def test_split_over_ranks_does_not_count(found: list[list[dict[str, Any]]], case: int) -> None:
    whole, *shares = (one[case] for one in found)
    for kind in ("terms", "layers"):
        for name in whole[kind]:
            _assert_mean(whole[kind], [share[kind] for share in shares], name)
    for name, expected in whole["given"].items():
        pieces = [share["given"][name] for share in shares]
        if expected is None:
            assert pieces == [None, None]
        else:
            _assert_close(torch.cat(pieces) / 2, expected)
