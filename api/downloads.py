"""Files out of the artifact store: Range, If-Range, HEAD, and an ETag that is the content's sha256."""

import re
from base64 import b64encode
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response

from api.problems import ProblemError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
MEDIA_TYPES = {
    ".safetensors": "application/octet-stream",
    ".pt": "application/octet-stream",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}


def file_answer(
    request: Request, path: Path, *, sha256: str, filename: str, disposition: str = "attachment"
) -> Response:
    """The file at `path`, whose content is known to have the digest `sha256` (hex).

    Raises:
        ProblemError: 404 where the file is gone, 416 where the range lies outside of it.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ProblemError(404, "file_gone", f"{filename} is recorded, but its file is gone from the store") from error
    headers = {
        "ETag": f'"sha256-{sha256}"',
        "X-Checksum-SHA256": sha256,
        "Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:",
    }
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        _check_range(request, stat.st_size)
    return FileResponse(
        path,
        headers=headers,
        media_type=MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        filename=filename,
        stat_result=stat,
        content_disposition_type=disposition,
    )


def _matches(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _check_range(request: Request, size: int) -> None:
    """Refuse a range beyond the end; take away a header that is not one byte range.

    RFC 9110 wants a malformed range ignored and lets a server answer several ranges with the whole file.
    """
    header = request.headers.get("range")
    if header is None:
        return
    match = _RANGE.fullmatch(header.replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    if (not first and not last) or (first and last and int(first) > int(last)):
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
    elif (first and int(first) >= size) or (not first and int(last) == 0):
        detail = f"the file has {size} bytes, so {header!r} lies outside of it"
        raise ProblemError(416, "range_not_satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
