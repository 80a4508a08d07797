"""Copies of uploaded datasets on a host: made once, whole, kept while somebody trains from them, and not for ever."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import FolderArtifacts
from store.db import Database
from store.ids import new_id
from store.models import Dataset
from store.states import State
from store.uploads.archives import archive_key
from store.uploads.packing import pack
from tid_core.events import TrainingFailure
from worker.dataset_copies import Abandoned, DatasetCopies, Uploaded, delete, folder_of, forget_unknown
from worker.settings import WorkerSettings

CONTENT = b"\x89PNG" + bytes(range(256)) * 400


class Host:
    """A machine with workers, and artifacts that uploaded datasets are among."""

    def __init__(self, home: Path) -> None:
        self.settings = WorkerSettings(home=home, worker_id="worker-1")
        self.artifacts = FolderArtifacts(home / "artifacts")
        self.said: list[str] = []
        self.abandoned = threading.Event()
        self._open: list[DatasetCopies] = []

    def attempt(self, **changes: Any) -> DatasetCopies:
        settings = self.settings.model_copy(update=changes)
        self._open.append(DatasetCopies(settings, self.artifacts, self.abandoned, self.said.append))
        return self._open[-1]

    def upload(self, content: bytes = CONTENT) -> Uploaded:
        one = new_id()
        folder, archive = self.settings.home / one, self.settings.home / f"{one}.tar"
        folder.mkdir()
        (folder / "1.png").write_bytes(content)
        pack(folder, archive)
        return self.store(one, archive)

    def store(self, one: str, archive: Path) -> Uploaded:
        key = archive_key(one, "0" * 64)  # in a folder it is taken as it lies there
        return Uploaded(one, f"set-{one}", key, self.artifacts.put(key, archive).num_bytes)

    def copies(self) -> set[str]:
        return {path.parent.name for path in folder_of(self.settings.home).glob("*/data")}

    def close(self) -> None:
        for one in self._open:
            one.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def test_attempts_that_begin_at_once_make_one_copy(host: Host) -> None:
    dataset = host.upload()
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda copies: copies.hold(dataset), [host.attempt() for _ in range(4)]))
    assert len(set(found)) == 1
    assert (found[0] / "1.png").read_bytes() == CONTENT
    assert len([line for line in host.said if "was fetched and unpacked" in line]) == 1
    assert sorted(path.name for path in found[0].parent.iterdir()) == ["data"], "nothing else is left"


def test_what_a_killed_worker_left_is_made_anew(host: Host) -> None:
    dataset = host.upload()
    code = f"""
import os, signal
from pathlib import Path
from store.uploads import archives
from tests.worker.test_dataset_copies import Host
from worker.dataset_copies import Uploaded
def begins_and_dies(archive, out, *_):
    out.with_name(".data.partial").mkdir()
    (out.parent / "half").write_bytes(b"")
    os.kill(os.getpid(), signal.SIGKILL)
archives.unpack = begins_and_dies
Host(Path({str(host.settings.home)!r})).attempt().hold(Uploaded(*{tuple(dataset.__dict__.values())!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = folder_of(host.settings.home) / dataset.id
    assert (folder / "half").exists()
    assert not (folder / "data").exists()
    data = host.attempt().hold(dataset)
    assert [path.name for path in folder.iterdir()] == ["data"]
    assert (data / "1.png").read_bytes() == CONTENT


def test_the_longest_unused_copies_go_first_and_none_in_use(host: Host) -> None:
    used, older, newer, new = (host.upload() for _ in range(4))
    for one in (used, older, newer):
        host.attempt().hold(one)
    host.close()
    host.attempt().hold(used)
    for age, one in enumerate((used, older, newer)):
        os.utime(folder_of(host.settings.home) / f"{one.id}.lock", (age, age))
    room = 2 * len(CONTENT) + 2 * new.num_bytes  # for two copies, and an archive with its content
    host.attempt(cache_bytes=room).hold(new)
    assert host.copies() == {used.id, newer.id, new.id}


def test_one_that_another_worker_has_just_deleted_is_passed_over(host: Host) -> None:
    dataset = host.upload()
    host.attempt().hold(dataset)
    host.close()
    found = folder_of(host.settings.home) / dataset.id  # by two workers that look at once
    assert delete(found) > 0
    assert delete(found) == 0


def test_one_that_is_larger_than_the_room_is_kept_while_it_is_used(host: Host) -> None:
    large, other = host.upload(), host.upload()
    host.attempt(cache_bytes=1024).hold(large)
    assert host.copies() == {large.id}
    host.close()
    host.attempt(cache_bytes=1024).hold(other)
    assert host.copies() == {other.id}


def test_who_waits_for_another_worker_hears_that_nobody_wants_it_any_more(host: Host) -> None:
    dataset = host.upload()
    folder_of(host.settings.home).mkdir(parents=True)
    with (folder_of(host.settings.home) / f"{dataset.id}.lock").open("a") as lock, ThreadPoolExecutor(1) as thread:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = thread.submit(host.attempt().hold, dataset)
        host.abandoned.set()
        with pytest.raises(Abandoned):
            waiting.result()


def test_nothing_is_unpacked_for_nobody(host: Host) -> None:
    dataset = host.upload()
    host.abandoned.set()
    with pytest.raises(Abandoned):
        host.attempt().hold(dataset)
    assert host.copies() == set()


def test_an_archive_that_cannot_be_unpacked_says_why(host: Host) -> None:
    file = host.settings.home / "no-archive"
    file.write_bytes(b"something else")
    dataset = host.store(new_id(), file)
    with pytest.raises(TrainingFailure, match="cannot be unpacked on this worker: the file is no archive") as caught:
        host.attempt().hold(dataset)
    assert caught.value.reason == "dataset_invalid"


def test_copies_of_deleted_datasets_go_when_a_worker_starts(host: Host, sqlite_template: Path) -> None:
    known, used, gone = (host.upload() for _ in range(3))
    database = Database(f"sqlite:///{shutil.copyfile(sqlite_template, host.settings.home / 'tid.db')}")
    with database.write() as session:
        session.add(Dataset(id=known.id, name=known.name, source="archive", state="validating"))
    for dataset in (known, gone):
        host.attempt().hold(dataset)
    host.close()
    host.attempt().hold(used)
    forget_unknown(host.settings.home, database)
    database.close()
    assert host.copies() == {known.id, used.id}


def test_a_job_that_waits_for_a_copy_keeps_its_lease_and_hears_a_cancel(lite: Any) -> None:
    with lite.database.write() as session:
        row = session.get_one(Dataset, lite.dataset_id)
        row.source, row.root = "archive", archive_key(row.id, "0" * 64)
    folder = folder_of(lite.settings.home)
    folder.mkdir(parents=True)
    lite.settings = lite.settings.model_copy(update={"lease_seconds": 1.0, "heartbeat_seconds": 0.2})
    job_id = lite.submit()
    with (folder / f"{lite.dataset_id}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        attempt = lite.start(job_id)
        lite.wait_for(lambda: lite.job(job_id).state is State.STARTING)
        first = lite.job(job_id).lease_expires_at
        lite.wait_for(lambda: lite.job(job_id).lease_expires_at > first + timedelta(seconds=1))
        lite.cancel(job_id)
        attempt.join()
    assert lite.job(job_id).state is State.CANCELLED
