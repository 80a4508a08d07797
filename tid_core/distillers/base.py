"""What every distillation method has in common.

N images, C channels, H and W a level's grid, V levels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from torch import Tensor, nn

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.outputs import DenseOutputs
from tid_core.truth import Targets


@dataclass(frozen=True)
class DistillResult:
    terms: dict[str, Tensor]
    """Named parts of the loss, weighted against each other; their sum still wants `schedule_weight`. In a run over
    several ranks the mean over the ranks is the loss of the whole batch, which is what averaging gradients needs."""
    metrics: dict[str, Tensor]
    """Scalars to log, without gradient."""

    @property
    def total(self) -> Tensor:
        return sum(self.terms.values(), start=next(iter(self.terms.values())).new_zeros(()))


class Distiller(nn.Module, ABC):
    """A loss that makes the student imitate the teacher, with the layers it needs; none of it is exported.

    Where the channel counts differ, each level has its own 1x1 convolution from the student's channels to the
    teacher's: the levels come from different layers and need not agree in what a channel means.

    Raises:
        ValueError: the two do not have the same strides.
    """

    progress: float = 0.0
    """How much of the run is done, 0..1, for losses that change over it; the training sets it before each step."""
    tap: int | None = None
    """Where, if at all, the loss looks into the heads: what `build_distiller` sets as the `tap` of both detectors."""
    class_index_K: Tensor | None = None
    """The student's classes among the teacher's own outputs; None = the same. For losses that run its head."""

    def __init__(self, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__()
        if student.strides != teacher.strides:
            raise ValueError(
                f"student {student.name} has levels of strides {list(student.strides)}, teacher {teacher.name} "
                f"{list(teacher.strides)}; choose two detectors with the same strides"
            )
        same = student.channels == teacher.channels
        self.adapters = nn.ModuleList(
            nn.Identity() if same else nn.Conv2d(student.channels, teacher.channels, kernel_size=1)
            for _ in student.strides
        )

    @abstractmethod
    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """The loss of one batch.

        Args:
            student: in training, with gradient.
            teacher: of the same images; its logits, where the method reads them, in the student's order of classes.
            targets: per image `boxes` (M, 4) in pixels of the padded batch, `labels` (M,), optionally `iscrowd` (M,).

        Raises:
            ValueError: the outputs do not fit each other.
        """

    def adapt(self, features: list[Tensor]) -> list[Tensor]:
        """The student's levels with the teacher's channels."""
        return [adapter(feat_NCHW) for adapter, feat_NCHW in zip(self.adapters, features, strict=True)]


class CombinedDistiller(nn.Module):
    """Several methods added, each with the weight of its own section; terms and metrics carry the method's name.

    Each has adapters of its own: what one asks of them need not suit the other.
    """

    def __init__(self, parts: Mapping[str, Distiller]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    @property
    def progress(self) -> float:
        """As of `Distiller`, for all parts."""
        return next(iter(self.named().values())).progress

    @progress.setter
    def progress(self, done: float) -> None:
        for part in self.named().values():
            part.progress = done

    def named(self) -> dict[str, Distiller]:
        return {name: part for name, part in self.parts.items() if isinstance(part, Distiller)}

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:
        """Terms and metrics under `distill/` become `distill/METHOD/...`; other metrics keep their names."""
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for name, part in self.named().items():
            result: DistillResult = part(student, teacher, targets)
            terms |= {_within(name, term): value for term, value in result.terms.items()}
            metrics |= {_within(name, metric): value for metric, value in result.metrics.items()}
        return DistillResult(terms, metrics)


def _within(method: str, name: str) -> str:
    """distill/features of pkd: distill/pkd/features; areas/high/p3 stays."""
    return f"distill/{method}/{name.removeprefix('distill/')}" if name.startswith("distill/") else name


def check_outputs(student: DenseOutputs, teacher: DenseOutputs, *, classes: bool) -> None:
    """Raise ValueError unless both lie on one grid and, if asked, over the same number of classes."""
    if student.grid != teacher.grid:
        raise ValueError(
            f"the student's levels are {student.grid}, the teacher's {teacher.grid}; both must be given the same images"
        )
    num_student, num_teacher = student.logits_NLK.shape[-1], teacher.logits_NLK.shape[-1]
    if classes and num_student != num_teacher:
        raise ValueError(
            f"the student has {num_student} classes, the teacher's logits {num_teacher}; reorder the teacher's "
            "logits by class name first"
        )


def check_anchors(method: str, student: DetectorInfo, teacher: DetectorInfo) -> None:
    """Raise ValueError unless both have as many anchors at each location."""
    counts = student.anchors_per_location, teacher.anchors_per_location
    if counts[0] != counts[1]:
        raise ValueError(
            f"{method} compares anchor with anchor, but {student.name} has {counts[0]} at each location and "
            f"{teacher.name} {counts[1]}; choose two detectors with as many"
        )


def level_names(strides: list[int]) -> list[str]:
    """p3 for stride 8, p4 for stride 16, ..."""
    return [f"p{round(log2(stride))}" for stride in strides]
