"""Following one job over its event stream until it ends."""

from api.schemas import Job, MetricsEvent, Progress, StateEvent
from client.board import Board
from client.client import Client, Event
from client.console import FAILED, ap, complain, out, say


def follow(client: Client, job_id: str) -> int:
    """Show the job until it ends; the exit code that says how."""
    job = client.job(job_id)
    with Board(out()) as board:
        board.update(job.name, job)
        for event in client.events(job_id):
            job = after(job, event)
            if isinstance(event, MetricsEvent):
                board.metrics(event.values)
            board.update(job.name, job)
    return _tell_end(client.job(job_id))


def after(job: Job, event: Event) -> Job:
    """The job as the event leaves it."""
    if isinstance(event, Progress):
        return job.model_copy(update={"progress": event})
    if isinstance(event, StateEvent):
        return job.model_copy(update=dict(event))
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
