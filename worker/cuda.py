"""Whether trainings can use the GPUs of this machine: read off versions, without loading torch."""

import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from worker.gpus import asked, driver, visible_gpus

# What programs of a major version of CUDA need: NVIDIA's tables of minor version compatibility and of architectures.
_OLDEST_DRIVER: Final = {11: "450", 12: "525", 13: "580"}
_OLDEST_GPU: Final = {12: (5, 0), 13: (7, 5)}


class Torch(NamedTuple):
    """The installed torch: its version, and the CUDA that it was built for, None without."""

    version: str
    cuda: str | None


class Driver(NamedTuple):
    version: str | None
    cuda: str | None
    """The newest CUDA that it runs, such as 13.0."""


def gpus_in_use() -> dict[str, Any]:
    """The visible GPUs, the driver and what they speak; a GPU that trainings cannot use says why in `problem`."""
    torch = installed_torch()
    with driver() as nvml:
        if nvml is None:
            return {"driver": None, "cuda": None, "torch": torch and torch.version, "gpus": []}
        found = _read_driver(nvml)
        gpus = [{**gpu, "capability": _capability(nvml, gpu["uuid"])} for gpu in visible_gpus()]
    told = [{**gpu, "problem": problem(torch, found, gpu["capability"])} for gpu in gpus]
    return {"driver": found.version, "cuda": found.cuda, "torch": torch and torch.version, "gpus": told}


def installed_torch() -> Torch | None:
    """What the file says that torch itself reads its versions from."""
    found = find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    file = Path(found.submodule_search_locations[0]) / "version.py"
    told = runpy.run_path(str(file))
    return Torch(told["__version__"], told.get("cuda"))


def problem(torch: Torch | None, found: Driver, capability: str | None) -> str | None:
    """Why torch cannot use a GPU, and what to do; None where nothing is known to be in the way.

    Args:
        capability: CUDA compute capability of the GPU, such as "9.0"; None = it does not say.
    """
    if torch is None:
        return "torch is not installed here: install `tid-service[worker]`"
    if torch.cuda is None:
        return f"torch {torch.version} was built without CUDA: install the ordinary wheel"
    built_for = _numbers(torch.cuda)[0]
    if found.cuda is not None and _numbers(found.cuda)[0] < built_for:
        oldest = _OLDEST_DRIVER.get(built_for)
        newer = f"update it to {oldest} or newer" if oldest else "update it"
        return f"the driver {found.version} runs CUDA {found.cuda}, torch {torch.version} needs {built_for}: {newer}"
    least = _OLDEST_GPU.get(built_for, (0, 0))
    if capability is not None and _numbers(capability) < least:
        needs = f"{least[0]}.{least[1]}"
        return f"its compute capability is {capability}, torch {torch.version} needs {needs}: install an older torch"
    return None


def cuda_version(number: int) -> str:
    """13020, as NVML has it, is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _read_driver(nvml: Any) -> Driver:
    cuda = asked(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return Driver(asked(nvml, nvml.nvmlSystemGetDriverVersion), None if cuda is None else cuda_version(cuda))


def _capability(nvml: Any, uuid: str) -> str | None:
    handle = asked(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
    told = None if handle is None else asked(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return None if told is None else f"{told[0]}.{told[1]}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
