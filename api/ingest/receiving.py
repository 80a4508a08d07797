"""An archive, written to the disk as it comes in: whole, of the announced digest, or not at all."""

import asyncio
import hashlib
import logging
import os
import re
import shutil
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.downloads import store_away
from api.ingest.upload_folder import clear_if_gone, place_of
from api.problems import ProblemError
from store import datasets
from store.datasets import Hold
from store.errors import HoldLost
from store.models import Dataset
from store.uploads.archives import archive_key, is_shared
from tid_core.data.archives import KINDS, SNIFF_BYTES, sniff, unknown_kind

log = logging.getLogger("api.uploads")

SILENCE = 60.0
"""Seconds without a byte after which the sender counts as gone."""
RESERVE = 64 << 20
"""Bytes of the disk that an upload leaves to everything else."""
_BLOCK = 1 << 20
_OURS = "sha-256"
_DIGESTS = {_OURS: "sha256", "sha-512": "sha512"}
_DIGEST = re.compile(r"\s*([a-z0-9-]+)=:([A-Za-z0-9+/]*={0,2}):\s*")


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


@dataclass
class _Incoming:
    """What came so far."""

    file: BinaryIO
    declared: int | None
    expected: dict[str, bytes]
    """By algorithm, from Content-Digest."""
    is_to_be_stored: bool
    """Whether it goes to the artifacts, under a key that holds its sha256."""
    num_bytes: int = 0
    is_lost: bool = False
    """Whether the dataset was deleted, or taken over, meanwhile."""
    _block: bytearray = field(default_factory=bytearray)
    _hashes: dict[str, _Hash] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = {*self.expected, _OURS} if self.is_to_be_stored else self.expected
        self._hashes = {name: hashlib.new(_DIGESTS[name]) for name in wanted}

    async def take(self, chunk: bytes) -> None:
        self._block += chunk
        if len(self._block) >= _BLOCK:
            await self.write()

    async def write(self) -> None:
        block, self._block = bytes(self._block), bytearray()
        if self.num_bytes == 0:
            _refuse_unknown(block[:SNIFF_BYTES])
        await run_in_threadpool(self._write, block)

    def _write(self, block: bytes) -> None:
        for one in self._hashes.values():
            one.update(block)
        self.file.write(block)
        self.num_bytes += len(block)

    def settle(self) -> None:
        """Compare the digests, and force the file to the disk.

        Raises:
            ProblemError: what came is not what was announced.
        """
        for name, expected in self.expected.items():
            if self._hashes[name].digest() != expected:
                detail = f"the {name} digest of the body is not the one in Content-Digest; send it again"
                raise ProblemError(422, "digest_mismatch", detail)
        self.file.flush()
        os.fsync(self.file.fileno())

    @property
    def sha256(self) -> str:
        return self._hashes[_OURS].digest().hex()


async def receive(request: Request, name_or_id: str, parts: Parts) -> Dataset:
    """The body of the request as the archive of a dataset, which is then to be validated.

    A request that fails, on whichever side, leaves the dataset as it was: `uploading`, and nothing on the disk.

    Raises:
        ProblemError, StoreError: why it is not taken.
    """
    expected, declared = _expected_digests(request), _declared_bytes(request)
    hold = await run_in_threadpool(_hold, name_or_id, parts)
    place = place_of(hold.dataset_id, parts.settings)
    part = place.part(hold.token)
    try:
        await run_in_threadpool(_make_room, part, declared)
        with part.open("xb") as file:
            incoming = _Incoming(file, declared, expected, is_shared(parts.artifacts))
            async with _kept(hold, incoming, parts):
                await _read(request, incoming, hold)
                await run_in_threadpool(incoming.settle)
                stored = await run_in_threadpool(_store, hold, part, incoming, parts)
        return await run_in_threadpool(_finish, hold, part, incoming.num_bytes, stored, parts)
    except OSError as error:
        log.error("the archive of dataset %s cannot be written: %s", hold.dataset_id, error)
        raise ProblemError(507, "no_space", f"the server cannot keep the archive: {error.strerror}") from error
    except HoldLost as error:
        await run_in_threadpool(clear_if_gone, hold.dataset_id, parts)
        detail = "the dataset was deleted, or received from another request, while its archive came in"
        raise ProblemError(409, "dataset_gone", detail) from error
    finally:
        part.unlink(missing_ok=True)
        await run_in_threadpool(_let_go, hold, parts)


