"""What a sweep compares is fair: at the first step the jobs of a seed have the same student and the same pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tid_core.data.loader import EpochLoader
from tid_core.distillers import BUILDERS
from tid_core.plan import RunPlan
from tid_core.sweep import SweepJob, SweepSpec, expand
from tid_core.training.precision import choose_precision
from tid_core.training.setup import Parts, build_parts

# ld wants distributions of sides, which FCOS has not.
METHODS = [name for name in BUILDERS if name != "ld"]


def jobs_of(plan: RunPlan, axes: dict[str, Any]) -> list[SweepJob]:
    base = plan.spec.model_dump(mode="json", exclude={"name", "baseline", "method"})
    return expand(SweepSpec.model_validate({"name": "fair", "base": base, "axes": axes}))


def parts_of(plan: RunPlan, job: SweepJob) -> Parts:
    teacher = plan.teacher if job.spec.teacher is not None else None
    own = plan.model_copy(update={"spec": job.spec, "teacher": teacher})
    return build_parts(own, choose_precision(job.spec.training, gpus=0), lambda event: None)


def weights_of(parts: Parts) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in parts.student.state_dict().items()}


def first_batches(parts: Parts) -> list[Tensor]:
    """Pictures, boxes and labels of two batches of the first epoch and two of the second."""
    loader = EpochLoader(parts.train, batch_size=4, workers=0, pin_memory=False)
    found = []
    for epoch in (0, 1):
        for _, (images, targets) in zip(range(2), loader.epoch(epoch), strict=False):
            found += [*images, *(target[key] for target in targets for key in ("boxes", "labels"))]
    return found


@pytest.mark.parametrize("start", [{}, {"inherit": ["neck"]}], ids=["scratch", "inherited"])
def test_whatever_the_method_student_and_batches_begin_alike(
    make_plan: Callable[..., RunPlan], start: dict[str, Any], tmp_path: Path
) -> None:
    plan = make_plan(student=start, data={"min_size": [48, 64], "photometric": 0.5, "scale_jitter": [0.8, 1.2]})
    axes = {"method": [*METHODS, ["tid", "fitnet"]], "training.seed": [0, 1]}
    of_seed: dict[int, tuple[dict[str, Tensor], list[Tensor]]] = {}
    jobs = jobs_of(plan, axes)
    assert len(jobs) == 2 * (len(METHODS) + 2)
    for job in jobs:
        parts = parts_of(plan, job)
        assert (parts.teacher is not None) == (job.role == "point" or bool(start))
        weights, batches = weights_of(parts), first_batches(parts)
        expected = of_seed.setdefault(job.spec.training.seed, (weights, batches))
        assert weights.keys() == expected[0].keys()
        assert all(torch.equal(value, expected[0][name]) for name, value in weights.items()), job.spec.name
        assert len(batches) == len(expected[1])
        assert all(torch.equal(one, other) for one, other in zip(batches, expected[1], strict=True)), job.spec.name
    (one, first), (other, second) = of_seed.values()
    assert not all(torch.equal(value, other[name]) for name, value in one.items()), "a seed is another student"
    assert not all(
        left.shape == right.shape and torch.equal(left, right) for left, right in zip(first, second, strict=False)
    ), "and another order of the pictures"
