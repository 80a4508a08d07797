"""Where files are kept: a small interface, and its folder. Keys are relative paths such as `jobs/<id>/a1/best.pt`."""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_KEY_LENGTH: Final = 512
_TEMPORARY: Final = ".tmp-"
CONDEMNED: Final = ".condemned"
"""A file that no key can name, in a folder that is being deleted."""


def job_key(job_id: str) -> str:
    """Key of the folder that everything of a job lies in."""
    return f"jobs/{job_id}"


def attempt_key(job_id: str, attempt: int) -> str:
    """Key of the folder that one attempt writes to, and no other."""
    return f"{job_key(job_id)}/attempt-{attempt}"


class Stored(NamedTuple):
    key: str
    sha256: str
    num_bytes: int


class ArtifactStore(Protocol):
    """Files by key. A file is there in full or not at all, and does not change once it is there."""

    def put(self, key: str, source: Path) -> Stored:
        """Keep the content of `source`; its file must not be changed in place afterwards.

        Raises:
            ValueError: not a key.
            OSError: no room, or not readable; nothing is left behind.
        """
        ...

    def path(self, key: str) -> Path:
        """A local path of the file, which may not exist.

        Raises:
            ValueError: not a key.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Raises:
        FileNotFoundError: there is no such file.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the file, or None where there is none."""
        ...

    def delete(self, key: str) -> None:
        """Remove the file, or everything below the key; nothing happens where there is nothing."""
        ...

    def condemn(self, key: str) -> None:
        """Leave word that everything below the key goes once no row names it: should this process be killed between
        the commit and `delete`, the garbage collection knows.

        Raises:
            OSError: not writable.
        """
        ...


class FolderArtifacts:
    """An `ArtifactStore` in a folder.

    Args:
        link: hard-link files that lie on the same file system instead of copying them.
    """

    def __init__(self, root: Path, *, link: bool = True) -> None:
        self.root = root.resolve()
        self._link = link
        self.root.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, source: Path) -> Stored:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target.parent) as temporary:
            self._bring(source, temporary)
            sha256, num_bytes = _settle(temporary)
            temporary.replace(target)
        sync_folder(target.parent)
        return Stored(key, sha256, num_bytes)

    def path(self, key: str) -> Path:
        if len(key) > _KEY_LENGTH or not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a key: parts of letters, digits and ._- between slashes, none hidden")
        return self.root / key

    def open(self, key: str) -> BinaryIO:
        return self.path(key).open("rb")

    def size(self, key: str) -> int | None:
        path = self.path(key)
        return path.stat().st_size if path.is_file() else None

    def delete(self, key: str) -> None:
        path = self.path(key)
        if path.is_dir():
            for child in path.iterdir():
                if child.is_dir():
                    shutil.rmtree(child)
            shutil.rmtree(path)  # and with it, last, the word that it was to go
        else:
            path.unlink(missing_ok=True)

    def condemn(self, key: str) -> None:
        folder = self.path(key)
        if folder.is_dir():
            (folder / CONDEMNED).touch()

    def _bring(self, source: Path, temporary: Path) -> None:
        if self._link:
            try:
                os.link(source, temporary)
            except OSError:
                # Another file system, or one without hard links: copied, and any real trouble shows there.
                pass
            else:
                return
        with source.open("rb") as reading, temporary.open("xb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A name in the folder that no key can have; gone afterwards unless it was renamed."""
    path = folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _settle(path: Path) -> tuple[str, int]:
    """Force the content to the disk; its sha256 and size."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


def sync_folder(folder: Path) -> None:
    """Force to the disk which names are in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
