"""A worker's row follows its GPUs: jobs are given to it by what the row says."""

import logging
from pathlib import Path
from typing import Any

import pytest

from store import workers
from store.db import Database
from store.models import Worker
from store.placement import Gpus
from worker.gpus import gpu_row
from worker.presence import Presence
from worker.settings import WorkerSettings
from worker.telemetry import said_of

GONE = {**gpu_row(7, uuid="GPU-gone", name="NVIDIA L4", memory=None, rates=None, celsius=None), "problem": None}


def test_the_row_of_a_worker_has_the_gpus_that_are_there_now(
    database: Database, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    presence = Presence(WorkerSettings(home=tmp_path, database_url=database_url, worker_id="w"))
    there = presence._device["gpus"]

    def told(gpus: list[dict[str, Any]]) -> None:
        with database.write() as session:
            workers.register("w", hostname="h", pid=1, queues=["old"], device={"gpus": gpus}, session=session)

    def row_after_a_beat() -> Worker:
        assert presence.beat()
        with database.read() as session:
            return session.get_one(Worker, "w")

    told([GONE] * 9)  # by a process before this one, which was killed
    first = row_after_a_beat()
    assert (first.gpus, first.queues) == (Gpus.usable({"gpus": there}).number, ["default"])
    presence._device = {**presence._device, "gpus": [*there, GONE]}
    told([*there, GONE])  # by this one, before the GPU was lost
    caplog.clear()
    with caplog.at_level(logging.INFO, "worker"):
        later = row_after_a_beat()
    assert (later.gpus, later.device) == (first.gpus, first.device)
    assert [record.message for record in caplog.records] == [line for _, line in said_of(later.device)]
