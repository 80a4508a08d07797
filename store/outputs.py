"""Files of a job that are not checkpoints: maps, detections, reports."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.db import db_now
from store.errors import NotFound
from store.fencing import Claim, guard
from store.models import Artifact


def record(
    claim: Claim, *, kind: str, name: str, key: str, sha256: str, num_bytes: int, session: Session
) -> str | None:
    """Note a file that lies in the artifact store.

    Returns:
        The key that this one replaces, to be deleted after the commit.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    guard(claim, session=session)
    row = session.get(Artifact, (claim.job_id, kind, name))
    replaced = row.key if row is not None and row.key != key else None
    if row is None:
        row = Artifact(job_id=claim.job_id, kind=kind, name=name)
        session.add(row)
    row.key, row.sha256, row.bytes = key, sha256, num_bytes
    row.attempt, row.created_at = claim.attempt, db_now()
    session.flush()
    return replaced


def get(job_id: str, kind: str, name: str, *, session: Session) -> Artifact:
    """Raises:
    NotFound: the job has no such file.
    """
    row = session.get(Artifact, (job_id, kind, name))
    if row is None:
        raise NotFound(kind, name, f"of job {job_id}")
    return row


def of_job(job_id: str, *, kind: str | None = None, session: Session) -> list[Artifact]:
    statement = select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.kind, Artifact.name)
    if kind is not None:
        statement = statement.where(Artifact.kind == kind)
    return list(session.scalars(statement))
