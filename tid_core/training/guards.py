"""What stops a run early, with a reason, instead of letting it end with a useless student."""

import errno
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tid_core.events import TrainingFailure
from tid_core.ranks import num_ranks
from tid_core.spec import JobSpec
from tid_core.training.gradients import gradient_norm_of
from tid_core.training.meeting import RANK_LOST

FIRST_STEPS = 10
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RANK_MESSAGES = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "process group")
_MEMORY_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")
# The last two are what torch.save makes of it.
_DISK_MESSAGES = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "PytorchStreamWriter failed",
    "unexpected pos",
)


class DistillationGuard:
    """Sees to it that the distillation term reaches the student in the first steps of an attempt.

    One batch may well have no high-value area; ten in a row without any gradient mean that the student learns nothing
    from its teacher.
    """

    def __init__(self, probes: Sequence[nn.Parameter], *, steps: int = FIRST_STEPS) -> None:
        self._probes = probes
        self._steps_left = steps
        self._largest: dict[str, float] = {}

    @property
    def watching(self) -> bool:
        return self._steps_left > 0

    def observe(self, terms: Mapping[str, Tensor], loss: Tensor, *, last: bool) -> None:
        """Look at one step's `terms` and their weighted sum `loss`; `last` when no further step will follow.

        Raises:
            TrainingFailure: `distillation_inactive`, once the first steps are over without a gradient.
        """
        if not self.watching:
            return
        if gradient_norm_of(loss, self._probes).item() != 0.0:
            # Something arrives; that it is finite is watched elsewhere.
            self._steps_left = 0
            return
        for name, value in terms.items():
            self._largest[name] = max(self._largest.get(name, 0.0), abs(value.item()))
        self._steps_left -= 1
        if self._steps_left == 0 or last:
            raise TrainingFailure("distillation_inactive", self._describe())

    def _describe(self) -> str:
        zero = [name for name, value in self._largest.items() if value == 0.0]
        if len(zero) == len(self._largest):
            found = f"every distillation term ({', '.join(zero) or 'there is none'}) was zero"
        else:
            alive = [f"{name} (up to {value:.3g})" for name, value in self._largest.items() if value != 0.0]
            found = f"{', '.join(alive)} gave the student no gradient"
        return (
            f"{found} in the first steps: the student would learn nothing from its teacher. "
            "Check that the teacher is not the student itself, and the weights under `loss` and of the method"
        )


def as_failure(error: Exception, spec: JobSpec) -> TrainingFailure:
    """The failure that `error` means to a user; `internal_error` for what nobody foresaw."""
    if isinstance(error, TrainingFailure):
        return error
    message = str(error).strip()
    if _is_lost_rank(error, message):
        return TrainingFailure(RANK_LOST, f"another rank of this run is gone or does not answer: {message[:300]}")
    if _is_out_of_memory(error, message):
        return TrainingFailure("out_of_memory", _memory_advice(spec, message))
    if _is_disk_full(error, message):
        return TrainingFailure("disk_full", f"a file could not be written: {message}; nothing half-written was kept")
    first_line = message.splitlines()[0] if message else "no message"
    return TrainingFailure("internal_error", f"{type(error).__name__}: {first_line[:500]}")


def _is_lost_rank(error: Exception, message: str) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in message for text in _RANK_MESSAGES)


def _is_out_of_memory(error: Exception, message: str) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in message for text in _MEMORY_MESSAGES)


def _is_disk_full(error: Exception, message: str) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_ERRORS
    return any(text in message for text in _DISK_MESSAGES)


def _memory_advice(spec: JobSpec, message: str) -> str:
    training = spec.training
    micro_batch = training.batch_size // training.accumulate // num_ranks()
    advice = [f"raise training.accumulate (now {training.accumulate}, {micro_batch} images at a time)"]
    if training.precision == "fp32":
        advice.append("set training.precision to auto")
    advice.append(f"lower data.min_size (now {max(spec.data.min_size)}) and data.max_size (now {spec.data.max_size})")
    advice.append(f"lower training.batch_size or evaluation.batch_size (now {spec.evaluation.batch_size})")
    first_line = message.splitlines()[0] if message else "no memory left"
    return f"{first_line[:300]}. To need less: {'; '.join(advice)}"
