"""Datasets on their way to the server: an archive is sent, and what the server finds in it is waited for."""

import hashlib
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from api import schemas
from client.answers import understood
from client.download import OnBytes
from client.errors import ApiError, ClientError, DatasetInvalid
from client.transport import Transport, unreachable
from tid_core.data.options import IndexOptions

OnProgress = Callable[[schemas.Dataset], None]
ANSWER = 900.0
"""Seconds that the server may take to force a large archive to its disk."""
LOST = 3
"""Connections lost in a row before it gives up; each time all of the archive is sent again."""
STALE = 90.0
"""Seconds for which the server may take the request of a broken connection for one that still goes on."""
_CHUNK = 1 << 18
_POLL = (0.1, 2.0)
"""Seconds between two looks: the first, and the longest."""


class UploadError(ClientError):
    """The archive cannot be read, or did not arrive."""


def upload(
    transport: Transport, name: str, archive: Path, options: IndexOptions, on_bytes: OnBytes | None
) -> schemas.Dataset:
    """Register a dataset and send its archive, with its digest.

    Raises:
        UploadError: no such file, or the connection keeps breaking. ApiError: the server refuses it; then nothing of it
            stays there.
    """
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            dataset, is_new = _register(transport, name, options)
            try:
                return _send(transport, dataset, file, digest, on_bytes)
            except ApiError as error:
                if is_new and error.code != "upload_in_progress":
                    transport.request("DELETE", f"/datasets/{dataset.id}", repeatable=False, accept=(404, 409))
                raise
    except OSError as error:
        raise UploadError(f"cannot read {archive}: {error.strerror or error}") from error


def _register(transport: Transport, name: str, options: IndexOptions) -> tuple[schemas.Dataset, bool]:
    """The dataset to be filled, and whether it is new: one of an earlier try that got stuck is used again."""
    body = {"name": name, "options": options.model_dump(mode="json")}
    try:
        response = transport.request("POST", "/datasets", json=body, repeatable=False)
    except ApiError as error:
        if error.code != "name_taken":
            raise
        found = _get(transport, name)
        if found.state != "uploading" or found.options.model_dump() != options.model_dump():
            raise
        return found, False
    return understood(schemas.Dataset, response.content), True


def _send(
    transport: Transport, dataset: schemas.Dataset, file: BinaryIO, digest: bytes, on_bytes: OnBytes | None
) -> schemas.Dataset:
    headers = {"Content-Digest": f"sha-256=:{b64encode(digest).decode()}:"}
    total, path = file.seek(0, 2), f"/datasets/{dataset.id}/archive"
    lost: list[httpx.TransportError] = []
    patience = time.monotonic()
    while len(lost) < LOST:
        file.seek(0)
        try:
            body = _chunks(file, total, on_bytes)
            response = transport.put(path, body, num_bytes=total, headers=headers, answer_within=ANSWER)
            return understood(schemas.Dataset, response.content)
        except httpx.TransportError as error:
            lost.append(error)
            patience = time.monotonic() + STALE
        except ApiError as error:
            if error.code != "upload_in_progress" or time.monotonic() > patience:
                raise
        transport.pause(len(lost) + 1)
        if (found := _get(transport, dataset.id)).state != "uploading":
            return found  # it had arrived, only the answer was lost
    cause = unreachable(transport.url, lost[-1])
    raise UploadError(f"the archive could not be sent, the connection broke {LOST} times: {cause}") from lost[-1]


def _chunks(file: BinaryIO, total: int, on_bytes: OnBytes | None) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk
        if on_bytes is not None:
            on_bytes(file.tell(), total)


def wait_until_ready(transport: Transport, name_or_id: str, on_progress: OnProgress | None) -> schemas.Dataset:
    """Raises:
    DatasetInvalid: it cannot be used.
    """
    pause, longest = _POLL
    while True:
        dataset = _get(transport, name_or_id)
        if on_progress is not None:
            on_progress(dataset)
        if dataset.state == "ready":
            return dataset
        if dataset.state == "invalid":
            raise DatasetInvalid(dataset.name, [(problem.code, problem.detail) for problem in dataset.report])
        time.sleep(pause)
        pause = min(1.3 * pause, longest)


def _get(transport: Transport, name_or_id: str) -> schemas.Dataset:
    return understood(schemas.Dataset, transport.request("GET", f"/datasets/{name_or_id}").content)
