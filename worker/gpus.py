"""The GPUs of this machine as their driver tells of them (NVML), without torch."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("worker")


@contextmanager
def driver() -> Iterator[Any]:
    """NVML, ready to be asked; None without a driver, a GPU or the library that speaks to them."""
    try:
        import pynvml as nvml
    except ImportError:
        yield None
        return
    try:
        # Opened for each look: the worker forks, and a connection to the driver does not survive that.
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def visible_gpus() -> list[dict[str, Any]]:
    """Those that this process may use."""
    return gpu_facts(os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_facts(chosen: str | None) -> list[dict[str, Any]]:
    """Name, memory and load of each GPU that `chosen`, a value of CUDA_VISIBLE_DEVICES or None, leaves, by NVML.

    Empty without a driver, a GPU or the library that speaks to them. What a GPU does not tell is None, as the load of
    one that is split by MIG is.
    """
    with driver() as nvml:
        if nvml is None:
            return []
        try:
            return _read_gpus(nvml, chosen)
        except nvml.NVMLError as error:
            log.warning("the GPUs cannot be read: %s", error)
            return []


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