async def _read(request: Request, incoming: _Incoming, hold: Hold) -> None:
    """Raises:
    ProblemError: the sender went away, or fell silent.
    HoldLost: nobody wants the archive any more.
    """
    more = True
    while more:
        if incoming.is_lost:
            raise HoldLost(hold.dataset_id)
        try:
            async with asyncio.timeout(SILENCE):
                message = await request.receive()
        except TimeoutError:
            detail = f"nothing came for {SILENCE:.0f} s; send the archive again"
            raise ProblemError(408, "upload_silent", detail) from None
        if message["type"] == "http.disconnect":
            raise ProblemError(400, "upload_incomplete", "the connection broke; send the archive again")
        more = message.get("more_body", False)
        await incoming.take(message.get("body", b""))
    await incoming.write()


@asynccontextmanager
async def _kept(hold: Hold, incoming: _Incoming, parts: Parts) -> AsyncIterator[None]:
    """Renews the lease, and says how much has come; a database that is away for a moment is no reason to stop."""

    def renew() -> None:
        progress = {"phase": "uploading", "done": incoming.num_bytes, "total": incoming.declared}
        with parts.database.write() as session:
            datasets.keep(hold, progress, seconds=parts.settings.lease_seconds, session=session)

    async def renew_always() -> None:
        while True:
            await asyncio.sleep(parts.settings.heartbeat_seconds)
            try:
                await run_in_threadpool(renew)
            except HoldLost:
                incoming.is_lost = True
                return
            except Exception as error:
                log.warning("the upload of dataset %s could not be noted: %s", hold.dataset_id, error)

    task = asyncio.create_task(renew_always())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _hold(name_or_id: str, parts: Parts) -> Hold:
    with parts.database.write() as session:
        return datasets.hold_for_upload(name_or_id, seconds=parts.settings.lease_seconds, session=session)


def _let_go(hold: Hold, parts: Parts) -> None:
    try:
        with parts.database.write() as session:
            datasets.let_go(hold, session=session)
            datasets.forget_progress(hold.dataset_id, session=session)
    except Exception as error:
        log.warning("dataset %s could not be let go, its lease runs out by itself: %s", hold.dataset_id, error)


def _make_room(part: Path, declared: int | None) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(part.parent).free
    if declared is not None and declared + RESERVE > free:
        detail = f"the archive has {declared:,} bytes, the server has room for {max(0, free - RESERVE):,}"
        raise ProblemError(507, "no_space", detail)


def _store(hold: Hold, part: Path, incoming: _Incoming, parts: Parts) -> str | None:
    """Its key, where hosts share the artifacts alone.

    Raises:
        ProblemError: the artifact store does not take it.
    """
    if not incoming.is_to_be_stored:
        return None
    key = archive_key(hold.dataset_id, incoming.sha256)
    try:
        return parts.artifacts.put(key, part).key
    except OSError as error:
        raise store_away(key, error) from error


def _finish(hold: Hold, part: Path, num_bytes: int, stored: str | None, parts: Parts) -> Dataset:
    with parts.database.write() as session:
        row = datasets.finish_upload(hold, num_bytes=num_bytes, stored=stored, session=session)
        part.replace(place_of(hold.dataset_id, parts.settings).archive)  # only now is it sure that it is ours
    parts.dataset_came.set()
    return row


def _refuse_unknown(head: bytes) -> None:
    """Before the rest has to be sent for nothing."""
    if sniff(head) is None:
        detail = unknown_kind(head) if head else f"the body is empty; send {KINDS}"
        raise ProblemError(422, "archive_unknown", detail)


def _declared_bytes(request: Request) -> int | None:
    if request.headers.get("content-encoding", "identity") != "identity":
        detail = "send the archive as it is, without Content-Encoding"
        raise ProblemError(415, "content_encoded", detail)
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _expected_digests(request: Request) -> dict[str, bytes]:
    """From `Content-Digest: sha-256=:<base64>:` (RFC 9530); algorithms that are not known count for nothing."""
    header = request.headers.get("content-digest")
    expected = {}
    for one in header.split(",") if header else ():
        try:
            name, told = _DIGEST.fullmatch(one).groups()  # type: ignore[union-attr]
            digest = b64decode(told)
        except (AttributeError, ValueError):
            detail = "Content-Digest cannot be read; it looks like sha-256=:<base64 of the digest>:"
            raise ProblemError(422, "digest_malformed", detail) from None
        if name in _DIGESTS:
            expected[name] = digest
    return expected
