"""The cost of a job, from a few of its own steps: the real data, loader, networks, losses and update."""

import gc
import math
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal, NamedTuple

import torch
from torchvision.models.detection.image_list import ImageList

from tid_core.data.sampler import num_batches
from tid_core.detectors.base import DenseDetector
from tid_core.detectors.outputs import DenseOutputs
from tid_core.events import Event
from tid_core.measurement import Measurement, RunCost
from tid_core.plan import RunPlan
from tid_core.training.cache_setup import forecast
from tid_core.training.cost import peak_memory
from tid_core.training.inference import Inference, StopRequested
from tid_core.training.launcher import count_processes
from tid_core.training.precision import Precision, choose_precision, numerics, own_cores
from tid_core.training.products import write_checkpoint
from tid_core.training.resume import KEEP, save_state
from tid_core.training.state import Best
from tid_core.training.trainer import Trainer


class _Timed(NamedTuple):
    first: float
    others: list[float]
    teacher: float | None
    """Seconds of a step spent in it."""

    @property
    def median(self) -> float:
        return median(self.others or [self.first])


class _Beside(NamedTuple):
    """What a run costs beside its steps: seconds of all evaluations, and bytes, of whose student."""

    run: Literal["student", "baseline"]
    evaluation: float
    peak: int | None
    state: int
    checkpoint: int


def measure(plans: dict[str, RunPlan], *, steps: int) -> Measurement:
    """Take `steps` optimiser steps of each run, evaluate a batch, and write a state and a checkpoint to its folder.

    Args:
        plans: `student` and perhaps `baseline`, as `standalone.prepare` makes them.

    Raises:
        TrainingFailure, RuntimeError, OSError, MemoryError: as of a run; `guards.as_failure` says what they mean.
    """
    warnings: list[str] = []

    def hear(event: Event) -> None:
        if event.type == "warning" and event.detail not in warnings:
            warnings.append(event.detail)

    spec = plans["student"].spec
    processes, _ = count_processes(spec)
    precision = choose_precision(spec.training, gpus=spec.resources.gpus)
    runs = []
    for name, plan in plans.items():
        runs.append(_measure_run(name, plan, max(processes, 1), precision, steps, hear))
        gc.collect()
        if precision.device.type == "cuda":
            torch.cuda.empty_cache()
    return Measurement(
        device=precision.device_name,
        precision=precision.name,
        processes=max(processes, 1),
        steps=min(steps, *(run.total_steps for run in runs)),
        runs=runs,
        seconds=sum(run.seconds for run in runs),
        warnings=warnings,
    )


def _measure_run(
    name: str, plan: RunPlan, processes: int, precision: Precision, steps: int, hear: Callable[[Event], None]
) -> RunCost:
    share = _share(plan, processes)
    on_gpu = precision.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(precision.device)
    with numerics(share.spec.training, precision.device):
        trainer = Trainer(share, precision, hear, lambda: False)
        try:
            timed = _steps(trainer, steps)
            cached = _steps(trainer, steps) if trainer.cache is not None else None
            evaluation = _evaluation_seconds(trainer) / processes
            peak = peak_memory(precision.device) if on_gpu or name == "student" else None
            return _cost(
                plan,
                trainer,
                timed,
                cached,
                _Beside("student" if name == "student" else "baseline", evaluation, peak, *_written(trainer)),
            )
        finally:
            trainer.loader.close()


def _cost(plan: RunPlan, trainer: Trainer, timed: _Timed, cached: _Timed | None, beside: _Beside) -> RunCost:
    training = plan.spec.training
    total_steps = num_batches(len(trainer.parts.train), training.batch_size) * training.epochs
    expected = None
    per_step = timed.median
    if cached is not None and trainer.parts.teacher is not None:
        expected = forecast(trainer.parts.train, trainer.parts.teacher, trainer.spec)
        per_step += expected.hit_share * (cached.median - timed.median)
    kept = 2 + (_evaluations(plan) if training.keep_epochs else 0)
    return RunCost(
        run=beside.run,
        step_seconds=timed.median,
        first_step_seconds=timed.first,
        cached_step_seconds=cached.median if cached else None,
        images_per_second=training.batch_size / timed.median,
        teacher_share=None if timed.teacher is None else min(1.0, timed.teacher / timed.median),
        peak_memory_bytes=beside.peak,
        total_steps=total_steps,
        training_seconds=total_steps * per_step,
        evaluation_seconds=beside.evaluation,
        resume_state_bytes=beside.state,
        checkpoint_bytes=beside.checkpoint,
        disk_bytes=KEEP * beside.state + kept * beside.checkpoint,
        cache_bytes=expected.num_bytes if expected else None,
    )


