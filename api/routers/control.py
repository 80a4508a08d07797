"""What can be asked of a job: pause, resume, retry, another priority, and to be forgotten."""

import logging
from collections.abc import Iterable
from contextlib import suppress

from api.deps import Parts, PartsDep, WriteSession
from api.routing import Router
from api.schemas import Job, JobPatch, RetryIn
from api.views import job_full
from store import control, deletion, jobs
from store.control import Asked

log = logging.getLogger("api")
router = Router(prefix="/jobs/{job_id}", tags=["jobs"])


@router.post("/pause", name="pause", status_code=202)
def pause(job_id: str, parts: PartsDep, session: WriteSession) -> Job:
    """Let a job, and its baseline twin, rest: its state is saved and its GPU is free until it is resumed.

    A waiting job is `paused` at once; a running one says `pausing` first. Pausing twice is no error; 409 where the job
    has ended or is being cancelled.
    """
    return job_full(control.request_pause(job_id, session=session), parts, session=session)


@router.post("/resume", name="resume", status_code=202)
def resume(job_id: str, parts: PartsDep) -> Job:
    """Queue a paused job, and its baseline twin, again: it continues from its newest state.

    Resuming a job that waits or runs is no error; 409 where it has ended or is being cancelled.
    """
    with parts.database.write() as session:
        asked = control.request_resume(job_id, session=session)
        job = job_full(asked.job, parts, session=session)
    _follow_up(asked, parts)
    return job


@router.post("/retry", name="retry", status_code=202)
def retry(job_id: str, parts: PartsDep, body: RetryIn | None = None) -> Job:
    """Another attempt at a job that failed or was cancelled, and at its baseline twin where that did too.

    Failures so far no longer count against `max_attempts`. From `checkpoint`, the default, it continues from its newest
    state, with the figures and files that led there. With `fresh`, or where no state was kept, it begins anew: earlier
    metrics, checkpoints and artifacts are gone, and none can be taken for the new result. 409 where the job has not
    ended, has succeeded, or needs the weights of a job that is gone.
    """
    fresh = body is not None and body.from_ == "fresh"
    with parts.database.write() as session:
        asked = control.request_retry(job_id, fresh=fresh, session=session)
        job = job_full(asked.job, parts, session=session)
    _follow_up(asked, parts)
    return job


@router.patch("", name="update")
def update(job_id: str, patch: JobPatch, parts: PartsDep, session: WriteSession) -> Job:
    """Change the priority of a job that has not ended, and of its baseline twin.

    It counts when the job waits; the spec stays as it was submitted.
    """
    return job_full(control.set_priority(job_id, patch.priority, session=session), parts, session=session)


@router.delete("", name="delete", status_code=204)
def delete(job_id: str, parts: PartsDep) -> None:
    """Forget a job that has ended: its metrics, logs, checkpoints and artifacts.

    Its baseline twin and the jobs that it taught stay, without it. 409 where it has not ended (cancel it first), or
    where a job that has not ended needs its weights.
    """
    with parts.database.read() as session:
        folder = deletion.check(jobs.get(job_id, session=session), session=session)
    # A bucket may take a minute to answer, and no transaction waits for it.
    with suppress(OSError):  # then only `tid gc --strangers` finds what a process that is killed now leaves
        parts.artifacts.condemn(folder)
    with parts.database.write() as session:
        deletion.delete(job_id, session=session)
    _discard([folder], parts)


def _follow_up(asked: Asked, parts: Parts) -> None:
    """What is to be done after the commit."""
    _discard(asked.outdated, parts)
    for job in asked.queued:
        parts.doorbell.ring(job.id, job.queue)


def _discard(keys: Iterable[str], parts: Parts) -> None:
    for key in keys:
        try:
            parts.artifacts.delete(key)
        except OSError as error:
            log.warning("%s could not be deleted, `tid gc` will find it: %s", key, error)
