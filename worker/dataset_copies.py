"""Copies of uploaded datasets on this machine, shared by its workers: HOME/cache/datasets/ID/data.

Their archives are among the artifacts; the first attempt that needs one unpacks it. A copy is there in full or not at
all. Who trains from it holds ID.lock shared, who makes or deletes it holds that alone: the system lets go of a lock
when its process ends, however it ends. The longest unused copies go once all take more room than TID_CACHE_BYTES.
"""

import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO

from sqlalchemy import select

from store.artifacts import ArtifactStore
from store.db import Database
from store.models import Dataset
from store.upkeep.files import size_of
from store.upkeep.gc import human
from store.uploads import archives
from store.uploads.children import Watch
from tid_core.events import TrainingFailure
from worker.settings import WorkerSettings

log = logging.getLogger("worker")

_WAIT_SECONDS = 0.2
_TELL_SECONDS = 10.0
_DELETED = ".deleted"
_RESERVE = 64 << 20


class Abandoned(Exception):
    """The attempt is to stop, or lost its job."""


@dataclass(frozen=True)
class Uploaded:
    """A dataset whose archive is among the artifacts."""

    id: str
    name: str
    key: str
    num_bytes: int


class DatasetCopies:
    """Those of this machine, for one attempt. All methods but `close` are for the thread that moves files.

    Args:
        abandoned: set once nothing is wanted any more.
        tell: takes lines for the log of the job.
    """

    def __init__(
        self, settings: WorkerSettings, artifacts: ArtifactStore, abandoned: Event, tell: Callable[[str], None]
    ) -> None:
        self._folder = folder_of(settings.home)
        self._most, self._unpacked_bytes = settings.cache_bytes, settings.unpacked_bytes
        self._artifacts, self._abandoned, self._tell = artifacts, abandoned, tell
        self._held: list[IO[str]] = []

    def hold(self, dataset: Uploaded) -> Path:
        """The folder of its content, which stays until `close`.

        Raises:
            TrainingFailure: what was uploaded cannot be unpacked.
            FileNotFoundError, ArtifactDamaged: it is not among the artifacts.
            OSError: the artifact store does not answer, or there is no room (ENOSPC).
            Abandoned: nobody waits for it any more.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(self._folder, dataset.id)
        try:
            data = self._folder / dataset.id / "data"
            while not (data.is_dir() and _take(lock, fcntl.LOCK_SH) and data.is_dir()):
                if not _take(lock, fcntl.LOCK_EX):  # another worker is at it
                    self._pause()
                elif not data.is_dir():
                    self._make(dataset, data)
            os.utime(lock.fileno())
        except BaseException:
            lock.close()
            raise
        self._held.append(lock)
        return data

    def close(self) -> None:
        for lock in self._held:
            lock.close()

    def _make(self, dataset: Uploaded, data: Path) -> None:
        began, name = time.monotonic(), f"dataset {dataset.name}"
        archive = data.with_name("archive")
        _clear(data.parent, but=archive)
        if not archive.is_file():  # whole, of a time when there was no room for its content
            self._make_room(dataset, 2 * dataset.num_bytes)
            archive = archives.bring(dataset.key, archive, self._artifacts, self._watch(f"fetching {name}"))
        answer = archives.unpack(archive, data, self._unpacked_bytes, self._watch(f"unpacking {name}"))
        if answer.refusal is not None:
            self._refuse(dataset, answer.refusal)
        data.with_name("archive").unlink(missing_ok=True)
        self._tell(f"{name} was fetched and unpacked in {time.monotonic() - began:.1f} s")
        self._make_room(dataset, 0)

    def _refuse(self, dataset: Uploaded, refusal: dict[str, str]) -> None:
        if refusal["code"] == "no_space":
            raise OSError(errno.ENOSPC, f"no room for the content of dataset {dataset.name}", str(self._folder))
        detail = f"the archive of dataset {dataset.name} cannot be unpacked on this worker: {refusal['detail']}"
        raise TrainingFailure("dataset_invalid", detail)

    def _make_room(self, dataset: Uploaded, wanted: int) -> None:
        """Delete the longest unused copies until there is room for `wanted` bytes more.

        Raises:
            OSError: there is not, on the disk (ENOSPC). A copy larger than all that may be kept is made all the same.
        """
        for path in self._folder.glob(f"*{_DELETED}"):  # of a worker that was killed
            shutil.rmtree(path, ignore_errors=True)
        folders = [path for path in _copies(self._folder) if path.name != dataset.id]
        used = size_of(self._folder)
        for folder in sorted(folders, key=_last_used):
            if used + wanted <= self._most and shutil.disk_usage(self._folder).free > wanted + _RESERVE:
                return
            used -= delete(folder)
        if wanted and (free := shutil.disk_usage(self._folder).free) < wanted + _RESERVE:
            problem = f"dataset {dataset.name} needs about {human(wanted)}, and {human(free)} are free"
            raise OSError(errno.ENOSPC, problem, str(self._folder))

    def _watch(self, doing: str) -> Watch:
        told = -_TELL_SECONDS

        def watch(done: int | None, total: int | None) -> None:
            nonlocal told
            if self._abandoned.is_set():
                raise Abandoned(doing)
            if time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                self._tell(f"{doing}: {human(done or 0)} of {human(total)}" if total else doing)

        return watch

    def _pause(self) -> None:
        if self._abandoned.wait(_WAIT_SECONDS):
            raise Abandoned("waiting for another worker")


def folder_of(home: Path) -> Path:
    return home / "cache" / "datasets"


def forget_unknown(home: Path, database: Database) -> None:
    """Delete the copies of datasets that were deleted, unless somebody trains from them."""
    folder = folder_of(home)
    found = _copies(folder) if folder.is_dir() else []
    if not found:
        return
    with database.read() as session:
        known = set(session.scalars(select(Dataset.id)))
    for path in found:
        if path.name not in known:
            log.info("deleting the copy of dataset %s, which was deleted", path.name)
            delete(path)


def delete(folder: Path) -> int:
    """Delete a copy; returns its bytes, 0 where somebody uses it or has deleted it just now."""
    with _open_lock(folder.parent, folder.name) as lock:
        if not _take(lock, fcntl.LOCK_EX) or not folder.is_dir():
            return 0
        size, doomed = size_of(folder), folder.with_name(f"{folder.name}{_DELETED}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        return size


def _open_lock(folder: Path, dataset_id: str) -> IO[str]:
    return (folder / f"{dataset_id}.lock").open("a")


def _copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.suffix]


def _clear(folder: Path, *, but: Path) -> None:
    """What a worker left that was killed."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path != but:
            path.unlink()


def _last_used(folder: Path) -> float:
    lock = folder.with_name(f"{folder.name}.lock")
    return lock.stat().st_mtime if lock.exists() else 0.0


def _take(lock: IO[str], kind: int) -> bool:
    """Whether it is taken so now; where it is not, what was held of it before is given up."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_UN)
        return False
    return True
