"""What attempts left on this machine whose worker was killed before it could clean up.

An attempt works in WORK/JOB/attempt-N, and its further workers in WORK/JOB/attempt-N-node-M. The folder is made after
the claim and is not needed once the attempt is over.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from store.db import Database
from store.models import Job

log = logging.getLogger("worker")

_ATTEMPT = re.compile(r"attempt-(\d+)(-node-\d+)?")


def clear(work: Path, database: Database) -> None:
    """Delete the folders of attempts that nobody owns; other workers may be busy in the same `work`."""
    # The folders first: one that is there now, and has no owner afterwards, will not get one.
    found = [(job, number, folder) for job in _folders(work) for number, folder in attempts(job)]
    with database.read() as session:
        owned = {tuple(row) for row in session.execute(select(Job.id, Job.attempt).where(Job.lease_token.is_not(None)))}
    for job, number, folder in found:
        if (job.name, number) not in owned:
            ids = {"job_id": job.name, "attempt": number}
            log.info("deleting what attempt %d of job %s left behind", number, job.name, extra=ids)
            remove(folder)


def remove(folder: Path) -> None:
    """Delete the folder of an attempt, and that of its job where nothing else is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def attempts(job: Path) -> Iterator[tuple[int, Path]]:
    """Number and folder of each attempt in the folder of a job."""
    for folder in _folders(job):
        if match := _ATTEMPT.fullmatch(folder.name):
            yield int(match[1]), folder


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
