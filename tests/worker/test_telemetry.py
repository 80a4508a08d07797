"""What NVML tells about a GPU, and the choice of CUDA_VISIBLE_DEVICES."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from worker.gpus import asked, gpu_row, parts, visible, visible_gpus
from worker.telemetry import device_facts

HERE = Path(__file__).resolve().parents[2]


def h200(index: int, uuid: str, *, is_split: bool = False) -> dict[str, Any]:
    """A row from the structures of the library, with values as an H200 gives them."""
    memory = pynvml.c_nvmlMemory_v2_t(total=150754820096, reserved=653197312, free=149563637760, used=537985024)
    rates = None if is_split else pynvml.c_nvmlUtilization_t(gpu=97, memory=41)
    return gpu_row(index, uuid=uuid, name="NVIDIA H200", memory=memory, rates=rates, celsius=41)


TWO = [h200(0, "GPU-aaa"), h200(1, "GPU-bbb", is_split=True)]


def test_a_gpu_is_told_in_mebibytes_and_unknown_values_stay_unknown() -> None:
    assert TWO[0] == {
        "index": 0,
        "uuid": "GPU-aaa",
        "name": "NVIDIA H200",
        "memory_total_mib": 143771,
        "memory_used_mib": 513,
        "load_percent": 97,
        "celsius": 41,
    }
    assert TWO[1]["load_percent"] is None
    empty = gpu_row(2, uuid="GPU-c", name=None, memory=None, rates=None, celsius=None)
    assert (empty["memory_total_mib"], empty["memory_used_mib"], empty["celsius"]) == (None, None, None)


def test_what_a_gpu_does_not_support_is_unknown() -> None:
    def unsupported(_handle: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    assert asked(pynvml, unsupported, object()) is None
    assert asked(pynvml, int, "7") == 7


def test_without_a_driver_there_is_no_gpu() -> None:
    """The library is asked for real; on a machine with GPUs it tells all that it shows to this process."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert visible_gpus() == []
        return
    pynvml.nvmlShutdown()
    assert all(gpu["uuid"] and gpu["memory_total_mib"] for gpu in visible_gpus())


def test_without_the_library_there_is_no_gpu() -> None:
    code = "import sys; sys.modules['pynvml'] = None; from worker.gpus import visible_gpus; assert visible_gpus() == []"
    subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True)


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, ["GPU-aaa", "GPU-bbb"]),
        ("1", ["GPU-bbb"]),
        ("GPU-a", ["GPU-aaa"]),
        ("1,0", ["GPU-aaa", "GPU-bbb"]),
        ("", []),
        ("MIG-12ab", []),
    ],
)
def test_a_worker_reports_the_gpus_it_may_use(chosen: str | None, seen: list[str]) -> None:
    assert [gpu["uuid"] for gpu in visible(TWO, chosen)] == seen


def test_parts_of_a_gpu_are_named_by_their_own_identifier() -> None:
    assert parts("MIG-12ab, MIG-GPU-aaa/1/0,0") == ["MIG-12ab", "MIG-GPU-aaa/1/0"]
    assert parts(None) == parts("0,1") == parts("") == []


def test_a_machine_has_cores_and_memory() -> None:
    facts = device_facts()
    assert facts["cpus"] >= 1
    assert facts["memory_bytes"] > 1 << 28
