"""Reading nvidia-smi's table, and the choice of CUDA_VISIBLE_DEVICES."""

import pytest

from worker.telemetry import device_facts, parse_gpus, visible

LISTING = "GPU-aaa, NVIDIA H200, 143771, 512, 97, 41\nGPU-bbb, NVIDIA H200, 143771, 0, [N/A], [N/A]\n"


def test_a_table_is_read_and_unknown_values_stay_unknown() -> None:
    first, second = parse_gpus(LISTING)
    assert (first["name"], first["memory_total_mib"], first["load_percent"], first["celsius"]) == (
        "NVIDIA H200",
        143771,
        97,
        41,
    )
    assert (second["index"], second["load_percent"]) == (1, None)


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, ["GPU-aaa", "GPU-bbb"]),
        ("1", ["GPU-bbb"]),
        ("GPU-a", ["GPU-aaa"]),
        ("1,0", ["GPU-aaa", "GPU-bbb"]),
        ("", []),
    ],
)
def test_a_worker_reports_the_gpus_it_may_use(chosen: str | None, seen: list[str]) -> None:
    assert [gpu["uuid"] for gpu in visible(parse_gpus(LISTING), chosen)] == seen


def test_a_machine_has_cores_and_memory() -> None:
    facts = device_facts()
    assert facts["cpus"] >= 1
    assert facts["memory_bytes"] > 1 << 28
