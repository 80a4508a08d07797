"""Whether torch can use a GPU, from versions as drivers and wheels tell them."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.cuda import Driver, Torch, cuda_version, installed_torch, problem
from worker.telemetry import said_of

HERE = Path(__file__).resolve().parents[2]
CU132, CU126 = Torch("2.15.0+cu132", "13.2"), Torch("2.7.1+cu126", "12.6")
R535, R570, R580 = Driver("535.104.05", "12.2"), Driver("570.133.20", "12.8"), Driver("580.65.06", "13.0")


@pytest.mark.parametrize(
    ("installed", "driver", "capability", "words"),
    [
        (CU132, R580, "9.0", None),
        (CU132, R580, "7.5", None),
        (CU126, R535, "6.1", None),
        (CU126, R580, "12.0", None),
        (CU132, Driver(None, None), None, None),
        (CU132, R570, "9.0", ["the driver 570.133.20 runs CUDA 12.8", "needs 13", "580 or newer"]),
        (CU126, Driver("470.223.02", "11.4"), "8.0", ["CUDA 11.4", "525 or newer"]),
        (CU132, R580, "7.0", ["compute capability is 7.0", "needs 7.5"]),
        (CU126, R580, "3.7", ["3.7", "needs 5.0"]),
        (Torch("3.1.0+cu141", "14.1"), R580, "9.0", ["needs 14", "update it"]),
        (Torch("2.15.0+cpu", None), R580, "9.0", ["torch 2.15.0+cpu was built without CUDA"]),
        (None, R580, "9.0", ["torch is not installed here"]),
    ],
)
def test_what_is_in_the_way_is_told_with_what_would_mend_it(
    installed: Torch | None, driver: Driver, capability: str | None, words: list[str] | None
) -> None:
    found = problem(installed, driver, capability)
    assert found is None if words is None else found is not None and all(word in found for word in words), found


def test_versions_are_those_that_torch_tells_of_itself_and_it_is_not_loaded_for_them() -> None:
    assert installed_torch() == (torch.__version__, torch.version.cuda)
    code = "import sys; from worker.telemetry import device_facts; device_facts(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True)


def test_nvml_has_one_number_for_a_version() -> None:
    assert [cuda_version(number) for number in (12020, 12080, 13000, 13020)] == ["12.2", "12.8", "13.0", "13.2"]


def test_a_worker_says_what_it_found_in_a_line_for_each_gpu() -> None:
    gpu: dict[str, Any] = {"index": 0, "uuid": "GPU-a", "name": "NVIDIA L4", "memory_total_mib": 23034, "problem": None}
    part = {**gpu, "index": None, "uuid": "MIG-b", "memory_total_mib": None, "problem": "the driver is too old"}
    device = {"driver": "580.65.06", "cuda": "13.0", "gpus": [gpu, part]}
    versions = "driver 580.65.06, CUDA 13.0"
    assert said_of(device) == [
        (logging.INFO, f"GPU 0: NVIDIA L4, 23034 MiB, {versions}"),
        (logging.WARNING, f"GPU MIG-b: NVIDIA L4, ? MiB, {versions}; trainings cannot use it: the driver is too old"),
    ]
    assert said_of({"gpus": []}) == [(logging.INFO, "no GPU is visible here: trainings run on the CPU")]
