"""Datasets: a folder of the server or an uploaded archive, looked through once, and unchanged from then on.

`uploading` -> `validating` -> `ready` | `invalid`. Of many processes that could receive or index a dataset, one holds
it: by the lease `dataset:<id>`, whose token every write names.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import delete as sql_delete
from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store import leases
from store.db import db_now
from store.errors import DatasetInUse, HoldLost, NameTaken, NotFound, NotUploading, OutsideRoots, UploadInProgress
from store.jobs import Cursor
from store.models import Dataset, DatasetState, Job, Json, Lease
from store.text import storable_json

_JOBS_NAMED: Final = 5


class Hold(NamedTuple):
    """The right to work on a dataset, while its lease is renewed."""

    dataset_id: str
    token: str

    @property
    def lease(self) -> str:
        return _lease(self.dataset_id)


def allowed_path(path: Path, roots: Sequence[Path]) -> Path:
    """The real path, with links followed, if it lies under an allowed root.

    Raises:
        OutsideRoots: it does not, or its links lead nowhere.
    """
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        raise OutsideRoots(path, tuple(roots)) from None
    if not path.is_absolute() or not any(real.is_relative_to(root.resolve()) for root in roots):
        raise OutsideRoots(path, tuple(roots))
    return real


def register(*, name: str, root: Path | None, options: Json, roots: Sequence[Path], session: Session) -> Dataset:
    """A folder, to be validated, or (without `root`) a dataset whose archive is to come.

    Raises:
        OutsideRoots: the folder is not under an allowed root.
        NameTaken: another dataset has this name.
    """
    if root is None:
        dataset = Dataset(name=name, source="archive", options=options, state="uploading")
    else:
        real = str(allowed_path(root, roots))
        dataset = Dataset(name=name, source="folder", root=real, options=options, state="validating")
    try:
        with session.begin_nested():
            session.add(dataset)
    except IntegrityError:
        holder = session.scalar(select(Dataset).where(Dataset.name == name))
        if holder is None:
            raise
        raise NameTaken(name, holder.id, holder.state) from None
    return dataset


def get(name_or_id: str, *, session: Session) -> Dataset:
    """A dataset by its name or, where no name is so, by its id.

    Raises:
        NotFound: neither is known.
    """
    found = session.scalars(select(Dataset).where(or_(Dataset.name == name_or_id, Dataset.id == name_or_id))).all()
    if not found:
        raise NotFound("dataset", name_or_id)
    return next((dataset for dataset in found if dataset.name == name_or_id), found[0])


def page(*, session: Session, limit: int = 50, after: Cursor | None = None, state: str | None = None) -> list[Dataset]:
    """Datasets, newest first; all, or those in `state`."""
    statement = select(Dataset).order_by(Dataset.created_at.desc(), Dataset.id.desc()).limit(limit)
    if state is not None:
        statement = statement.where(Dataset.state == state)
    if after is not None:
        statement = statement.where(after.older(Dataset.created_at, Dataset.id))
    return list(session.scalars(statement))


def stored_archive(dataset: Dataset) -> str | None:
    """Key of the archive among the artifacts, which is then the root of the dataset; None: its root is a folder."""
    root = dataset.root
    return root if root is not None and dataset.source == "archive" and not root.startswith("/") else None


def pin(dataset: Dataset, *, session: Session) -> None:
    """Keep a dataset from being deleted before this transaction ends.

    Raises:
        NotFound: it was deleted already.
    """
    there = select(Dataset.id).where(Dataset.id == dataset.id).with_for_update(read=True, key_share=True)
    if session.scalar(there) is None:
        raise NotFound("dataset", dataset.name)


def waiting(*, session: Session) -> list[str]:
    """Ids of the datasets that are to be validated, in the order in which they came."""
    statement = select(Dataset.id).where(Dataset.state == "validating").order_by(Dataset.created_at, Dataset.id)
    return list(session.scalars(statement))


def hold(dataset_id: str, state: DatasetState, *, seconds: float, session: Session) -> Hold | None:
    """Become the one who works on a dataset in this state.

    Returns:
        None where another process does, or the dataset is not (or no longer) in this state.
    """
    taken = Hold(dataset_id, secrets.token_hex(16))
    if not leases.acquire(taken.lease, taken.token, seconds=seconds, session=session):
        return None
    if session.scalar(select(Dataset.state).where(Dataset.id == dataset_id)) != state:
        let_go(taken, session=session)
        return None
    return taken


def hold_for_upload(name_or_id: str, *, seconds: float, session: Session) -> Hold:
    """Become the one who receives the archive.

    Raises:
        NotFound: there is no such dataset.
        NotUploading: it takes no archive.
        UploadInProgress: another request is sending one.
    """
    row = get(name_or_id, session=session)
    if row.state != "uploading":
        raise NotUploading(row.name, row.state)
    taken = hold(row.id, "uploading", seconds=seconds, session=session)
    if taken is None:
        raise UploadInProgress(row.name)
    return taken


def keep(taken: Hold, progress: Json | None, *, seconds: float, session: Session) -> None:
    """Extend the lease, and say how far the work is.

    Raises:
        HoldLost: the dataset is gone, or another process works on it.
    """
    row = _held(taken, session=session)
    row.progress = progress
    leases.acquire(taken.lease, taken.token, seconds=seconds, session=session)


def let_go(taken: Hold, *, session: Session) -> None:
    """Give the dataset up, so that another process need not wait for the end of the lease."""
    leases.release(taken.lease, taken.token, session=session)


def forget_progress(dataset_id: str, *, session: Session) -> None:
    """An upload that failed left nothing behind."""
    gone = update(Dataset).where(Dataset.id == dataset_id, Dataset.state == "uploading")
    session.execute(gone.values(progress=None))


def held_ids(*, session: Session) -> set[str]:
    """Ids of the datasets that some process works on now."""
    names = session.scalars(select(Lease.name).where(Lease.name.startswith(_lease("")), Lease.expires_at > db_now()))
    return {name.removeprefix(_lease("")) for name in names}


def finish_upload(taken: Hold, *, num_bytes: int, stored: str | None = None, session: Session) -> Dataset:
    """The archive is here: it is to be validated, by whoever takes it.

    Args:
        stored: its key, where it is among the artifacts.

    Raises:
        HoldLost: as in `keep`.
    """
    row = _held(taken, session=session)
    row.state, row.bytes, row.progress, row.root = "validating", num_bytes, None, stored
    let_go(taken, session=session)
    session.flush()
    return row


def finish_ready(
    taken: Hold, *, root: Path | str, facts: Json, classes: list[str], index_prefix: str, session: Session
) -> None:
    """The index is stored, and jobs may use the dataset. `facts` also holds its `format` and `sha256`.

    Args:
        root: its folder, or the key of its archive.

    Raises:
        HoldLost: as in `keep`.
    """
    row = _held(taken, session=session)
    row.state, row.progress, row.report, row.root = "ready", None, [], str(root)
    row.facts, row.classes, row.index_prefix = storable_json(facts), classes, index_prefix
    row.format, row.sha256 = facts.get("format"), facts.get("sha256")
    let_go(taken, session=session)


def finish_invalid(taken: Hold, report: list[Json], *, session: Session) -> None:
    """The dataset cannot be used; `report` has {code, detail} for each reason.

    Raises:
        HoldLost: as in `keep`.
    """
    row = _held(taken, session=session)
    row.state, row.progress, row.report = "invalid", None, storable_json(report)
    if row.source == "archive":
        row.root = None  # what was uploaded goes
    let_go(taken, session=session)


def delete(name_or_id: str, *, session: Session) -> Dataset:
    """Forget a dataset; its files are the caller's. Whoever works on it loses its hold.

    Raises:
        NotFound: there is no such dataset.
        DatasetInUse: jobs name it.
    """
    row = unused(name_or_id, session=session)
    try:
        with session.begin_nested():
            session.execute(sql_delete(Dataset).where(Dataset.id == row.id))
    except IntegrityError:  # a job came in between
        raise DatasetInUse(row.name, _jobs_of(row, session=session)) from None
    session.execute(sql_delete(Lease).where(Lease.name == _lease(row.id)))
    return row


def unused(name_or_id: str, *, session: Session) -> Dataset:
    """A dataset that could be deleted now.

    Raises:
        NotFound, DatasetInUse: as `delete`.
    """
    row = get(name_or_id, session=session)
    if job_ids := _jobs_of(row, session=session):
        raise DatasetInUse(row.name, job_ids)
    return row


def _jobs_of(row: Dataset, *, session: Session) -> list[str]:
    """The newest that name it."""
    named = select(Job.id).where(Job.dataset_id == row.id).order_by(Job.created_at.desc()).limit(_JOBS_NAMED)
    return list(session.scalars(named))


def _held(taken: Hold, *, session: Session) -> Dataset:
    """The row, locked, if the hold is still good."""
    own = update(Lease).where(Lease.name == taken.lease, Lease.token == taken.token).values(token=taken.token)
    row = session.get(Dataset, taken.dataset_id, with_for_update=True, populate_existing=True)
    if row is None or session.scalar(own.returning(Lease.name)) is None:
        raise HoldLost(taken.dataset_id)
    return row


def _lease(dataset_id: str) -> str:
    return f"dataset:{dataset_id}"
