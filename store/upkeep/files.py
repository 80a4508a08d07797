"""Files that nobody claims: artifacts without a row, working folders without an owner, what another database knows.

No writer is raced. A file is taken only if no row names it, nobody owns the attempt that wrote it, and it (of a folder:
its inode) has not changed for TID_GC_GRACE_HOURS. Being linked or renamed into place changes it, so a file whose row is
about to be committed is young: its owner gives up, and is known to have lost the job, long before. Files are listed
before the rows are read, so that a row which comes in between is seen.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple

from sqlalchemy import select

from store.artifacts import ArtifactStore, Listed, attempt_key, is_condemned, open_artifacts
from store.datasets import stored_archive
from store.db import Database
from store.models import Artifact, Checkpoint, Dataset, Job, ResumeState
from store.settings import Settings

What = Literal["artifact", "scratch", "stranger"]
_HOUR: Final = 3600.0
_DATASET: Final = re.compile(r"[0-9a-f]{12}")


class Unclaimed(NamedTuple):
    """Files that belong together, and nobody wants."""

    what: What
    name: str
    number: int
    num_bytes: int
    delete: Callable[[], None]


class _Claims(NamedTuple):
    """What rows name."""

    files: frozenset[str]
    folders: frozenset[str]
    """Keys below which everything is named, or belongs to somebody who is at work."""
    jobs: frozenset[str]
    datasets: frozenset[str]
    owned: frozenset[str]
    """Keys of the attempts that have an owner."""


def unclaimed(database: Database, settings: Settings) -> Iterator[Unclaimed]:
    """Of the artifacts, the working folders of this machine and the uploads."""
    before = time.time() - _HOUR * settings.gc_grace_hours
    artifacts = open_artifacts(settings)
    listed = [one for top in ("jobs", "datasets") for one in artifacts.listing(top)]
    folders = [path for path in (settings.home / "work").glob("*/attempt-*") if path.is_dir() and _is_old(path, before)]
    uploads = [path for path in _children(settings.uploads) if _DATASET.fullmatch(path.name) and _is_old(path, before)]
    claims = _claims(database)
    yield from _artifacts(listed, before, artifacts, claims)
    for folder in folders:
        attempt = folder.name.partition("-node-")[0]  # of further nodes, it has their number behind it
        if f"jobs/{folder.parent.name}/{attempt}" not in claims.owned:
            name = f"{folder.parent.name}/{folder.name}"
            yield Unclaimed("scratch", name, 1, size_of(folder), partial(_remove_scratch, folder))
    for folder in uploads:
        if folder.name not in claims.datasets:
            remove = partial(shutil.rmtree, folder, ignore_errors=True)
            yield Unclaimed("stranger", f"upload {folder.name}", 1, size_of(folder), remove)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 where there is nothing."""
    with suppress(OSError):
        if path.is_dir():
            return sum(size_of(child) for child in _children(path))
        return path.lstat().st_size
    return 0


def _artifacts(listed: list[Listed], before: float, store: ArtifactStore, claims: _Claims) -> Iterator[Unclaimed]:
    """By the job or dataset that they are of."""
    condemned = {_owner(file.name) for file in listed if is_condemned(file.name)}
    groups: dict[str, list[Listed]] = {}
    for file in listed:
        if file.changed < before and not _is_claimed(file.name, claims):
            groups.setdefault(_owner(file.name), []).append(file)
    for owner, found in sorted(groups.items()):
        kind, _, row_id = owner.partition("/")
        known = {"jobs": claims.jobs, "datasets": claims.datasets}.get(kind, frozenset())
        what: What = "artifact" if row_id in known or owner in condemned else "stranger"
        size = sum(file.num_bytes for file in found)
        yield Unclaimed(what, owner, len(found), size, partial(store.discard, [file.name for file in found]))


def _owner(name: str) -> str:
    """The folder of the job or dataset that a file lies in."""
    return "/".join(name.split("/")[:2])


def _is_claimed(key: str, claims: _Claims) -> bool:
    parts = key.split("/")
    return key in claims.files or any("/".join(parts[:depth]) in claims.folders for depth in range(1, len(parts)))


def _claims(database: Database) -> _Claims:
    with database.read() as session:
        files = [*session.scalars(select(Checkpoint.key)), *session.scalars(select(Artifact.key))]
        states = list(session.scalars(select(ResumeState.key)))
        jobs = session.execute(select(Job.id, Job.attempt, Job.lease_token.is_not(None))).all()
        datasets = session.execute(select(Dataset.id, Dataset.state, Dataset.index_prefix)).all()
        archives = [stored_archive(row) for row in session.scalars(select(Dataset).where(Dataset.source == "archive"))]
    owned = frozenset(attempt_key(job_id, attempt) for job_id, attempt, is_owned in jobs if is_owned)
    # The files of a dataset that is being looked through are somebody's, who has not said yet what they are called.
    indices = [prefix if state == "ready" and prefix else f"datasets/{row_id}" for row_id, state, prefix in datasets]
    return _Claims(
        files=frozenset([*files, *filter(None, archives)]),
        folders=frozenset([*states, *indices, *owned]),
        jobs=frozenset(job_id for job_id, *_ in jobs),
        datasets=frozenset(row_id for row_id, *_ in datasets),
        owned=owned,
    )


def _is_old(path: Path, before: float) -> bool:
    """Whether nothing below the path, nor itself, has changed since; a file that is gone has no age."""
    try:
        stat = path.lstat()
        if max(stat.st_mtime, stat.st_ctime) >= before:
            return False
        return not path.is_dir() or all(_is_old(child, before) for child in _children(path))
    except OSError:
        return False


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _remove_scratch(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()
