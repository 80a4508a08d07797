"""How fast a run goes, and how long it will still take."""

import time


class Pace:
    """Seconds of training and of evaluation, measured apart."""

    def __init__(self, batch_size: int, val_images: int) -> None:
        self._batch_size = batch_size
        self._val_images = val_images
        self._train_seconds = 0.0
        self._train_steps = 0
        self._first_seconds = 0.0
        self._evaluation_seconds: float | None = None
        self._mark = time.monotonic()
        self._logged = (0.0, 0)
        self.speed: float | None = None
        """Images per second between the last two calls of `measure`."""
        self.step_seconds: float | None = None
        """Of a step between them, waiting for its images included."""

    def restart(self) -> None:
        """Leave out the time since the last step."""
        self._mark = time.monotonic()

    def step_done(self) -> None:
        now = time.monotonic()
        self._train_seconds += now - self._mark
        self._train_steps += 1
        self._mark = now
        if self._train_steps == 1:
            # The first step allocates and warms up: no measure of the rest.
            self._first_seconds = self._train_seconds
            self._logged = (self._train_seconds, 1)

    def measure(self) -> None:
        seconds, steps = self._logged
        elapsed, done = self._train_seconds - seconds, self._train_steps - steps
        if done and elapsed > 0:
            self.speed = done * self._batch_size / elapsed
            self.step_seconds = elapsed / done
        self._logged = (self._train_seconds, self._train_steps)

    def evaluation_done(self, seconds: float) -> None:
        self._evaluation_seconds = seconds

    def seconds_left(self, *, steps: int, evaluations: int) -> float | None:
        """For `steps` optimiser steps and `evaluations` of the validation split; None before there is a measure."""
        if self._train_steps < 2:
            return None
        per_step = (self._train_seconds - self._first_seconds) / (self._train_steps - 1)
        per_evaluation = self._evaluation_seconds
        if per_evaluation is None:
            # A forward costs about a third of a step.
            per_evaluation = self._val_images * per_step / self._batch_size / 3
        return steps * per_step + evaluations * per_evaluation
