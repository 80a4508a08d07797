"""Files out of the artifact store: Range, If-Range, HEAD, and an ETag that is the content's sha256.

A file of a folder is sent as it lies there; one in a bucket goes through the server piece by piece, or the answer says
where it can be had.
"""

import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from os import stat_result
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi import Request
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse

from api.problems import ProblemError
from store.artifacts import ArtifactStore

log = logging.getLogger("api")

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_OTHER: Final = "application/octet-stream"
MEDIA_TYPES = {
    ".safetensors": _OTHER,
    ".pt": _OTHER,
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}
Disposition = Literal["attachment", "inline"]
_READERS: Final = 32
"""Threads that wait for the next piece of a file; those of the requests wait for none."""
_reading: RunVar[CapacityLimiter] = RunVar("reading")


class _Part(NamedTuple):
    first: int
    stop: int


def file_answer(
    request: Request,
    artifacts: ArtifactStore,
    key: str,
    *,
    sha256: str,
    filename: str,
    disposition: Disposition = "attachment",
) -> Response:
    """The file under the key, whose content is known to have the digest `sha256` (hex).

    What is to be saved may be answered by where it is; what is to be shown comes from here, as pages demand. End the
    session before: a bucket that does not answer would otherwise take the connections of all other requests.

    Raises:
        ProblemError: 404 where the file is gone, 416 where the range lies outside of it, 503 where the store is away.
    """
    headers = {
        "ETag": f'"sha256-{sha256}"',
        "X-Checksum-SHA256": sha256,
        "Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:",
    }
    path = artifacts.local(key)
    try:
        found = path.stat() if path is not None else None
        size = found.st_size if found is not None else artifacts.size(key)
    except OSError as error:
        raise _gone(filename) if path is not None else store_away(key, error) from error
    if size is None:
        raise _gone(filename)
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    part = _asked_part(request, headers["ETag"], size)
    if path is not None:
        return _of_folder(path, found, headers, filename, disposition)
    if request.method == "GET" and disposition == "attachment" and (url := artifacts.url(key)) is not None:
        return RedirectResponse(url, 307, {**headers, "Cache-Control": "no-store"})
    headers |= {"Accept-Ranges": "bytes", "Content-Disposition": _disposition(disposition, filename)}
    if part is None:
        return _of_bucket(request, artifacts, key, _Part(0, size), 200, headers)
    headers["Content-Range"] = f"bytes {part.first}-{part.stop - 1}/{size}"
    return _of_bucket(request, artifacts, key, part, 206, headers)


def _of_folder(
    path: Path, found: stat_result | None, headers: dict[str, str], filename: str, disposition: Disposition
) -> Response:
    return FileResponse(
        path,
        headers=headers,
        media_type=MEDIA_TYPES.get(path.suffix, _OTHER),
        filename=filename,
        stat_result=found,
        content_disposition_type=disposition,
    )


def _of_bucket(
    request: Request, artifacts: ArtifactStore, key: str, part: _Part, status: int, headers: dict[str, str]
) -> Response:
    """Asks for the bytes at once: what is not there, or cannot be had, is told by the status."""
    headers["Content-Length"] = str(part.stop - part.first)
    media_type = MEDIA_TYPES.get(PurePosixPath(key).suffix, _OTHER)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    try:
        pieces = artifacts.stream(key, part.first, part.stop)
    except FileNotFoundError as error:
        raise _gone(PurePosixPath(key).name) from error
    except OSError as error:
        raise store_away(key, error) from error
    return StreamingResponse(_in_threads(pieces), status, headers, media_type)


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    limiter = _reading.get(None) or CapacityLimiter(_READERS)
    _reading.set(limiter)
    while (piece := await to_thread.run_sync(next, pieces, b"", limiter=limiter)) != b"":
        yield piece


def _gone(filename: str) -> ProblemError:
    return ProblemError(404, "file_gone", f"{filename} is recorded, but its file is gone from the store")


def store_away(key: str, error: OSError) -> ProblemError:
    log.warning("%s cannot be sent: %s", key, error)
    detail = "the artifact store does not answer, GET /readyz says why; try again"
    return ProblemError(503, "artifacts_unavailable", detail, headers={"Retry-After": "5"})


def _disposition(disposition: Disposition, filename: str) -> str:
    quoted = quote(filename)
    return (
        f'{disposition}; filename="{filename}"' if quoted == filename else f"{disposition}; filename*=utf-8''{quoted}"
    )


def _matches(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _asked_part(request: Request, etag: str, size: int) -> _Part | None:
    """Which bytes, None = all; a header that is not one byte range is taken away, and all of them are sent.

    RFC 9110 wants a malformed range ignored and lets a server answer several ranges with the whole file.

    Raises:
        ProblemError: 416, the range lies beyond the end.
    """
    header = request.headers.get("range")
    if header is None or request.headers.get("if-range", etag) != etag:
        return None
    match = _RANGE.fullmatch(header.replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    if (not first and not last) or (first and last and int(first) > int(last)):
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
        return None
    if (first and int(first) >= size) or (not first and int(last) == 0):
        detail = f"the file has {size} bytes, so {header!r} lies outside of it"
        raise ProblemError(416, "range_not_satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    if not first:
        return _Part(max(0, size - int(last)), size)
    return _Part(int(first), min(int(last) + 1, size) if last else size)
