"""Where files are kept: a small interface, and its folder. Keys are relative paths such as `jobs/<id>/a1/best.pt`.

The other place that files may be kept in, a bucket of S3, is in `store.s3`. `open_artifacts` opens what TID_ARTIFACTS
names.
"""

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from store.places import S3Place
from store.settings import Settings

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_KEY_LENGTH: Final = 512
_TEMPORARY: Final = ".tmp-"
_PIECE: Final = 1 << 18
CONDEMNED: Final = ".condemned"
"""A file that no key can name, in a folder that is being deleted."""


def job_key(job_id: str) -> str:
    """Key of the folder that everything of a job lies in."""
    return f"jobs/{job_id}"


def attempt_key(job_id: str, attempt: int) -> str:
    """Key of the folder that one attempt writes to, and no other."""
    return f"{job_key(job_id)}/attempt-{attempt}"


def is_key(name: str) -> bool:
    return len(name) <= _KEY_LENGTH and _KEY.fullmatch(name) is not None


def checked_key(key: str) -> str:
    """Raises:
    ValueError: not a key.
    """
    if not is_key(key):
        raise ValueError(f"{key!r} is not a key: parts of letters, digits and ._- between slashes, none hidden")
    return key


class Stored(NamedTuple):
    key: str
    sha256: str
    num_bytes: int


class ArtifactDamaged(OSError):
    """What the store gives is not what was put."""


class Listed(NamedTuple):
    """A file as it lies there, also one that no key can name: what a killed writer left, or `CONDEMNED`."""

    name: str
    num_bytes: int
    changed: float
    """Seconds since 1970."""


class ArtifactStore(Protocol):
    """Files by key. A file is there in full or not at all, and does not change once it is there.

    Whatever names a key raises ValueError where it is none, and OSError where the store does not answer or refuses;
    the error says what and how to mend it. Any thread may call, but no process that was forked after the first call.
    """

    def put(self, key: str, source: Path) -> Stored:
        """Keep the content of `source`; its file must not be changed in place afterwards.

        Raises:
            OSError: no room (ENOSPC, EDQUOT), or not readable; nothing is left behind.
        """
        ...

    def stream(self, key: str, first: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The content in pieces, of all or of the bytes `first` to `stop` (which is not among them) that are there.

        Raises:
            FileNotFoundError: there is no such file, told before the first piece.
            OSError: between two pieces, too.
        """
        ...

    def local(self, key: str) -> Path | None:
        """Where the file or folder lies (or would) on this machine; None where it has to be fetched."""
        ...

    def fetch(self, key: str, target: Path, *, sha256: str | None = None) -> Path:
        """A path of the file, or of the folder of everything below the key: where it lies, or else a copy at `target`.

        A copy appears in full or not at all, checked against `sha256` (of a file), or what the store itself knows.

        Raises:
            FileNotFoundError: there is neither a file nor anything below.
            ArtifactDamaged: what arrives is not what was put, twice.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the file, or None where there is none."""
        ...

    def listing(self, key: str | None = None) -> Iterator[Listed]:
        """Every file below the key, or of the whole store; in no order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the file, or everything below the key; nothing happens where there is nothing."""
        ...

    def discard(self, names: Iterable[str]) -> None:
        """Remove files by the names that `listing` told, `CONDEMNED` last; what is gone already does not matter."""
        ...

    def condemn(self, key: str) -> None:
        """Leave word that everything below the key goes once no row names it: should this process be killed between
        the commit and `delete`, the garbage collection knows.
        """
        ...

    def check(self) -> None:
        """Raises:
        OSError: files cannot be put there now; says why, and how to mend it.
        """
        ...

    def url(self, key: str) -> str | None:
        """A URL by which anybody can GET the file for the next minutes, where that is wanted and possible."""
        ...


def open_artifacts(settings: Settings, *, link: bool = True) -> ArtifactStore:
    """What TID_ARTIFACTS names; a bucket is not asked for anything yet.

    Args:
        link: of a folder, as in `FolderArtifacts`.

    Raises:
        OSError: the folder cannot be made.
    """
    if isinstance(settings.artifacts, S3Place):
        from store.s3 import S3Artifacts  # a folder does without the library

        return S3Artifacts.of(settings, settings.artifacts)
    return FolderArtifacts(settings.artifacts, link=link)


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
        target = self.local(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target.parent) as temporary:
            self._bring(source, temporary)
            sha256, num_bytes = _settle(temporary)
            temporary.replace(target)
        sync_folder(target.parent)
        return Stored(key, sha256, num_bytes)

    def local(self, key: str) -> Path:
        return self.root / checked_key(key)

    def stream(self, key: str, first: int = 0, stop: int | None = None) -> Iterator[bytes]:
        file = self.local(key).open("rb")
        file.seek(first)

        def pieces() -> Iterator[bytes]:
            left = None if stop is None else stop - first
            with file:
                while piece := file.read(_PIECE if left is None else min(_PIECE, left)):
                    yield piece
                    left = None if left is None else left - len(piece)

        return pieces()

    def fetch(self, key: str, target: Path, *, sha256: str | None = None) -> Path:  # noqa: ARG002 (nothing is copied)
        path = self.local(key)
        path.stat()
        return path

    def size(self, key: str) -> int | None:
        path = self.local(key)
        return path.stat().st_size if path.is_file() else None

    def listing(self, key: str | None = None) -> Iterator[Listed]:
        top = self.root if key is None else self.local(key)
        for folder, _, names in os.walk(top):
            for path in (Path(folder, name) for name in names):
                with suppress(FileNotFoundError):
                    stat = path.lstat()
                    # The change of the inode, too: a link is as old as what it leads to, and its row may be to come.
                    changed = max(stat.st_mtime, stat.st_ctime)
                    yield Listed(path.relative_to(self.root).as_posix(), stat.st_size, changed)

    def delete(self, key: str) -> None:
        path = self.local(key)
        if path.is_dir():
            for child in path.iterdir():
                if child.is_dir():
                    shutil.rmtree(child)
            shutil.rmtree(path)  # and with it, last, the word that it was to go
        else:
            path.unlink(missing_ok=True)

    def discard(self, names: Iterable[str]) -> None:
        for name in sorted(names, key=is_condemned):
            path = self.root / name
            path.unlink(missing_ok=True)
            self._remove_empty(path.parent)

    def condemn(self, key: str) -> None:
        folder = self.local(key)
        if folder.is_dir():
            (folder / CONDEMNED).touch()

    def check(self) -> None:
        with tempfile.TemporaryFile(dir=self.root):
            pass

    def url(self, key: str) -> None:
        checked_key(key)

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

    def _remove_empty(self, folder: Path) -> None:
        """The folder and those above it, but for `jobs`, `datasets` and the root."""
        while folder != self.root and folder.parent != self.root:
            try:
                folder.rmdir()
            except OSError:  # not empty
                return
            folder = folder.parent


def is_condemned(name: str) -> bool:
    """Whether a name that `listing` told is the word that the rest of its folder goes."""
    return name.rpartition("/")[2] == CONDEMNED


@contextmanager
def partial_name(target: Path) -> Iterator[Path]:
    """A name for a file or folder beside the target; gone afterwards unless it was renamed."""
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


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
