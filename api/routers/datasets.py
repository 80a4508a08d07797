"""Datasets: folders that the server can read, or archives that are sent to it; looked through once, then unchanged."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query, Request, Response

from api import paging
from api.deps import PartsDep, ReadSession
from api.downloads import file_answer, store_away
from api.ingest.receiving import receive
from api.ingest.upload_folder import delete_files
from api.problems import ProblemError, of_store
from api.routing import Router
from api.schemas import Dataset, DatasetIn, FieldProblem, Page
from api.views import dataset_full
from store import datasets
from store.errors import OutsideRoots
from store.jobs import Cursor
from store.uploads.archives import folder_key

log = logging.getLogger("api")

router = Router(prefix="/datasets", tags=["datasets"])

_ARCHIVE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A .zip, .tar, .tar.gz or .tar.zst file, told by its content.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    "parameters": [
        {
            "name": "Content-Digest",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "RFC 9530: `sha-256=:<base64>:`; an archive with another digest is not taken.",
        }
    ],
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "The picture."},
    304: {"description": "`If-None-Match` names the picture as it is."},
}


@router.post("", name="create", status_code=201)
def create(body: DatasetIn, parts: PartsDep, response: Response) -> Dataset:
    """Register a folder, which is then looked through (`validating`), or (without `root`) a dataset whose archive is
    to be sent with PUT /datasets/{id}/archive (`uploading`).

    GET it until it is `ready` or `invalid`; the report of an invalid one says why. It stays, with its name, until it
    is deleted.
    """
    real = _folder(body.root, parts.settings.data_roots)
    with parts.database.write() as session:
        row = datasets.register(
            name=body.name,
            root=real,
            options=body.options.model_dump(mode="json"),
            roots=parts.settings.data_roots,
            session=session,
        )
        session.refresh(row)
    if real is not None:
        parts.dataset_came.set()
    response.headers["Location"] = f"/datasets/{row.id}"
    return dataset_full(row)


@router.get("", name="list")
def list_datasets(
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> Page[Dataset]:
    """Datasets, newest first."""
    of = paging.listing("datasets")
    rows = datasets.page(session=session, limit=limit + 1, after=paging.decode(cursor, of) if cursor else None)
    shown, has_more = rows[:limit], len(rows) > limit
    following = paging.encode(Cursor(shown[-1].created_at, shown[-1].id), of) if has_more else None
    return Page(data=[dataset_full(row) for row in shown], has_more=has_more, next_cursor=following)


@router.get("/{name_or_id}", name="get")
def get(name_or_id: str, session: ReadSession) -> Dataset:
    """A dataset by its name or id: how far it is, and what was found in it."""
    return dataset_full(datasets.get(name_or_id, session=session))


@router.put("/{name_or_id}/archive", name="archive", openapi_extra=_ARCHIVE)
async def put_archive(name_or_id: str, request: Request, parts: PartsDep) -> Dataset:
    """Send the archive of a dataset that is `uploading`, as the body; it is then `validating`.

    A request that breaks off leaves nothing, and the archive can be sent again. One request at a time can send it.
    """
    return dataset_full(await receive(request, name_or_id, parts))


@router.head("/{name_or_id}/sample", name="sample-head", responses=_PICTURE, response_class=Response)
@router.get("/{name_or_id}/sample", name="sample", responses=_PICTURE, response_class=Response)
def sample(name_or_id: str, request: Request, parts: PartsDep, session: ReadSession) -> Response:
    """Some training images with their boxes and classes (JPEG)."""
    row = datasets.get(name_or_id, session=session)
    if row.index_prefix is None:
        detail = f"the dataset {row.name!r} is {row.state}; it has a sample once it is ready"
        raise ProblemError(409, "dataset_not_ready", detail)
    session.close()
    key, digest = f"{row.index_prefix}/sample.jpg", hashlib.sha256()
    try:
        for piece in parts.artifacts.stream(key):
            digest.update(piece)
    except FileNotFoundError as error:
        raise ProblemError(404, "file_gone", "the picture is gone from the store") from error
    except OSError as error:
        raise store_away(key, error) from error
    place = {"sha256": digest.hexdigest(), "filename": f"{row.name}.jpg"}
    return file_answer(request, parts.artifacts, key, **place, disposition="inline")


@router.delete("/{name_or_id}", name="delete", status_code=204)
def delete(name_or_id: str, parts: PartsDep) -> None:
    """Forget a dataset that no job names: its index, and what was uploaded. A folder of the server stays as it is."""
    with parts.database.read() as session:
        folder = folder_key(datasets.unused(name_or_id, session=session).id)
    # A bucket may take a minute to answer, and no transaction waits for it.
    with suppress(OSError):  # then only `tid gc --strangers` finds what a process that is killed now leaves
        parts.artifacts.condemn(folder)
    with parts.database.write() as session:
        row = datasets.delete(name_or_id, session=session)
    try:
        delete_files(row.id, parts.settings, parts.artifacts)
    except OSError as error:
        log.warning("the files of dataset %s could not be deleted, it is tried again: %s", row.id, error)


def _folder(root: str | None, roots: tuple[Path, ...]) -> Path | None:
    """The real folder.

    Raises:
        ProblemError: 422 where there is none, or it lies elsewhere.
    """
    if root is None:
        return None
    try:
        real = datasets.allowed_path(Path(root), roots)
    except OutsideRoots as error:
        allowed = ", ".join(str(allowed) for allowed in roots)
        raise _refusal(of_store(error).code, str(error), f"an absolute path under {allowed}") from error
    if not real.is_dir():
        raise _refusal("dataset_not_found", f"{root}: there is no such folder", "a folder of the server")
    return real


def _refusal(code: str, detail: str, expected: str) -> ProblemError:
    problem = FieldProblem(code=code, field="/root", detail=detail, expected=expected)
    return ProblemError(422, code, detail, errors=[problem])
