"""Artifacts in a bucket of S3, through obstore: retries, parts, ranges and signatures are its work.

An object is there once S3 has all of it: a put that breaks off leaves nothing that can be read. Its sha256 lies beside
it as metadata, and is checked when it is fetched.
"""

import errno
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import obstore
from obstore.store import S3Store

from store.artifacts import (
    CONDEMNED,
    ArtifactDamaged,
    Listed,
    Stored,
    checked_key,
    is_condemned,
    is_key,
    partial_name,
)
from store.places import S3Place
from store.s3_client import connect, endpoint_of
from store.s3_errors import Where
from store.settings import Settings

if TYPE_CHECKING:  # the library has it for checkers alone
    from obstore import GetOptions

PART_BYTES: Final = 8 << 20
_PARTS_AT_ONCE: Final = 3
_MOST_PARTS: Final = 9_000  # S3 takes 10,000
_PIECE: Final = 1 << 18
_LISTED_AT_ONCE: Final = 1000
_URL_LASTS: Final = timedelta(minutes=10)
_PROBE: Final = ".writable"
_SHA256: Final = "sha256"


class S3Artifacts:
    """An `ArtifactStore` below a prefix of a bucket. Make one with `of`.

    Args:
        store: of the bucket and prefix.
        quick: the same, which gives up soon.
        signer: the same, as clients reach it; None = they do not.
        part_bytes: larger files are sent in parts of this size; S3 takes no smaller ones than 5 MiB.
    """

    def __init__(
        self,
        place: S3Place,
        where: Where,
        store: S3Store,
        *,
        quick: S3Store,
        signer: S3Store | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._place, self._where, self._store, self._quick, self._signer = place, where, store, quick, signer
        self._part_bytes = part_bytes
        self._is_writable = False

    @classmethod
    def of(cls, settings: Settings, place: S3Place, *, part_bytes: int = PART_BYTES) -> "S3Artifacts":
        """Nothing is asked of the server yet."""
        endpoint = endpoint_of(settings)
        public = settings.s3_public_endpoint or endpoint
        return cls(
            place,
            Where(endpoint or "AWS", place.bucket),
            connect(settings, place, endpoint),
            quick=connect(settings, place, endpoint, patient=False),
            signer=connect(settings, place, public, patient=False) if settings.s3_redirect else None,
            part_bytes=part_bytes,
        )

    def put(self, key: str, source: Path) -> Stored:
        checked_key(key)
        with source.open("rb") as file:
            # S3 wants the metadata before the content; the second read comes from the system's memory.
            sha256, num_bytes = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            file.seek(0)
            with self._telling(key):
                self._send(key, file, num_bytes, {_SHA256: sha256, **_headers(key)})
        self._is_writable = True
        return Stored(key, sha256, num_bytes)

    def stream(self, key: str, first: int = 0, stop: int | None = None) -> Iterator[bytes]:
        checked_key(key)
        if stop is not None and stop <= first:
            return iter(())
        with self._telling(key):
            found = obstore.get(self._store, key, options=_part(first, stop))

        def pieces() -> Iterator[bytes]:
            with self._telling(key):
                yield from found.stream(min_chunk_size=_PIECE)

        return pieces()

    def local(self, key: str) -> None:
        checked_key(key)

    def fetch(self, key: str, target: Path, *, sha256: str | None = None) -> Path:
        checked_key(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_name(target) as partial:
            try:
                self._receive_well(key, partial, sha256)
            except FileNotFoundError:
                self._receive_all(key, partial)
            partial.replace(target)
        return target

    def size(self, key: str) -> int | None:
        checked_key(key)
        try:
            with self._telling(key):
                return obstore.head(self._quick, key)["size"]
        except FileNotFoundError:
            return None

    def listing(self, key: str | None = None) -> Iterator[Listed]:
        prefix = checked_key(key) if key is not None else None
        with self._telling(key or ""):
            for some in obstore.list(self._store, prefix, chunk_size=_LISTED_AT_ONCE):
                for one in some:
                    yield Listed(one["path"], one["size"], one["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        self.discard([*(one.name for one in self.listing(key)), key])

    def discard(self, names: Iterable[str]) -> None:
        listed = list(names)
        for last in (False, True):
            some = [name for name in listed if is_condemned(name) is last]
            if some:
                with self._telling(some[0]):
                    obstore.delete(self._store, some)

    def condemn(self, key: str) -> None:
        if next(self.listing(key), None) is not None:
            with self._telling(key):
                obstore.put(self._store, f"{key}/{CONDEMNED}", b"")

    def check(self) -> None:
        """One page of a listing, and before anything else was put by this process, a file that goes at once."""
        with self._telling(""):
            next(iter(obstore.list(self._quick, chunk_size=1)), None)
            if not self._is_writable:
                obstore.put(self._quick, _PROBE, b"")
                obstore.delete(self._quick, _PROBE)
        self._is_writable = True

    def url(self, key: str) -> str | None:
        checked_key(key)
        if self._signer is None:
            return None
        with self._telling(key):
            return obstore.sign(self._signer, "GET", key, _URL_LASTS)

    def _telling(self, key: str) -> AbstractContextManager[None]:
        return self._where.telling(f"{self._place.prefix}/{key}".strip("/"))

    def _send(self, key: str, file: BinaryIO, num_bytes: int, attributes: dict[str, str]) -> None:
        part = max(self._part_bytes, num_bytes // _MOST_PARTS)
        obstore.put(
            self._store,
            key,
            file,
            attributes=attributes,
            use_multipart=num_bytes > part,
            chunk_size=part,
            max_concurrency=_PARTS_AT_ONCE,
        )

    def _receive_well(self, key: str, path: Path, sha256: str | None) -> None:
        """Once more where it did not arrive well."""
        try:
            self._receive(key, path, sha256)
        except ArtifactDamaged:
            self._receive(key, path, sha256)

    def _receive(self, key: str, path: Path, sha256: str | None) -> None:
        """Raises:
        FileNotFoundError: there is no such object.
        ArtifactDamaged: it is not what was put.
        """
        with self._telling(key):
            found = obstore.get(self._store, key)
            expected = sha256 or found.attributes.get(_SHA256)
            digest = hashlib.sha256()
            with path.open("wb") as file:
                for piece in found.stream(min_chunk_size=_PIECE):
                    digest.update(piece)
                    file.write(piece)
        if expected not in (None, digest.hexdigest()):
            problem = f"what arrived has sha256 {digest.hexdigest()[:12]}..., and not {expected[:12]}..."
            raise ArtifactDamaged(errno.EIO, problem, f"{self._place}/{key}")

    def _receive_all(self, key: str, folder: Path) -> None:
        """Raises:
        FileNotFoundError: there is nothing below the key.
        """
        names = [one.name for one in self.listing(key) if is_key(one.name)]
        if not names:
            raise FileNotFoundError(errno.ENOENT, "there is no such object, nor any below it", f"{self._place}/{key}")
        for name in names:
            target = folder / name.removeprefix(f"{key}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._receive_well(name, target, None)


def _part(first: int, stop: int | None) -> "GetOptions | None":
    if stop is not None:
        return {"range": (first, stop)}
    return {"range": {"offset": first}} if first else None


def _headers(key: str) -> dict[str, str]:
    """What S3 tells those who are redirected to the object: among others its name, with the job's id in it."""
    parts = key.split("/")
    name = f"{parts[1]}-{parts[-1]}" if len(parts) > 2 else parts[-1]
    return {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Content-Type": "application/json" if name.endswith(".json") else "application/octet-stream",
    }
