"""A run from its first step, or from a saved state, to its products."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tid_core.data.loader import Batch, EpochLoader
from tid_core.detectors.base import DenseDetector
from tid_core.events import Finished, Progress, Reporter, ResumeState, Started
from tid_core.plan import RunPlan
from tid_core.ranks import from_first, is_first, num_ranks, rank
from tid_core.training.cache_setup import open_cache
from tid_core.training.cost import peak_memory
from tid_core.training.ema import Ema
from tid_core.training.examiner import Examiner
from tid_core.training.inference import StopRequested
from tid_core.training.optim import build_optimizer
from tid_core.training.pace import Pace
from tid_core.training.precision import Precision
from tid_core.training.resume import SavedState, Search, find_state, load_content, read_state, save_state
from tid_core.training.room import Room
from tid_core.training.setup import Parts, build_parts
from tid_core.training.state import Live, Position
from tid_core.training.stepper import Stepper
from tid_core.training.voice import Voice
from tid_core.training.window import Window

RATIO_EVERY_LOGS = 5
"""The gradient ratio costs a second backward pass of the head, so not every log has it."""


class Trainer:
    def __init__(self, plan: RunPlan, precision: Precision, report: Reporter, should_stop: Callable[[], bool]) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.precision = precision
        self.report = report
        self.should_stop = should_stop
        report(Progress(phase="setup", step=0, epoch=0, done=0, total=1))
        self.parts: Parts = build_parts(plan, precision, report)
        module, training = self.parts.module, self.spec.training
        ema = Ema(self.parts.student, training.ema_decay) if training.ema else None
        optimizer = build_optimizer(module, training)
        self.live = Live(module, optimizer, precision.scaler(), ema, Window(), Position())
        self.position = self.live.position
        self.cache = open_cache(self.parts, self.spec, plan.out_dir, report)
        self.stepper = Stepper(self.parts, self.live, self.spec, precision, self.cache)
        self.loader = EpochLoader(
            self.parts.train,
            batch_size=training.batch_size,
            workers=self.spec.data.workers,
            pin_memory=precision.device.type == "cuda",
            rank=rank(),
            world=num_ranks(),
            parts=training.accumulate,
        )
        self.pace = Pace(training.batch_size, len(self.parts.val))
        self.voice = Voice(report, self.spec, self.position, self.pace, self.parts.total_steps)
        self.room = Room(plan.room_seconds, self.voice, should_stop)
        self.examiner = Examiner(plan, self.parts, self.live, precision, self.voice, self.room, should_stop)
        self._saved: tuple[int, int] | None = None

    def run(self) -> Finished:
        """
        Raises:
            TrainingFailure: the run cannot go on.
        """
        rejected = self._resume()
        self._announce()
        for reason in rejected:
            self.voice.warn("resume_state_damaged", reason)
        self.examiner.export_best()
        try:
            self.examiner.evaluate_teacher()
            while self.position.finished_epochs < self.spec.training.epochs:
                self._train_epoch()
                self._finish_epoch()
            self.examiner.deliver()
        except StopRequested:
            with suppress(StopRequested):  # a full disk: the states that there are will do
                self._save()
            return Finished(outcome="stopped")
        finally:
            self.loader.close()
            if self.cache is not None:
                self.cache.delete()
        return Finished(outcome="succeeded")

    def _resume(self) -> list[str]:
        """Continue from the newest complete state; what is wrong with newer ones."""
        resume_from = self.plan.resume_from
        search = find_state(resume_from) if is_first() and resume_from is not None else Search(None)
        content = self._everywhere(search.state)
        if content is not None:
            self.live.restore(content, self.spec)
            self._saved = (self.position.step, self.position.finished_epochs)
        return search.rejected

    def _everywhere(self, found: SavedState | None) -> dict[str, Any] | None:
        """The content of the state that the first rank found; other machines get the file from it."""
        if self.plan.node is not None:
            data = from_first((found.path / "state.pt").read_bytes() if found else None)
            return load_content(data) if data is not None else None
        path = from_first(found.path if found else None)
        return (found or read_state(path)).content if path is not None else None

    def _announce(self) -> None:
        teacher, training = self.parts.teacher, self.spec.training
        self.report(
            Started(
                resumed_from_step=self.position.step,
                total_steps=self.parts.total_steps,
                steps_per_epoch=self.parts.steps_per_epoch,
                epochs=training.epochs,
                device=self.precision.device_name,
                precision=self.precision.name,
                processes=num_ranks(),
                student_parameters=_count(self.parts.student),
                teacher_parameters=_count(teacher.detector) if teacher else None,
            )
        )
        if training.warmup_steps >= self.parts.total_steps:
            detail = f"training.warmup_steps is {training.warmup_steps}, but the run has {self.parts.total_steps} steps"
            self.voice.warn("warmup_never_ends", f"{detail}: the learning rate stays below training.lr")
        if self.parts.module.distiller is not None and self.spec.loss.distill == 0:
            self.voice.warn("distillation_off", "loss.distill is 0: the student learns nothing from its teacher")

    def _train_epoch(self) -> None:
        """What is left of the epoch that `position.step` lies in; nothing, where only its evaluation is missing."""
        done = self.position.step - self.position.finished_epochs * self.parts.steps_per_epoch
        if done == self.parts.steps_per_epoch:
            return
        self.parts.module.train()
        batches = self.loader.epoch(self.position.finished_epochs, start_batch=done)
        self.pace.restart()
        for batch in batches:
            self._train_step(batch)
            if self.should_stop():
                raise StopRequested

    def _train_step(self, batch: Batch) -> None:
        every, save_every = self.spec.training.log_every_steps, self.spec.training.save_every_steps
        step = self.position.step + 1
        logs = step % every == 0 or step == self.parts.total_steps
        first_log = min(every, self.parts.total_steps)
        self.stepper.clock.watch(logs=logs)
        self.stepper(batch, measure=logs and (step == first_log or step % (every * RATIO_EVERY_LOGS) == 0))
        self.pace.step_done()
        if logs:
            self._log()
        self.voice.progress("training", step, self.parts.total_steps, force=logs)
        if save_every and step % save_every == 0 and step % self.parts.steps_per_epoch:
            self._save()

    def _log(self) -> None:
        self.pace.measure()
        values = self.live.window.drain()
        values["lr"] = self.stepper.lr
        values |= self._cost()
        self.voice.metrics(values, self.position.finished_epochs + 1)
        self.voice.judge_ratio(values.get("grad/distill_ratio", 0.0))

    def _cost(self) -> dict[str, float]:
        """Of this rank, but for the images, which are those of all."""
        values = {"memory/peak_bytes": float(peak_memory(self.precision.device))}
        of_teacher, of_step = self.stepper.clock.per_step(), self.pace.step_seconds
        if self.pace.speed is not None and of_step is not None:
            values |= {"throughput/images_per_second": self.pace.speed, "time/step_seconds": of_step}
            if self.parts.module.distiller is not None and of_teacher is not None:
                values["time/teacher_share"] = min(1.0, of_teacher / of_step)
        if self.cache is not None and (share := self.cache.hit_share()) is not None:
            values["teacher/cache_hit_share"] = share
        return values

    def _finish_epoch(self) -> None:
        """Evaluate where due, write checkpoints, save; only then the epoch counts as finished."""
        epoch = self.position.finished_epochs + 1
        self.live.window.check()
        if epoch % self.spec.evaluation.every_epochs == 0 or epoch == self.spec.training.epochs:
            self.examiner.evaluate_student(epoch)
        self.examiner.draw_maps(epoch)
        self.position.finished_epochs = epoch
        self._save()

    def _save(self) -> None:
        here = (self.position.step, self.position.finished_epochs)
        if here == self._saved:
            return
        self.live.window.check()
        if is_first():
            content = self.live.capture(self.spec)
            step, epoch = here
            folder = self.plan.out_dir / "resume"
            path = self.room.write(lambda: save_state(folder, content, step=step, epoch=epoch))
            self.report(ResumeState(step=step, epoch=epoch, path=path))
        self._saved = here


def _count(detector: DenseDetector) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())
