"""Evaluation of a run's student and teacher, and what is kept of the student."""

import time
from collections.abc import Callable

from torchvision.models.detection.image_list import ImageList

from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.error_breakdown import error_breakdown
from tid_core.evaluation import evaluate
from tid_core.events import Metrics, Reporter
from tid_core.plan import RunPlan
from tid_core.ranks import from_first, is_first
from tid_core.training.area_maps import AreaMaps
from tid_core.training.inference import Detections, Inference
from tid_core.training.precision import Precision
from tid_core.training.products import error_values, evaluation_values, write_checkpoint, write_detections
from tid_core.training.room import Room
from tid_core.training.setup import Parts
from tid_core.training.state import Best, Live
from tid_core.training.voice import Phase, Voice


class Examiner:
    """Of several ranks, all run the detectors and come to the same conclusions; the first computes and writes."""

    def __init__(
        self,
        plan: RunPlan,
        parts: Parts,
        live: Live,
        precision: Precision,
        voice: Voice,
        room: Room,
        should_stop: Callable[[], bool],
    ) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.parts = parts
        self.position = live.position
        self.precision = precision
        self.voice = voice
        self.room = room
        self.report: Reporter = voice.report
        self.shown: DenseDetector = live.ema.average if live.ema else parts.student
        """The student that is evaluated and exported."""
        evaluation = plan.spec.evaluation
        self._infer = Inference(parts.val, evaluation.batch_size, plan.spec.data.workers, precision, should_stop)
        self._maps = AreaMaps(plan, parts, precision, voice.report)
        self._best_detections: Detections | None = None

    def export_best(self) -> None:
        """Of a resumed run: its files may lie on another machine, or be of a past that was gone back from."""
        best = self.position.best
        if best is None:
            return
        now = {key: value.clone() for key, value in self.shown.model.state_dict().items()}
        self.shown.model.load_state_dict(best.weights)
        self._checkpoint("best", best.step, best.epoch, best.values)
        self.shown.model.load_state_dict(now)

    def evaluate_teacher(self) -> None:
        teacher = self.parts.teacher
        if teacher is None or not self.spec.evaluation.teacher or self.position.teacher_done:
            return
        detections = self._detect(teacher.detector, "teacher_evaluation", teacher)
        values = self._judge(detections, "teacher", errors=True)
        self.position.teacher_ap = values.get("teacher/AP")
        self.position.teacher_done = True

    def evaluate_student(self, epoch: int) -> None:
        """Evaluate, and write the checkpoints that follow from it."""
        detections = self._detect(self.shown, "evaluation", self.shown.dense_forward)
        values = self._judge(detections, "val")
        self._keep(epoch, values, detections)

    def draw_maps(self, epoch: int) -> None:
        """Where the student stands after `epoch`, if that is wanted."""
        if is_first() and epoch in self.spec.evaluation.map_epochs:
            self.room.write(lambda: self._maps.draw(self.shown, epoch=epoch))

    def _judge(self, detections: Detections, prefix: str, *, errors: bool = False) -> dict[str, float]:
        truth = self.parts.val.truth
        assert truth is not None  # noqa: S101 - a split opened without `train` has it
        values: dict[str, float] = {}
        if is_first():
            values = evaluation_values(evaluate(detections, truth, self.spec.evaluation), prefix)
            values |= self._errors(detections, prefix) if errors else {}
        values = from_first(values)
        self.voice.metrics(values, self.position.step // self.parts.steps_per_epoch)
        return values

    def _errors(self, detections: Detections, prefix: str) -> dict[str, float]:
        truth = self.parts.val.truth
        assert truth is not None  # noqa: S101 - a split opened without `train` has it
        return error_values(error_breakdown(detections, truth, self.spec.evaluation.max_detections), prefix)

    def _keep(self, epoch: int, values: dict[str, float], detections: Detections) -> None:
        best, ap, step = self.position.best, values.get("val/AP"), self.position.step
        self._checkpoint("last", step, epoch, values)
        if self.spec.training.keep_epochs:
            self._checkpoint(f"epoch-{epoch}", step, epoch, values)
        if best is None or best.ap is None or (ap is not None and ap > best.ap):
            weights = {key: value.detach().cpu().clone() for key, value in self.shown.model.state_dict().items()}
            self.position.best = Best(step, epoch, values, weights)
            self._best_detections = detections
            self._checkpoint("best", step, epoch, values)

    def _detect(
        self, detector: DenseDetector, phase: Phase, forward: Callable[[ImageList], DenseOutputs]
    ) -> Detections:
        started = time.monotonic()
        found = self._infer(detector, forward, lambda done, total: self.voice.progress(phase, done, total))
        self.voice.pace.evaluation_done(time.monotonic() - started)
        self.voice.pace.restart()
        return found

    def deliver(self) -> None:
        """Errors, detections and maps of the best student."""
        best = self.position.best
        assert best is not None  # noqa: S101 - the last epoch is always evaluated
        self.voice.progress("export", 0, 1, force=True)
        self.shown.model.load_state_dict(best.weights)
        detections = self._best_detections
        if detections is None:
            detections = self._detect(self.shown, "export", self.shown.dense_forward)
        if not is_first():
            return
        # Of the step that the best student is of, beside its AP; an attempt that comes here again says the same.
        self.report(Metrics(step=best.step, epoch=best.epoch, values=self._errors(detections, "val")))
        self.room.write(lambda: write_detections(detections, self.parts.val, self.plan, self.report, step=best.step))
        self.room.write(lambda: self._maps.draw(self.shown))
        teacher = self.position.teacher_ap
        if teacher is not None and best.ap is not None and teacher <= best.ap:
            detail = f"the teacher's AP is {teacher:.3f}, the student's {best.ap:.3f}"
            self.voice.warn("teacher_not_better", f"{detail}: such a teacher has little to teach")

    def _checkpoint(self, name: str, step: int, epoch: int, values: dict[str, float]) -> None:
        if not is_first():
            return
        self.room.write(
            lambda: write_checkpoint(
                self.shown,
                self.plan,
                self.report,
                name=name,
                step=step,
                epoch=epoch,
                classes=self.parts.classes,
                values=values,
                teacher_ap=self.position.teacher_ap,
            )
        )
