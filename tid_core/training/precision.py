"""Where the run computes, and in which numbers: device, autocast, gradient scaling, threads, determinism."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tid_core.events import TrainingFailure
from tid_core.ranks import num_local_ranks, num_ranks
from tid_core.spec import TrainingSpec

_ALLOCATION: Any = torch.utils.deterministic
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """`name` is fp32, bf16 or fp16, with `auto` already resolved."""

    device: torch.device
    name: str

    def autocast(self) -> torch.autocast:
        """Reduced precision for the networks; disabled for fp32."""
        dtype = _DTYPES.get(self.name)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, needed by fp16 alone; disabled otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    @property
    def device_name(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{num_ranks()} x {name}" if num_ranks() > 1 else name


def choose_precision(spec: TrainingSpec, *, gpus: int) -> Precision:
    """Resolve `device: auto` (a GPU where one is wanted and present) and `precision: auto`.

    Raises:
        TrainingFailure: `device_missing` when the spec demands a GPU that this host lacks.
    """
    available = torch.cuda.is_available()
    if spec.device == "cuda" and not available:
        raise TrainingFailure("device_missing", "training.device is cuda, but no GPU is visible here; use auto or cpu")
    on_gpu = spec.device == "cuda" or (spec.device == "auto" and available and gpus > 0)
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if spec.precision != "auto":
        return Precision(device, spec.precision)
    if not on_gpu:
        return Precision(device, "fp32")
    return Precision(device, "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")


def own_cores() -> int:
    """CPU cores this process may run on; a container or an affinity mask can hold fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def numerics(spec: TrainingSpec, device: torch.device) -> Iterator[None]:
    """Threads and determinism for the length of a run; what was set before comes back after it.

    The ranks of a run that are on this machine share its threads.
    On CPU, kernels are always deterministic. On GPU `training.deterministic` asks for it; kernels without a
    deterministic version then warn.
    """
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _ALLOCATION.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    on_cpu = device.type == "cpu"
    if spec.deterministic and not on_cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.set_num_threads(max(1, (spec.threads or own_cores()) // num_local_ranks()))
    torch.use_deterministic_algorithms(on_cpu or spec.deterministic, warn_only=not on_cpu)
    _ALLOCATION.fill_uninitialized_memory = False  # a debugging aid that writes every buffer twice
    torch.backends.cudnn.benchmark = False  # image sizes change with each batch
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        _ALLOCATION.fill_uninitialized_memory = before[3]
        torch.backends.cudnn.benchmark = before[4]