def _share(plan: RunPlan, processes: int) -> RunPlan:
    """What one of the processes of a run does."""
    if processes == 1:
        return plan
    training = plan.spec.training
    threads = max(1, (training.threads or own_cores()) // processes)
    own = {"batch_size": training.batch_size // processes, "threads": threads}
    spec = plan.spec.model_copy(update={"training": training.model_copy(update=own)})
    return plan.model_copy(update={"spec": spec})


def _steps(trainer: Trainer, steps: int) -> _Timed:
    """From the first batch of the first epoch on."""
    seconds: list[float] = []
    stepper = trainer.stepper
    trainer.parts.module.train()
    trainer.position.step = 0
    steps = min(steps, trainer.parts.total_steps)
    for epoch in count():
        mark = perf_counter()
        for batch in trainer.loader.epoch(epoch):
            stepper.clock.watch(logs=True)
            stepper(batch, measure=False)
            _wait(trainer)
            mark, before = perf_counter(), mark
            seconds.append(mark - before)
            if len(seconds) == steps:
                distils = trainer.parts.module.distiller is not None
                return _Timed(seconds[0], seconds[1:], stepper.clock.per_step() if distils else None)
    raise AssertionError("every epoch has a batch")


def _wait(trainer: Trainer) -> None:
    if trainer.precision.device.type == "cuda":
        torch.cuda.synchronize(trainer.precision.device)


def _evaluations(plan: RunPlan) -> int:
    return math.ceil(plan.spec.training.epochs / plan.spec.evaluation.every_epochs)


def _evaluation_seconds(trainer: Trainer) -> float:
    """Of all evaluations of the run, in one process."""
    shown = trainer.examiner.shown
    seconds = _evaluations(trainer.plan) * _look(trainer, shown, shown.dense_forward)
    teacher = trainer.parts.teacher
    if teacher is not None and trainer.spec.evaluation.teacher:
        seconds += _look(trainer, teacher.detector, teacher)
    return seconds * len(trainer.parts.val)


def _look(trainer: Trainer, detector: DenseDetector, forward: Callable[[ImageList], DenseOutputs]) -> float:
    """Seconds of an image: of the second batch, where there is one, as the first warms up."""
    marks = [(perf_counter(), 0)]

    def tick(done: int, _total: int) -> None:
        _wait(trainer)
        marks.append((perf_counter(), done))

    spec = trainer.spec
    infer = Inference(
        trainer.parts.val,
        spec.evaluation.batch_size,
        spec.data.workers,
        trainer.precision,
        lambda: len(marks) > 2,
    )
    with suppress(StopRequested):
        infer(detector, forward, tick)
    (before, done_before), (now, done) = marks[-2:]
    return (now - before) / (done - done_before)


def _written(trainer: Trainer) -> tuple[int, int]:
    """Bytes of a state and of a checkpoint, by writing them."""
    shown, plan = trainer.examiner.shown, trainer.plan
    weights = {key: value.detach().cpu().clone() for key, value in shown.model.state_dict().items()}
    trainer.position.best = Best(trainer.position.step, 1, {}, weights)
    step = trainer.position.step
    state = save_state(plan.out_dir / "resume", trainer.live.capture(plan.spec), step=step, epoch=1)
    classes = trainer.parts.classes
    write_checkpoint(shown, plan, _nobody, name="last", step=step, epoch=1, classes=classes, values={}, teacher_ap=None)
    return _bytes(state), _bytes(plan.out_dir / "checkpoints")


def _nobody(_event: Event, /) -> None:
    """Hears nothing."""


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
