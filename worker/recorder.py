"""What a training said, on its way into the database: gathered here, written in one transaction at a time."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from store import checkpoints, claims, logs, metrics, outputs, resume_states
from store.artifacts import Stored
from store.fencing import Claim
from store.metrics import Point
from tid_core.events import (
    Artifact,
    Checkpoint,
    Event,
    Finished,
    Metrics,
    Progress,
    ResumeState,
    Started,
    Warned,
)
from worker.child import Heard
from worker.endings import Ending
from worker.settings import WorkerSettings
from worker.uploads import FileEvent, Storage, Upload

log = logging.getLogger("worker")

_TAIL_CHARACTERS = 4000
_MOST_CHARACTERS = 1 << 20


@dataclass
class _Batch:
    started: Started | None = None
    points: list[Point] = field(default_factory=list)
    progress: Progress | None = None
    warnings: list[Warned] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)
    log: str = ""


class Recorder:
    """Keeps what was heard until `clear` says that it is in the database, so that a failed write can be repeated."""

    def __init__(self, claim: Claim, storage: Storage, settings: WorkerSettings) -> None:
        self.finished: Finished | None = None
        self.log_tail = ""
        self._lost: dict[str, Ending] = {}
        self._troubles: set[str] = set()
        self._claim, self._storage, self._log_bytes = claim, storage, settings.log_bytes
        self._batch = _Batch()
        self._outdated: list[str] = []

    @property
    def pending(self) -> bool:
        return self._batch != _Batch()

    @property
    def lost_checkpoint(self) -> Ending | None:
        """Why a checkpoint could not be stored, if so."""
        return next(iter(self._lost.values()), None)

    def hear(self, heard: Heard) -> None:
        for event in heard.events:
            self._take(event)
        if heard.log:
            self.log_tail = (self.log_tail + heard.log)[-_TAIL_CHARACTERS:]
            self._batch.log = _shorten(self._batch.log + heard.log)

    def collect(self) -> None:
        """Take over the uploads that have ended."""
        if self._storage.trouble is not None:
            self._note_trouble(self._storage.trouble)
        for upload in self._storage.collect():
            event = upload.event
            if upload.failure is not None:
                self._note_failure(event, upload.failure)
            elif isinstance(event, ResumeState) and self._lost:
                # An attempt that continued from here would never write that checkpoint.
                self._storage.discard([self._storage.state_key(event)])
            else:
                self._batch.uploads.append(upload)
                if isinstance(event, Checkpoint):
                    self._lost.pop(event.name, None)

    def write(self, session: Session) -> None:
        """Write the batch.

        Raises:
            LeaseLost: the job has another owner or none.
        """
        batch, claim = self._batch, self._claim
        if batch.started is not None:
            _write_started(claim, batch.started, session)
        if batch.points:
            metrics.record(claim, batch.points, session=session)
        if batch.progress is not None:
            _write_progress(claim, batch.progress, session)
        for warning in batch.warnings:
            claims.add_warning(claim, code=warning.code, detail=warning.detail, session=session)
        self._outdated = [key for upload in batch.uploads for key in self._write_upload(upload, session)]
        if batch.log:
            logs.append(claim, batch.log, cap_bytes=self._log_bytes, session=session)

    def clear(self) -> None:
        """The batch is committed: forget it, and delete the files that its rows replaced."""
        self._storage.discard(self._outdated)
        self._outdated = []
        self._batch = _Batch()

    def _take(self, event: Event) -> None:
        match event:
            case Started():
                self._batch.started = event
            case Progress(phase="setup"):
                pass  # the step that a resumed run goes on from is not known yet; 0 would throw its bar back
            case Progress():
                self._batch.progress = event
            case Metrics():
                self._batch.points += [
                    Point(name, event.step, event.epoch, value) for name, value in event.values.items()
                ]
            case Warned():
                self._batch.warnings.append(event)
            case Finished():
                self.finished = event
            case Checkpoint() | ResumeState() | Artifact():
                self._storage.upload(event)

    def _write_upload(self, upload: Upload, session: Session) -> list[str]:
        """Returns the keys that were replaced."""
        event = upload.event
        if isinstance(event, Checkpoint):
            return _write_checkpoint(self._claim, event, upload.files, session)
        if isinstance(event, ResumeState):
            key = self._storage.state_key(event)
            return resume_states.record(self._claim, step=event.step, epoch=event.epoch, key=key, session=session)
        file = upload.files[event.name]
        place = {"key": file.key, "sha256": file.sha256}
        replaced = outputs.record(
            self._claim, kind=event.kind, name=event.name, num_bytes=file.num_bytes, **place, session=session
        )
        return [replaced] if replaced else []

    def _note_failure(self, event: FileEvent, failure: Ending) -> None:
        """A checkpoint that is lost fails the attempt in the end, unless a later one of its name is stored."""
        log.warning("job %s: %s", self._claim.job_id, failure.detail)
        if isinstance(event, Checkpoint):
            self._lost[event.name] = failure
        else:
            self._note_trouble(failure)

    def _note_trouble(self, trouble: Ending) -> None:
        """Once of each kind in an attempt: every file that the store does not take would say the same."""
        if trouble.reason not in self._troubles:
            self._troubles.add(trouble.reason)
            self._batch.warnings.append(Warned(code=trouble.reason, detail=trouble.detail))


def _write_started(claim: Claim, event: Started, session: Session) -> None:
    facts = event.model_dump(exclude={"type", "resumed_from_step", "total_steps", "epochs"})
    claims.mark_started(
        claim,
        resumed_from_step=event.resumed_from_step,
        total_steps=event.total_steps,
        epochs=event.epochs,
        run_facts=facts,
        session=session,
    )


def _write_progress(claim: Claim, event: Progress, session: Session) -> None:
    claims.record_progress(
        claim,
        step=event.step,
        epoch=event.epoch,
        eta_seconds=event.eta_seconds,
        progress=event.model_dump(exclude={"type", "step", "epoch", "eta_seconds"}),
        session=session,
    )


def _write_checkpoint(claim: Claim, event: Checkpoint, files: Mapping[str, Stored], session: Session) -> list[str]:
    """Returns the keys that were replaced."""
    replaced = [
        checkpoints.record(
            claim,
            name=event.name,
            file_format=file_format,
            key=file.key,
            sha256=file.sha256,
            num_bytes=file.num_bytes,
            step=event.step,
            epoch=event.epoch,
            ap=event.ap,
            session=session,
        )
        for file_format, file in files.items()
    ]
    return [key for key in replaced if key is not None]


def _shorten(text: str) -> str:
    """A flood keeps its end: nobody reads a megabyte of half a second."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    kept = text[-_MOST_CHARACTERS // 2 :]
    return f"[worker] {len(text) - len(kept)} characters left out here\n{kept}"
