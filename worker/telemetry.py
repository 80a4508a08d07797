"""What a worker's machine is and how busy its GPU is, without torch."""

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

_FIELDS = ("uuid", "name", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu")
_TIMEOUT_SECONDS = 10.0


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
    """Name, memory and load of each GPU that CUDA_VISIBLE_DEVICES leaves visible; empty without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return visible(parse_gpus(listing), os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(listing: str) -> list[dict[str, Any]]:
    """Rows of nvidia-smi's CSV; a value it does not know ("[N/A]") becomes None."""
    gpus = []
    for index, line in enumerate(listing.splitlines()):
        uuid, name, total, used, load, temperature = (cell.strip() for cell in line.split(","))
        numbers = {"memory_total_mib": total, "memory_used_mib": used, "load_percent": load, "celsius": temperature}
        values = {key: int(cell) if cell.isdigit() else None for key, cell in numbers.items()}
        gpus.append({"index": index, "uuid": uuid, "name": name, **values})
    return gpus


def visible(gpus: list[dict[str, Any]], chosen: str | None) -> list[dict[str, Any]]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by number or identifier; all of them where it is not set."""
    if chosen is None:
        return gpus
    names = [name.strip() for name in chosen.split(",")]
    return [gpu for gpu in gpus if str(gpu["index"]) in names or any(n and gpu["uuid"].startswith(n) for n in names)]
