"""Before a run keeps its teacher's outputs: how much room they will take, and whether there is as much."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.models.detection.image_list import ImageList

from tid_core.data.coco import CocoDetection
from tid_core.data.sampler import EpochSampler
from tid_core.events import Reporter, TrainingFailure, Warned
from tid_core.ranks import is_first, num_ranks
from tid_core.spec import DataSpec, JobSpec
from tid_core.training.moulds import take_apart
from tid_core.training.setup import Parts
from tid_core.training.step import Teacher
from tid_core.training.teacher_cache import FOLDER, TeacherCache, identity_of

MOST_IMAGES = 2_000_000
"""Places in batches that the forecast looks at; a longer run repeats itself."""
PROBE = 128
"""Pixels: a side of the image that tells how much there is to keep for each location."""
_OVERHEAD = 2048
"""Bytes of a file beside its tensors."""


class Forecast(NamedTuple):
    num_bytes: int
    """Of all entries at the end of the run."""
    hit_share: float
    """Part of the images of all steps that need not be computed."""


class _Entry(NamedTuple):
    image: int
    height: int
    width: int
    """Padded."""
    images: int
    """Of the forward."""


def open_cache(parts: Parts, spec: JobSpec, out_dir: Path, report: Reporter) -> TeacherCache | None:
    """The cache of a run, if it wants one; what it will take is told as the warning `teacher_cache`.

    Raises:
        TrainingFailure: `disk_full`: there is not as much room.
    """
    teacher = parts.teacher
    if spec.teacher is None or not spec.teacher.cache or teacher is None or parts.module.distiller is None:
        return None

    def warn(code: str, detail: str) -> None:
        report(Warned(code=code, detail=detail))

    identity = identity_of(teacher, channels_last=spec.training.channels_last)
    cache = TeacherCache(teacher, out_dir / FOLDER, identity, warn)
    if is_first():
        cache.delete(others_only=True)
        expected = forecast(parts.train, teacher, spec)
        _see_to_room(expected, cache, out_dir)
        told = f"the teacher's outputs will take about {_size(expected.num_bytes)} on disk until the run ends"
        warn("teacher_cache", f"{told}, and spare about {expected.hit_share:.0%} of its forwards")
    return cache


def forecast(train: CocoDetection, teacher: Teacher, spec: JobSpec) -> Forecast:
    """From the sizes of the images and the order in which the run will take them."""
    sizes = [_resized(train.record(i).height, train.record(i).width, spec.data) for i in range(len(train))]
    epochs = min(spec.training.epochs, max(2, MOST_IMAGES // len(train)))
    seen: set[_Entry] = set()
    looked = hits = 0
    for forward in _forwards(train, spec, epochs):
        height, width = (math.ceil(max(sizes[i][side] for i in forward) / 32) * 32 for side in (0, 1))
        entries = {_Entry(i, height, width, len(forward)) for i in forward}
        looked += len(forward)
        hits += len(forward) if entries <= seen else 0
        seen |= entries
    per_location = _bytes_per_location(teacher)
    strides = teacher.detector.info.strides
    num_bytes = sum(per_location * _locations(entry.height, entry.width, strides) + _OVERHEAD for entry in seen)
    return Forecast(round(num_bytes), hits / max(looked, 1))


def _forwards(train: CocoDetection, spec: JobSpec, epochs: int) -> Iterator[list[int]]:
    """The images of every forward of the run, of all ranks."""
    training = spec.training
    for epoch in range(epochs):
        for rank in range(num_ranks()):
            batches = EpochSampler(
                len(train),
                training.batch_size,
                seed=train.seed,
                epoch=epoch,
                rank=rank,
                world=num_ranks(),
                parts=training.accumulate,
            )
            for batch in batches:
                size = math.ceil(len(batch) / training.accumulate)
                yield from ([i for _, i in batch[start : start + size]] for start in range(0, len(batch), size))


def _resized(height: int, width: int, data: DataSpec) -> tuple[int, int]:
    scale = min(data.min_size[-1] / min(height, width), data.max_size / max(height, width))
    return math.floor(height * scale), math.floor(width * scale)


def _locations(height: int, width: int, strides: tuple[int, ...]) -> int:
    return sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in strides)


def _bytes_per_location(teacher: Teacher) -> float:
    empty = torch.zeros(1, 3, PROBE, PROBE, device=teacher.precision.device)
    outputs = teacher(ImageList(empty, [(PROBE, PROBE)]))
    (parts,) = take_apart(outputs)
    return sum(part.numel() * part.element_size() for part in parts) / sum(h * w for h, w in outputs.grid)


def _see_to_room(expected: Forecast, cache: TeacherCache, out_dir: Path) -> None:
    needed = expected.num_bytes - cache.bytes_on_disk()
    out_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out_dir).free
    if needed > free:
        raise TrainingFailure(
            "disk_full",
            f"teacher.cache would write about {_size(needed)} to {out_dir}, which has {_size(free)} left; make room, "
            "lower data.min_size, or set teacher.cache: false",
        )


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
