"""Datasets: folders under allowed roots, with the facts that were read from them."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store.errors import NameTaken, NotFound, OutsideRoots
from store.jobs import Cursor
from store.models import Dataset, DatasetState, Json


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


def register(
    *,
    name: str,
    root: Path,
    facts: Json,
    classes: list[str],
    roots: Sequence[Path],
    state: DatasetState = "ready",
    session: Session,
) -> Dataset:
    """Raises:
    OutsideRoots: the folder is not under an allowed root.
    NameTaken: another dataset has this name.
    """
    real = allowed_path(root, roots)
    dataset = Dataset(name=name, root=str(real), facts=facts, classes=classes, state=state)
    try:
        with session.begin_nested():
            session.add(dataset)
    except IntegrityError:
        holder = session.scalar(select(Dataset).where(Dataset.name == name))
        if holder is None:
            raise
        raise NameTaken(name, holder.id) from None
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


def page(*, session: Session, limit: int = 50, after: Cursor | None = None) -> list[Dataset]:
    """Datasets, newest first."""
    statement = select(Dataset).order_by(Dataset.created_at.desc(), Dataset.id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(after.older(Dataset.created_at, Dataset.id))
    return list(session.scalars(statement))
