"""Files of a job: checkpoints, maps, other artifacts. GET and HEAD, Range, ETag, sha256."""

import re
from itertools import groupby
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from api.deps import PartsDep, ReadSession
from api.downloads import MEDIA_TYPES, file_answer
from api.routing import Router
from api.schemas import ArtifactOut, CheckpointFile, CheckpointOut, Items
from store import checkpoints, jobs, models, outputs
from store.errors import NotFound

router = Router(prefix="/jobs/{job_id}", tags=["jobs"])

Format = Literal["safetensors", "pt", "card"]
_SUFFIXES = {"safetensors": ".safetensors", "pt": ".pt", "card": ".json"}
_MEDIA_TYPES: dict[str, Any] = {media_type: {} for media_type in sorted(set(MEDIA_TYPES.values()))}
_FILE_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": _MEDIA_TYPES, "description": "The file."},
    206: {"content": _MEDIA_TYPES, "description": "The part of the file that `Range` asked for."},
    304: {"description": "`If-None-Match` names the file as it is."},
    416: {"description": "`Range` lies outside of the file."},
}
_ELSEWHERE = "With `TID_S3_REDIRECT`: where the file can be had for some minutes. Its digest is told here."
_SAVED_ANSWER: dict[int | str, dict[str, Any]] = {**_FILE_ANSWER, 307: {"description": _ELSEWHERE}}


@router.get("/checkpoints", name="checkpoints")
def list_checkpoints(job_id: str, session: ReadSession) -> Items[CheckpointOut]:
    """Students written so far: best, last, and epoch-N where they are kept."""
    jobs.get(job_id, session=session)
    rows = checkpoints.of_job(job_id, session=session)
    return Items(data=[_checkpoint(list(group)) for _, group in groupby(rows, key=lambda row: row.name)])


def _checkpoint(rows: list[models.Checkpoint]) -> CheckpointOut:
    first = rows[0]
    files = [
        CheckpointFile(
            format=row.format,
            bytes=row.bytes,
            sha256=row.sha256,
            url=f"/jobs/{row.job_id}/checkpoints/{row.name}?format={row.format}",
        )
        for row in rows
    ]
    return CheckpointOut(
        name=first.name,
        step=first.step,
        epoch=first.epoch,
        ap=first.ap,
        attempt=first.attempt,
        created_at=first.created_at,
        files=files,
    )


@router.head("/checkpoints/{name}", name="checkpoint-head", responses=_FILE_ANSWER, response_class=Response)
@router.get("/checkpoints/{name}", name="checkpoint", responses=_SAVED_ANSWER, response_class=Response)
def checkpoint(
    job_id: str,
    name: str,
    request: Request,
    parts: PartsDep,
    session: ReadSession,
    format: Annotated[Format, Query(description="`card`: the model card (JSON).")] = "safetensors",  # noqa: A002
) -> Response:
    """The student's weights: best, last or epoch-N. Both formats hold a plain torchvision state_dict."""
    job = jobs.get(job_id, session=session)
    row = checkpoints.get(job_id, name, file_format=format, session=session)
    filename = f"{_file_stem(job.name)}-{job_id}-{name}{_SUFFIXES[format]}"
    session.close()
    return file_answer(request, parts.artifacts, row.key, sha256=row.sha256, filename=filename)


@router.get("/maps", name="maps")
def list_maps(job_id: str, session: ReadSession) -> Items[ArtifactOut]:
    """Pictures of the TID areas over validation images."""
    return _list(job_id, "map", session=session)


@router.head("/maps/{name}", name="map-head", responses=_FILE_ANSWER, response_class=Response)
@router.get("/maps/{name}", name="map", responses=_FILE_ANSWER, response_class=Response)
def map_picture(job_id: str, name: str, request: Request, parts: PartsDep, session: ReadSession) -> Response:
    """One picture (PNG)."""
    jobs.get(job_id, session=session)
    row = outputs.get(job_id, "map", name, session=session)
    place = {"sha256": row.sha256, "filename": row.name}
    session.close()
    return file_answer(request, parts.artifacts, row.key, **place, disposition="inline")


@router.get("/artifacts", name="artifacts")
def list_artifacts(job_id: str, session: ReadSession) -> Items[ArtifactOut]:
    """Every file of the job that is no checkpoint: maps, detections on the validation split."""
    return _list(job_id, None, session=session)


@router.head("/artifacts/{name}", name="artifact-head", responses=_FILE_ANSWER, response_class=Response)
@router.get("/artifacts/{name}", name="artifact", responses=_SAVED_ANSWER, response_class=Response)
def artifact(job_id: str, name: str, request: Request, parts: PartsDep, session: ReadSession) -> Response:
    """One of these files."""
    jobs.get(job_id, session=session)
    found = [row for row in outputs.of_job(job_id, session=session) if row.name == name]
    if not found:
        raise NotFound("artifact", name, f"of job {job_id}")
    row = found[0]
    session.close()
    return file_answer(request, parts.artifacts, row.key, sha256=row.sha256, filename=row.name)


def _list(job_id: str, kind: str | None, *, session: Session) -> Items[ArtifactOut]:
    jobs.get(job_id, session=session)
    rows = outputs.of_job(job_id, kind=kind, session=session)
    return Items(data=[_artifact_out(row) for row in rows])


def _artifact_out(row: models.Artifact) -> ArtifactOut:
    folder = "maps" if row.kind == "map" else "artifacts"
    url = f"/jobs/{row.job_id}/{folder}/{row.name}"
    return ArtifactOut(kind=row.kind, name=row.name, bytes=row.bytes, sha256=row.sha256, url=url)


def _file_stem(name: str) -> str:
    """The name of a job as part of a file name, on any system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "student"
