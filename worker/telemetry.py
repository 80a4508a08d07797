"""What a worker's machine is and how busy it is, without torch."""

import logging
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.cuda import gpus_in_use


def device_facts() -> dict[str, Any]:
    """CPU count, memory in bytes and the GPUs this worker may use."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": available_cores(),
        "memory_bytes": memory_bytes(),
        **gpus_in_use(),
    }


def said_of(device: dict[str, Any]) -> list[tuple[int, str]]:
    """What a worker logs of its device when it begins: level and text, a GPU a line."""
    if not device["gpus"]:
        return [(logging.INFO, "no GPU is visible here: trainings run on the CPU")]
    versions = f"driver {device['driver']}, CUDA {device['cuda']}"
    return [_said_of_gpu(gpu, versions) for gpu in device["gpus"]]


def _said_of_gpu(gpu: dict[str, Any], versions: str) -> tuple[int, str]:
    number = gpu["uuid"] if gpu["index"] is None else gpu["index"]
    what = f"GPU {number}: {gpu['name']}, {gpu['memory_total_mib'] or '?'} MiB, {versions}"
    if gpu["problem"] is None:
        return logging.INFO, what
    return logging.WARNING, f"{what}; trainings cannot use it: {gpu['problem']}"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Main memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def load() -> dict[str, Any]:
    """Processes that want to run, averaged over a minute, and the memory that is left, where Linux says it."""
    left = None
    with suppress(OSError), Path("/proc/meminfo").open() as file:
        left = next((int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")), None)
    return {"load_1m": round(os.getloadavg()[0], 2), "memory_available_bytes": left}
