"""What a worker's machine is and how busy its GPU is, without torch."""

import logging
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("worker")


def device_facts() -> dict[str, Any]:
    """CPU count, memory in bytes and the GPUs this worker may use."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": available_cores(),
        "memory_bytes": memory_bytes(),
        "gpus": gpu_facts(),
    }


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


def gpu_facts() -> list[dict[str, Any]]:
    """Name, memory and load of each GPU that CUDA_VISIBLE_DEVICES leaves visible, by NVML.

    Empty without a driver, a GPU or the library that speaks to them. What a GPU does not tell is None, as the load of
    one that is split by MIG is.
    """
    try:
        import pynvml as nvml
    except ImportError:
        return []
    try:
        # Opened for each look: the worker forks, and a connection to the driver does not survive that.
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return _read_gpus(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except nvml.NVMLError as error:
        log.warning("the GPUs cannot be read: %s", error)
        return []
    finally:
        nvml.nvmlShutdown()


def _read_gpus(nvml: Any, chosen: str | None) -> list[dict[str, Any]]:
    whole = [
        _read_gpu(nvml, index, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount())
    ]
    return visible([gpu for gpu in whole if gpu["uuid"]], chosen) + [_read_part(nvml, name) for name in parts(chosen)]


def _read_gpu(nvml: Any, index: int | None, handle: Any) -> dict[str, Any]:
    used = asked(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
    return gpu_row(
        index,
        uuid=asked(nvml, nvml.nvmlDeviceGetUUID, handle),
        name=asked(nvml, nvml.nvmlDeviceGetName, handle),
        # The older call counts what the driver keeps for itself as used.
        memory=used or asked(nvml, nvml.nvmlDeviceGetMemoryInfo, handle),
        rates=asked(nvml, nvml.nvmlDeviceGetUtilizationRates, handle),
        celsius=asked(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
    )


def _read_part(nvml: Any, uuid: str) -> dict[str, Any]:
    """A part of a GPU that is split by MIG, which has an identifier and memory, and no number of its own."""
    handle = asked(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
    found = {} if handle is None else _read_gpu(nvml, None, handle)
    return {**gpu_row(None, uuid=uuid, name="MIG device", memory=None, rates=None, celsius=None), **found, "uuid": uuid}


def asked(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of the driver, or None where this GPU or this driver has none."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def gpu_row(
    index: int | None, *, uuid: str | None, name: str | None, memory: Any, rates: Any, celsius: int | None
) -> dict[str, Any]:
    """As `GET /workers` shows it, from the structures of NVML."""
    return {
        "index": index,
        "uuid": uuid,
        "name": name,
        "memory_total_mib": None if memory is None else memory.total >> 20,
        "memory_used_mib": None if memory is None else memory.used >> 20,
        "load_percent": None if rates is None else rates.gpu,
        "celsius": celsius,
    }


def parts(chosen: str | None) -> list[str]:
    """Identifiers of parts of GPUs (MIG) in CUDA_VISIBLE_DEVICES."""
    return [name.strip() for name in (chosen or "").split(",") if name.strip().startswith("MIG-")]


def visible(gpus: list[dict[str, Any]], chosen: str | None) -> list[dict[str, Any]]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by number or identifier; all of them where it is not set."""
    if chosen is None:
        return gpus
    names = [name.strip() for name in chosen.split(",")]
    return [gpu for gpu in gpus if str(gpu["index"]) in names or any(n and gpu["uuid"].startswith(n) for n in names)]
