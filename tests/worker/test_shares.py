"""TID_GPUS: which worker gets which GPUs, and what cannot be."""

from pathlib import Path
from typing import Any

import pytest

from store.settings import SettingsError, load_as
from worker.settings import WorkerSettings
from worker.shares import divide, shares

UUIDS = ("GPU-5a0e1c7b-0000", "GPU-5a0e9999-1111", "GPU-c0ffee00-2222")
PART = "MIG-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0"


def gpu(index: int | None, uuid: str) -> dict[str, Any]:
    return {"index": index, "uuid": uuid, "name": "NVIDIA L4", "memory_total_mib": 23034}


THREE = [gpu(index, uuid) for index, uuid in enumerate(UUIDS)]
WITH_PART = [*THREE[:1], gpu(None, PART)]


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        ("all", THREE, [[UUIDS[0]], [UUIDS[1]], [UUIDS[2]]]),
        ("all", [], []),
        ("2", THREE, [[UUIDS[2]]]),
        ("2,0", THREE, [[UUIDS[2]], [UUIDS[0]]]),
        ("0+2,1", THREE, [[UUIDS[0], UUIDS[2]], [UUIDS[1]]]),
        ("GPU-c0ffee,0", THREE, [[UUIDS[2]], [UUIDS[0]]]),
        (f"{PART},0", WITH_PART, [[PART], [UUIDS[0]]]),
        ("all", WITH_PART, [[UUIDS[0]], [PART]]),
    ],
)
def test_each_part_of_it_is_a_worker(wanted: str, there: list[dict[str, Any]], expected: list[list[str]]) -> None:
    assert [[one["uuid"] for one in group] for group in divide(wanted, there)] == expected


@pytest.mark.parametrize(
    ("wanted", "there", "words"),
    [
        ("3", THREE, ["there is no GPU '3' here", f"0 (NVIDIA L4, {UUIDS[0]}), 1 (NVIDIA L4, {UUIDS[1]})", "`all`"]),
        ("5a0e", THREE, ["there is no GPU '5a0e'"]),
        ("GPU-5a0e", THREE, ["several GPUs begin with 'GPU-5a0e'"]),
        ("0,1,GPU-5a0e1", THREE, ["names GPU 0 twice"]),
        ("0+0", THREE, ["names GPU 0 twice"]),
        ("0,1", [], ["TID_GPUS is 0,1", "nvidia-smi", "NVIDIA Container Toolkit", "CUDA_VISIBLE_DEVICES", "all"]),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(wanted: str, there: list[dict[str, Any]], words: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        divide(wanted, there)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("wrong", ["all,1", "0,,1", "0;1", "0+", "none of them"])
def test_what_is_no_list_of_gpus_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TID_GPUS", wrong)
    with pytest.raises(SettingsError, match=r"TID_GPUS: write `all`, or .* 0\+1"):
        load_as(WorkerSettings)


def test_ids_stay_and_cores_are_divided_by_gpus(tmp_path: Path) -> None:
    two = shares(WorkerSettings(home=tmp_path, gpus="0+2, 1"), THREE, cores=6, host="host")
    both, one = f"{UUIDS[0]},{UUIDS[2]}", UUIDS[1]
    assert [(share.worker_id, share.place) for share in two] == [
        ("host-gpu0+2", "GPU 0+2 (NVIDIA L4)"),
        ("host-gpu1", "GPU 1 (NVIDIA L4)"),
    ]
    assert [share.variables for share in two] == [
        {"TID_WORKER_ID": "host-gpu0+2", "TID_THREADS": "4", "CUDA_VISIBLE_DEVICES": both},
        {"TID_WORKER_ID": "host-gpu1", "TID_THREADS": "2", "CUDA_VISIBLE_DEVICES": one},
    ]
    own = shares(WorkerSettings(home=tmp_path, worker_id="rack 7/a", threads=1), THREE, cores=6, host="host")
    assert [share.worker_id for share in own] == ["rack 7/a-gpu0", "rack 7/a-gpu1", "rack 7/a-gpu2"]
    assert {share.variables["TID_THREADS"] for share in own} == {"1"}
    with pytest.raises(SettingsError, match=r"TID_WORKER_ID: .* more than 120"):
        shares(WorkerSettings(home=tmp_path, worker_id="x" * 118), THREE, cores=6, host="host")


def test_without_a_gpu_there_is_one_worker_with_all_cores(tmp_path: Path) -> None:
    (alone,) = shares(WorkerSettings(home=tmp_path), [], cores=6, host="host")
    assert alone == ("host-cpu", "the CPU", {"TID_WORKER_ID": "host-cpu", "TID_THREADS": "6"})
