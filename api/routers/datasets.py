"""Datasets: folders that the server can read, scanned when they are registered."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import ValidationError

from api import paging
from api.deps import PartsDep, ReadSession
from api.problems import ProblemError, of_store
from api.schemas import Dataset, DatasetIn, FieldProblem, Page
from store import datasets, models
from store.errors import OutsideRoots
from store.jobs import Cursor
from tid_core.data.problems import UNUSABLE_IMAGES
from tid_core.facts import DatasetError, DatasetFacts, find_splits, read_facts

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post("", name="create", status_code=201)
def create(body: DatasetIn, parts: PartsDep, response: Response) -> Dataset:
    """Register a folder and scan it: annotation files, boxes, and every image.

    Boxes that cannot be used are told in the answer and left out of training; a dataset that cannot be trained on at
    all is refused with what is wrong.
    """
    roots = parts.settings.data_roots
    real = _allowed(Path(body.root), roots)
    facts = _usable_facts(real, body.name, roots)
    with parts.database.write() as session:
        row = datasets.register(
            name=body.name,
            root=real,
            facts=facts.model_dump(mode="json"),
            classes=facts.classes,
            roots=roots,
            session=session,
        )
        session.refresh(row)
        dataset = _view(row)
    response.headers["Location"] = f"/datasets/{dataset.id}"
    return dataset


@router.get("", name="list")
def list_datasets(
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> Page[Dataset]:
    """Datasets, newest first."""
    rows = datasets.page(session=session, limit=limit + 1, after=paging.decode(cursor) if cursor else None)
    shown, has_more = rows[:limit], len(rows) > limit
    following = paging.encode(Cursor(shown[-1].created_at, shown[-1].id)) if has_more else None
    return Page(data=[_view(row) for row in shown], has_more=has_more, next_cursor=following)


@router.get("/{name_or_id}", name="get")
def get(name_or_id: str, session: ReadSession) -> Dataset:
    """A dataset by its name or id, with what the scan found."""
    return _view(datasets.get(name_or_id, session=session))


def _allowed(path: Path, roots: tuple[Path, ...]) -> Path:
    try:
        return datasets.allowed_path(path, roots)
    except OutsideRoots as error:
        refusal = of_store(error)
        allowed = ", ".join(str(allowed) for allowed in roots)
        problem = FieldProblem(
            code=refusal.code, field="/root", detail=refusal.detail, expected=f"an absolute path under {allowed}"
        )
        raise ProblemError(422, refusal.code, refusal.detail, errors=[problem]) from error


def _usable_facts(root: Path, name: str, roots: tuple[Path, ...]) -> DatasetFacts:
    """Raises:
    ProblemError: 422 with everything that stands in the way of training.
    """
    try:
        for split in find_splits(root).values():  # a link inside the folder may lead out of the roots
            _allowed(split.annotations, roots)
            _allowed(split.images, roots)
        facts = read_facts(root, name, check_images=True)
    except (DatasetError, OSError, ValidationError) as error:
        code = error.code if isinstance(error, DatasetError) else "dataset_unreadable"
        problem = FieldProblem(code=code, field="/root", detail=str(error), expected="")
        raise ProblemError(422, code, str(error), errors=[problem]) from error
    problems = [
        FieldProblem(
            code=problem.code,
            field="/root",
            detail=f"{split}: {problem}",
            expected="images that are present, whole and of the stated size",
        )
        for split, found in facts.splits.items()
        for problem in found.problems
        if problem.code in UNUSABLE_IMAGES
    ]
    if problems:
        detail = f"the dataset in {root} cannot be trained on: {problems[0].detail}"
        raise ProblemError(422, "dataset_invalid", detail, errors=problems)
    return facts


def _view(row: models.Dataset) -> Dataset:
    same = {name: getattr(row, name) for name in Dataset.model_fields if hasattr(row, name)}
    return Dataset.model_validate({**same, "splits": row.facts["splits"]})
