"""Students that a job has written: best, last, epoch-N, each in several formats."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.db import db_now
from store.errors import NotFound
from store.fencing import Claim, guard
from store.models import Checkpoint


def record(
    claim: Claim,
    *,
    name: str,
    file_format: str,
    key: str,
    sha256: str,
    num_bytes: int,
    step: int,
    epoch: int,
    ap: float | None,
    session: Session,
) -> str | None:
    """Note a file that lies in the artifact store. Give each write its own key: a download may still read the old one.

    Returns:
        The key that this one replaces, to be deleted after the commit.

    Raises:
        LeaseLost: the job has another owner or none.
    """
    guard(claim, session=session)
    row = session.get(Checkpoint, (claim.job_id, name, file_format))
    replaced = row.key if row is not None and row.key != key else None
    if row is None:
        row = Checkpoint(job_id=claim.job_id, name=name, format=file_format)
        session.add(row)
    row.key, row.sha256, row.bytes, row.attempt = key, sha256, num_bytes, claim.attempt
    row.step, row.epoch, row.ap, row.created_at = step, epoch, ap, db_now()
    session.flush()
    return replaced


def get(job_id: str, name: str, *, file_format: str = "safetensors", session: Session) -> Checkpoint:
    """Raises:
    NotFound: the job kept no such checkpoint.
    """
    row = session.get(Checkpoint, (job_id, name, file_format))
    if row is None:
        kept = ", ".join(dict.fromkeys(row.name for row in of_job(job_id, session=session))) or "none yet"
        raise NotFound("checkpoint", name, f"as {file_format} of job {job_id}; it has: {kept}")
    return row


def of_job(job_id: str, *, session: Session) -> list[Checkpoint]:
    order = (Checkpoint.name, Checkpoint.format)
    return list(session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(*order)))
