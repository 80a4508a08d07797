"""CWD: each channel of the student looks where the teacher's does.

Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv 2011.13256. The softmax
over the points i of an image's level turns each channel c into a distribution of where it looks; the loss of a level is

    tau^2 / C * sum over c of KL(softmax_i(F_T / tau) || softmax_i(F_S / tau)),

a mean over the images. It is the published loss, a mean over channels already, and so 10, the weight published for
detectors, is the default. The softmax is over the valid points instead of the whole map, and an image without any on a
level is not counted there. [ours] A distribution depends on the scale of the features: where they hardly vary it is
flat and there is little to learn. `standardise` puts that right. [ours]

N images, C channels, H and W a level's grid, P the points of a level.
"""

import torch
from torch import Tensor

from tid_core.catalogue import DetectorInfo
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers.base import Distiller, DistillResult, check_outputs
from tid_core.distillers.context import NOWHERE
from tid_core.distillers.distances import standardise
from tid_core.distillers.means import level_result, weighted_means
from tid_core.methods import CwdSpec
from tid_core.spec import JobSpec
from tid_core.truth import Targets


class CwdDistiller(Distiller):
    """Sum over levels of weight * mean over images and channels of the divergence of where they look."""

    def __init__(self, cwd: CwdSpec, *, student: DetectorInfo, teacher: DetectorInfo) -> None:
        super().__init__(student, teacher)
        self.cwd = cwd

    def forward(self, student: DenseOutputs, teacher: DenseOutputs, targets: Targets) -> DistillResult:  # noqa: ARG002
        """One term, `distill/features`; metrics: its part of each level (`distill/features/p3` ...)."""
        check_outputs(student, teacher, classes=False)
        adapted = self.adapt(student.features)
        with torch.autocast(student.features[0].device.type, enabled=False):
            levels = zip(adapted, teacher.features, student.valid, strict=True)
            divergences = [self._divergence(s.float(), t.detach().float(), v) for s, t, v in levels]
            seen = [v_NHW.flatten(1).any(dim=1) for v_NHW in student.valid]
            return level_result({"features": self.cwd.weight * weighted_means(divergences, seen)}, student.strides)

    def _divergence(self, student_NCHW: Tensor, teacher_NCHW: Tensor, valid_NHW: Tensor) -> Tensor:
        """tau^2 * KL, the mean over the channels, (N,)."""
        if self.cwd.standardise:
            student_NCHW = standardise(student_NCHW, valid_NHW)
            teacher_NCHW = standardise(teacher_NCHW, valid_NHW)
        student_NCP, teacher_NCP = (
            (f_NCHW / self.cwd.temperature).masked_fill(~valid_NHW[:, None], NOWHERE).flatten(2).log_softmax(dim=2)
            for f_NCHW in (student_NCHW, teacher_NCHW)
        )
        divergence_NC = (teacher_NCP.exp() * (teacher_NCP - student_NCP)).sum(dim=2)
        return self.cwd.temperature**2 * divergence_NC.mean(dim=1)


def build(spec: JobSpec, student: DenseDetector, teacher: DenseDetector) -> CwdDistiller:
    return CwdDistiller(spec.cwd or CwdSpec(), student=student.info, teacher=teacher.info)
