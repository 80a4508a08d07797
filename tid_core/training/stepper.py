"""One optimiser step: forward and backward of every micro-batch, guards, update."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection.image_list import ImageList

from tid_core.data.loader import Batch, to_device
from tid_core.detectors.outputs import DenseOutputs
from tid_core.distillers import schedule_weight
from tid_core.ranks import rank
from tid_core.spec import JobSpec
from tid_core.training.cost import TeacherClock
from tid_core.training.gradients import gradient_norm_of, probe_parameters
from tid_core.training.guards import DistillationGuard
from tid_core.training.optim import gradient_norm, learning_rate, set_learning_rate
from tid_core.training.precision import Precision
from tid_core.training.randomness import seed_all
from tid_core.training.setup import Parts
from tid_core.training.shared import average, average_gradients, running_statistics
from tid_core.training.state import Live
from tid_core.training.step import StepLosses
from tid_core.training.teacher_cache import TeacherCache


class Stepper:
    def __init__(
        self, parts: Parts, live: Live, spec: JobSpec, precision: Precision, cache: TeacherCache | None = None
    ) -> None:
        self.parts = parts
        self.live = live
        self.spec = spec
        self.on_cpu = precision.device.type == "cpu"
        self.device = precision.device
        self.module = average_gradients(parts.module, self.device)
        self.statistics = running_statistics(parts.module)
        self.parameters = [p for p in parts.module.parameters() if p.requires_grad]
        self.probes = probe_parameters(parts.student)
        distils = parts.module.distiller is not None and spec.loss.distill > 0
        self.guard = DistillationGuard(self.probes) if distils else None
        self.clock = TeacherClock(self.device)
        self.cache = cache
        self.lr = 0.0
        """Of the step taken last."""

    def __call__(self, batch: Batch, *, measure: bool) -> None:
        """Take one step on `batch`, and note its scalars in the window; `measure` adds the ratio of gradients.

        Raises:
            TrainingFailure: `non_finite_loss` (on a GPU possibly some steps late), `distillation_inactive`.
        """
        position, window = self.live.position, self.live.window
        training = self.spec.training
        # Every rank draws sizes of its own for its images.
        seed_all(training.seed, "step", position.step, *([rank()] if rank() else []))
        self.lr = learning_rate(training, step=position.step, total_steps=self.parts.total_steps)
        set_learning_rate(self.live.optimizer, self.lr)
        terms, measures = self._accumulate(batch, measure=measure)
        window.append(position.step + 1, terms, measures)
        if self.on_cpu or (self.guard is not None and self.guard.watching):
            window.check()
        self._update()
        self.clock.step_done()
        position.step += 1

    def _accumulate(self, batch: Batch, *, measure: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the mean over `batch`; the means of its terms and measures."""
        step, total = self.live.position.step, self.parts.total_steps
        weight = schedule_weight(self.spec.loss, step, total)
        if self.parts.module.distiller is not None:
            self.parts.module.distiller.progress = step / max(total, 1)
        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        for micro_batch, share, is_last in self._micro_batches(batch):
            with nullcontext() if is_last else self._apart():
                losses = self._forward(micro_batch, weight)
                if is_last and losses.distill is not None:
                    measures |= self._look(losses, losses.distill, weight, measure=measure)
                self.live.scaler.scale(losses.total * share).backward()  # type: ignore[no-untyped-call]
            _add(terms, losses.terms, share)
            _add(measures, losses.measures, share)
        return terms, measures

    def _apart(self) -> AbstractContextManager[None]:
        """Backward passes in it leave each rank its own gradients."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float, bool]]:
        images, targets = batch
        size = math.ceil(len(images) / self.spec.training.accumulate)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield (images[part], targets[part]), len(images[part]) / len(images), start + size >= len(images)

    def _forward(self, batch: Batch, weight: float) -> StepLosses:
        with torch.no_grad():
            images, targets = self.parts.student.transform(*to_device(batch, self.device))
        losses: StepLosses = self.module(images, targets, self._teach(images, batch), weight)
        return losses

    def _teach(self, images: ImageList, batch: Batch) -> DenseOutputs | None:
        if self.parts.teacher is None or self.parts.module.distiller is None:
            return None
        with self.clock.teaching():
            return self.cache(images, batch[0]) if self.cache is not None else self.parts.teacher(images)

    def _look(self, losses: StepLosses, distill: Tensor, weight: float, *, measure: bool) -> dict[str, Tensor]:
        """Guard and gradient ratio, while the graph is there."""
        scale = self.live.scaler.scale
        if self.guard is not None:
            names = {name: value for name, value in losses.terms.items() if name.startswith("distill/")}
            is_last_step = self.live.position.step + 1 == self.parts.total_steps
            self.guard.observe(names, scale(distill), last=is_last_step)
        if not measure:
            return {}
        factor = self.live.scaler.get_scale()
        of_task = gradient_norm_of(scale(losses.task), self.probes) / factor
        of_distill = gradient_norm_of(scale(weight * distill), self.probes) / factor
        return {"grad/task": of_task, "grad/distill": of_distill, "grad/distill_ratio": of_distill / of_task}

    def _update(self) -> None:
        live, max_norm = self.live, self.spec.training.clip_grad_norm
        live.scaler.unscale_(live.optimizer)
        norm = gradient_norm(self.parameters, max_norm=max_norm)
        live.scaler.step(live.optimizer)
        live.scaler.update()
        live.optimizer.zero_grad()
        average(self.statistics)
        if live.ema is not None:
            live.ema.update(self.parts.student)
        # With loss scaling an overflow is ordinary: the scaler skips the step.
        finite = {} if live.scaler.is_enabled() else {"grad/norm": norm}
        live.window.append(live.position.step + 1, finite, {"grad/norm": norm} if live.scaler.is_enabled() else {})


def _add(sums: dict[str, Tensor], values: dict[str, Tensor], share: float) -> None:
    for name, value in values.items():
        part = value.detach() * share
        sums[name] = sums[name] + part if name in sums else part
