"""What attempts leave on a machine: it goes, and nothing else does."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from store.reaper import expire_of
from worker import leftovers
from worker.planning import prepare
from worker.presence import Presence
from worker.uploads import Storage


def attempt(work: Path, job_id: str, number: int) -> Path:
    folder = work / job_id / f"attempt-{number}"
    (folder / "out").mkdir(parents=True)
    (folder / "out" / "file").write_text("x")
    return folder


def test_folders_go_unless_somebody_works_in_them(lite: Any) -> None:
    work, busy, idle = lite.settings.home / "work", lite.submit(), lite.submit()
    lite.claim(busy, "worker-2")
    kept = [attempt(work, busy, 1), work / "notes"]
    (work / "notes").mkdir()
    gone = [attempt(work, busy, 0), attempt(work, idle, 1), attempt(work, "0123456789ab", 3)]
    leftovers.clear(work, lite.database)
    leftovers.clear(lite.settings.home / "nothing", lite.database)
    assert all(folder.is_dir() for folder in kept)
    assert not any(folder.parent.exists() for folder in gone[1:])
    assert not gone[0].exists()


def test_a_worker_begins_by_tidying_up_once(lite: Any) -> None:
    """What its last process held goes back to the queue, and its files go; what it claims itself stays."""
    job_id = lite.submit()
    lite.claim(job_id, lite.settings.worker_id)
    folder = attempt(lite.settings.home / "work", job_id, 1)
    presence = Presence(lite.settings)
    assert presence.beat()
    assert (lite.job(job_id).state, lite.job(job_id).status_reason) == ("queued", "worker_lost")
    assert not folder.exists()
    lite.claim(job_id, lite.settings.worker_id)
    folder = attempt(lite.settings.home / "work", job_id, 2)
    assert presence.beat()
    assert lite.job(job_id).state == "starting"
    assert folder.exists()


def test_nobody_waits_to_write_while_a_worker_tidies_up(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_meanwhile(folder: Path) -> None:
        removed.append(folder)
        with closing(sqlite3.connect(str(lite.database.engine.url.database), timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")

    removed: list[Path] = []
    monkeypatch.setattr(leftovers, "remove", write_meanwhile)
    folder = attempt(lite.settings.home / "work", lite.submit(), 1)
    assert Presence(lite.settings).beat()
    assert removed == [folder]


def test_a_worker_that_slept_too_long_leaves_its_successor_alone(lite: Any) -> None:
    """Frozen between its claim and its plan, it goes on where another one has long begun."""
    job_id = lite.submit()
    sleeper = lite.claim(job_id, "worker-1")
    with lite.database.write() as session:
        expire_of("worker-1", session=session)
    lite.claim(job_id, "worker-2")
    work = lite.settings.home / "work"
    earlier, own, later = attempt(work, job_id, 0), attempt(work, job_id, 1), attempt(work, job_id, 2)
    storage = Storage(lite.settings, sleeper)
    prepare(sleeper, lite.database, lite.settings, storage, own)
    storage.close()
    assert (later / "out" / "file").exists()
    assert not earlier.exists()
    assert not (own / "out").exists()
