"""Following one job until it ends: over its event stream while it is at work, by asking now and then while it waits."""

import time
from contextlib import closing
from typing import Final

from api.schemas import TERMINAL_STATES, Job, MetricsEvent, Progress, StateEvent
from client.board import Board
from client.client import Client, Event
from client.console import FAILED, ap, complain, out, say

WAITING: Final = ("queued", "paused")
POLL_SECONDS: Final = 2.0


def follow(client: Client, job_id: str) -> int:
    """Show the job until it ends, also through a pause; the exit code that says how."""
    job = client.job(job_id)
    with Board(out()) as board:
        while job.state not in TERMINAL_STATES:
            job = _while_it_waits(client, job, board)
            job = _while_it_runs(client, job, board)
        board.update(job.name, job)
    return _tell_end(job)


def _while_it_waits(client: Client, job: Job, board: Board) -> Job:
    """Why it waits, and its place in the queue, are no events: they change with other jobs and with the workers."""
    while job.state in WAITING:
        board.update(job.name, job)
        time.sleep(POLL_SECONDS)
        job = client.job(job.id)
    return job


def _while_it_runs(client: Client, job: Job, board: Board) -> Job:
    with closing(client.events(job.id)) as events:
        for event in events:
            job = after(job, event)
            if job.state in WAITING:
                break
            if isinstance(event, MetricsEvent):
                board.metrics(event.values)
            board.update(job.name, job)
    return client.job(job.id)


def after(job: Job, event: Event) -> Job:
    """The job as the event leaves it."""
    if isinstance(event, Progress):
        return job.model_copy(update={"progress": event})
    if isinstance(event, StateEvent):
        return job.model_copy(update={**dict(event), "waiting": None})
    return job


def _tell_end(job: Job) -> int:
    if job.state == "succeeded":
        say(f"succeeded with AP {ap(job.best_ap)}; next: tid download {job.id}" + _and_report(job))
        return 0
    reason = f"{job.state}: {job.status_reason}" if job.status_reason else job.state
    complain(f"{job.name} {reason}\n{job.detail or ''}".rstrip() + f"\ntid logs {job.id} has what the training said")
    return FAILED


def _and_report(job: Job) -> str:
    return f", tid report {job.id} (its baseline is job {job.baseline_job_id})" if job.baseline_job_id else ""
