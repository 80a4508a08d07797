"""Files between the training's folder and the artifact store, moved in a thread so that leases and logs do not wait.

One thread, so files arrive in the order in which they were announced. Keys hold the attempt and the step: a worker that
lost its job cannot overwrite what its successor stores. While the store is full the files wait, and the training goes
on; of those that the training has replaced meanwhile, only the newest is stored in the end.
"""

import errno
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from store.artifacts import ArtifactDamaged, Stored, attempt_key, open_artifacts
from store.fencing import Claim
from tid_core.events import Artifact, Checkpoint, ResumeState
from worker.dataset_copies import DatasetCopies, Uploaded
from worker.endings import Ending
from worker.settings import WorkerSettings

Result = TypeVar("Result")
FileEvent = Checkpoint | ResumeState | Artifact
FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class Upload:
    """What became of the files of one event: format or name to stored file, or why they could not be stored."""

    event: FileEvent
    files: dict[str, Stored]
    failure: Ending | None = None


class StorageFailed(Exception):
    """What an attempt needs could not be had from the artifact store."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.detail)
        self.ending = ending


class Storage:
    """The artifact store for one attempt."""

    def __init__(self, settings: WorkerSettings, claim: Claim) -> None:
        self._store = open_artifacts(settings)
        self._patience = {False: settings.storage_seconds, True: settings.full_seconds}
        self._prefix = attempt_key(claim.job_id, claim.attempt)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self._uploads: list[Future[Upload | None]] = []
        self._newest: dict[tuple[str, str], FileEvent] = {}
        self._hurry = threading.Event()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._copies = DatasetCopies(settings, self._store, self._hurry, self._lines.put)
        self._closed = False
        self.trouble: Ending | None = None
        """Why a file has to wait, if one does."""

    @property
    def busy(self) -> bool:
        return any(not upload.done() for upload in self._uploads)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Do slow work in the storage thread."""
        return self._thread.submit(work)

    def upload(self, event: FileEvent) -> None:
        if not isinstance(event, ResumeState):
            self._newest[_role(event)] = event
        self._uploads.append(self._thread.submit(self._upload, event))

    def collect(self) -> list[Upload]:
        """Uploads that ended since the last call, in order."""
        ended = []
        while self._uploads and self._uploads[0].done():
            ended.append(self._uploads.pop(0).result())
        return [upload for upload in ended if upload is not None]

    def fetch(self, key: str, target: Path, *, sha256: str | None = None) -> Path:
        """A path of a stored file or folder: where it lies, or a copy at `target`. For the thread, since it may take
        long; a store that does not answer is asked again for a while.

        Raises:
            FileNotFoundError: there is none.
            ArtifactDamaged: it is not what was put.
            StorageFailed: the store does not answer.
        """
        return self._asking(lambda: self._store.fetch(key, target, sha256=sha256))

    def content(self, dataset: Uploaded) -> Path:
        """The folder of what was uploaded, for as long as this object is not closed; raises as `fetch` and
        `DatasetCopies.hold` do."""
        return self._asking(lambda: self._copies.hold(dataset))

    def lines(self) -> list[str]:
        """What the thread has to say in the log of the job since the last call."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def _asking(self, question: Callable[[], Result]) -> Result:
        since = time.monotonic()
        while True:
            try:
                return question()
            except (FileNotFoundError, ArtifactDamaged):
                raise
            except OSError as error:
                if error.errno in FULL:  # this machine's disk
                    raise
                if self._hurry.is_set() or time.monotonic() - since > self._patience[False]:
                    raise StorageFailed(_fetch_failure(error)) from error
                self._hurry.wait(min(_RETRY_SECONDS, self._patience[False]))

    def state_key(self, event: ResumeState) -> str:
        """Key of a resume state as a whole; its manifest is stored last."""
        return f"{self._prefix}/resume/{event.path.name}"

    def discard(self, keys: list[str]) -> None:
        """Delete stored files that no row names any more."""
        if keys and not self._closed:
            self._thread.submit(self._discard, keys)

    def give_up(self) -> None:
        """From now on each file is offered once: nothing is waited for any more."""
        self._hurry.set()

    def close(self) -> None:
        """Give up the uploads that still wait, do the deletions, and end the thread."""
        self.give_up()
        self._closed = True
        for upload in self._uploads:
            upload.cancel()
        self._thread.shutdown(wait=True)
        self._copies.close()

    # -- in the thread

    def _upload(self, event: FileEvent) -> Upload | None:
        since = time.monotonic()
        while not self._is_outdated(event):
            try:
                upload = self._offer(event)
            except OSError as error:
                self.trouble = _storage_failure(error)
                patience = self._patience[error.errno in FULL]
                if self._hurry.is_set() or time.monotonic() - since > patience:
                    return None if self._is_outdated(event) else Upload(event, {}, self.trouble)
                self._hurry.wait(min(_RETRY_SECONDS, patience))
            else:
                self.trouble = None
                return upload
        return None

    def _offer(self, event: FileEvent) -> Upload | None:
        files = {name: self._store.put(key, path) for name, key, path in self._files(event)}
        changed = _difference(event, files)
        if changed is not None:
            self._discard([file.key for file in files.values()])
            if self._is_outdated(event):
                return None
        return Upload(event, files, changed)

    def _is_outdated(self, event: FileEvent) -> bool:
        """Whether the training has replaced this, so that it need not be stored; what was stored of it then goes."""
        if isinstance(event, ResumeState):
            if event.path.exists():
                return False
            self._discard([self.state_key(event)])
            return True
        if self._newest[_role(event)] is event:
            return False
        if isinstance(event, Checkpoint):
            self._discard([key for _, key, _ in self._files(event)])
        return True

    def _files(self, event: FileEvent) -> list[tuple[str, str, Path]]:
        """Name, key and path of each file."""
        if isinstance(event, Checkpoint):
            folder = f"{self._prefix}/checkpoints/step-{event.step:08d}"
            return [(kind, f"{folder}/{path.name}", path) for kind, path in event.files.items()]
        if isinstance(event, ResumeState):
            files = sorted(event.path.iterdir(), key=lambda path: (path.name == "manifest.json", path.name))
            return [(path.name, f"{self.state_key(event)}/{path.name}", path) for path in files]
        return [(event.name, f"{self._prefix}/{event.kind}/{event.name}", event.path)]

    def _discard(self, keys: list[str]) -> None:
        for key in keys:
            with suppress(OSError):
                self._store.delete(key)


def _role(event: Checkpoint | Artifact) -> tuple[str, str]:
    """What a later event of the same role takes the place of."""
    return (event.kind if isinstance(event, Artifact) else "checkpoint", event.name)


def _storage_failure(error: OSError) -> Ending:
    code = "disk_full" if error.errno in FULL else "storage_failed"
    return Ending(code, f"the artifact store does not take {error.filename or 'a file'}: {error.strerror or error}")


def _fetch_failure(error: OSError) -> Ending:
    return Ending("storage_failed", f"the artifact store does not give {error.filename}: {error.strerror or error}")


def _difference(event: FileEvent, files: Mapping[str, Stored]) -> Ending | None:
    """A checkpoint that the training replaced while it was being stored; the event of its successor follows."""
    changed = [
        name for name, file in files.items() if isinstance(event, Checkpoint) and file.sha256 != event.sha256[name]
    ]
    return (
        Ending("checkpoint_changed", f"files of a checkpoint are not those that were announced: {', '.join(changed)}")
        if changed
        else None
    )
