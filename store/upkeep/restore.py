"""`tid restore`: a backup becomes the database and the files of a service. `python -m store.upkeep.restore SRC`.

What was going on when the backup was made is not going on now: jobs that had an owner wait in the queue again, from
their newest state, and workers, leases and holds are forgotten.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sqlalchemy import delete, make_url, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from store.artifacts import ArtifactStore, checked_key, open_artifacts, sync_folder
from store.db import Database, db_now
from store.endings import let_go
from store.errors import BackupError, StoreError
from store.models import Dataset, Job, Lease, ResumeState, Worker
from store.places import S3Place
from store.reasons import RESTORED
from store.settings import Settings, SettingsError, load_settings
from store.states import WITHOUT_WORKER, Outcome, State
from store.upgrade import revisions, upgrade
from store.upkeep.backup import FORMAT, MANIFEST
from store.upkeep.dumps import load_postgres
from store.upkeep.starting import told
from store.uploads.archives import archive_key, is_shared
from store.uploads.packing import pack

_LOCK: Final = "tid.lock"
Tell = Callable[[str], None]
Manifest = dict[str, Any]


def restore(settings: Settings, source: Path, *, tell: Tell = lambda _: None) -> None:
    """Check the whole backup, then bring it to where the settings say; the database comes last.

    Raises:
        BackupError: it is no backup, or damaged, or of another kind of database or a newer version; there is something
            where it should go; or the service runs. Then nothing has been changed.
    """
    source = source.expanduser().absolute()
    manifest = read_manifest(source)
    _refuse_misfits(manifest, settings)
    with _home_of_ones_own(settings):
        _refuse_what_is_there(manifest, settings)
        verify(source, manifest)
        tell(f"checked {len(manifest['files']):,} files")
        archives = _copy_files(source, manifest, settings)
        _bring_database(source, manifest, settings, archives)
    tell(f"restored into {settings.home}; start the service as before")


def read_manifest(source: Path) -> Manifest:
    """Raises:
    BackupError: it is not there, or of another format.
    """
    try:
        manifest: Manifest = json.loads((source / MANIFEST).read_text())
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{source} is no backup: its {MANIFEST} cannot be read ({error})") from error
    if found != FORMAT:
        raise BackupError(f"{source} has format {found}; this version reads format {FORMAT}")
    return manifest


def verify(source: Path, manifest: Manifest) -> None:
    """Raises:
    BackupError: a file is missing or not what it was, or would lead out of the backup.
    """
    for name, expected in manifest["files"].items():
        path = source / name
        if not path.is_file() or not path.resolve().is_relative_to(source.resolve()):
            raise BackupError(f"{source} is damaged: {name} is not there")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise BackupError(f"{source} is damaged: {name} is not what it was (sha256 {digest[:12]}...)")
        _check_name(source, name)
    if manifest["dump"] not in manifest["files"]:
        raise BackupError(f"{source} is damaged: it has no database")


def _check_name(source: Path, name: str) -> None:
    area, _, rest = name.partition("/")
    if ".." in PurePosixPath(name).parts:  # inside of the backup, and outside of where it goes
        raise BackupError(f"{source} is damaged: {name} leads elsewhere")
    if area == "artifacts":
        try:
            checked_key(rest)
        except ValueError as error:
            raise BackupError(f"{source} is damaged: {name} can be no artifact: {error}") from error


def _refuse_misfits(manifest: Manifest, settings: Settings) -> None:
    backend = make_url(settings.database_url).get_backend_name()
    if backend != manifest["database"]:
        raise BackupError(f"the backup is of {manifest['database']}, and TID_DATABASE_URL names {backend}")
    if manifest["revision"] not in revisions():
        raise BackupError(f"the backup is of revision {manifest['revision']}, which this version does not know: update")


def _refuse_what_is_there(manifest: Manifest, settings: Settings) -> None:
    database = make_url(settings.database_url)
    places, artifacts = [], settings.artifacts
    if manifest["with_files"]:
        places = [settings.uploads, settings.home / "work"]
        if not isinstance(artifacts, S3Place):
            places.insert(0, artifacts)
        elif next(open_artifacts(settings).listing(), None) is not None:
            raise BackupError(f"there is something already in {artifacts}; name a bucket or a prefix that is empty")
    if database.get_backend_name() == "sqlite":
        places += [Path(f"{database.database}{ending}") for ending in ("", "-wal", "-shm")]  # a log would be replayed
    taken = [str(path) for path in places if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if taken:
        raise BackupError(f"there is something already: {', '.join(taken)}; move it away, or restore into another home")


@contextmanager
def _home_of_ones_own(settings: Settings) -> Iterator[None]:
    """`tid up` holds the same lock for as long as it runs."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # as `tid up` makes it
    with (settings.home / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"the service runs on {settings.home}; stop it first") from None
        yield


def _copy_files(source: Path, manifest: Manifest, settings: Settings) -> dict[str, str]:
    """Returns the keys of archives by their datasets, where those are among the artifacts from now on."""
    artifacts = open_artifacts(settings, link=False)
    uploaded = []
    for name in manifest["files"]:
        area, _, rest = name.partition("/")
        if area == "artifacts":
            artifacts.put(rest, source / name)
        elif area == "uploads" and rest and is_shared(artifacts):
            uploaded.append(rest.partition("/")[0])
        elif area == "uploads" and rest:
            _copy(source / name, settings.uploads / rest)
    return {one: _put_archive(one, source / "uploads" / one, artifacts, settings) for one in sorted(set(uploaded))}


def _put_archive(dataset_id: str, place: Path, artifacts: ArtifactStore, settings: Settings) -> str:
    """What was uploaded to a folder that hosts shared; the files are checked before."""
    archive, packed = place / "archive", settings.home / f".{dataset_id}.tar"
    try:
        if not archive.is_file():
            pack(place / "data", packed)
            archive = packed
        with archive.open("rb") as file:
            key = archive_key(dataset_id, hashlib.file_digest(file, "sha256").hexdigest())
        return artifacts.put(key, archive).key
    finally:
        packed.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _bring_database(source: Path, manifest: Manifest, settings: Settings, archives: Mapping[str, str]) -> None:
    dump = source / manifest["dump"]
    url = make_url(settings.database_url)
    if url.get_backend_name() == "postgresql":
        load_postgres(settings, dump)
        _begin_anew(settings.database_url, manifest, settings, archives)
        return
    target = Path(str(url.database))
    waiting = target.with_name(f"{target.name}.restoring")
    _copy(dump, waiting)
    _begin_anew(f"sqlite:///{waiting}", manifest, settings, archives)
    waiting.rename(target)  # the last connection has closed, so nothing lies beside it
    sync_folder(target.parent)


def _begin_anew(url: str, manifest: Manifest, settings: Settings, archives: Mapping[str, str]) -> None:
    upgrade(url)
    database = Database(url)
    try:
        lost = _lost_states(open_artifacts(settings), database) if manifest["with_files"] else set()
        with database.write() as session:
            _void_leases(session)
            _forget_states(lost, session)
            _move_uploads(Path(manifest["uploads"]), settings.uploads, archives, session)
    finally:
        database.close()


def _void_leases(session: Session) -> None:
    """Owners that still run somewhere are refused from now on; it costs their jobs no attempt."""
    for job in session.scalars(select(Job).where(Job.lease_token.is_not(None))).all():
        new = WITHOUT_WORKER[job.state]
        outcome = Outcome.CANCELLED if new is State.CANCELLED else Outcome.HANDED_BACK
        let_go(job, new, outcome, reason=RESTORED, session=session)
    session.execute(update(Job).values(last_rung_at=None))
    session.execute(update(Worker).values(stopped_at=db_now(), current_job=None).where(Worker.stopped_at.is_(None)))
    session.execute(update(Dataset).values(progress=None))
    session.execute(delete(Lease))


def _lost_states(artifacts: ArtifactStore, database: Database) -> set[str]:
    """Their keys. A bucket is asked for each, which may take longer than a transaction may wait."""
    with database.read() as session:
        keys = session.scalars(select(ResumeState.key)).all()
    return {key for key in keys if artifacts.size(f"{key}/manifest.json") is None}


def _forget_states(keys: Collection[str], session: Session) -> None:
    for state in session.scalars(select(ResumeState)).all():
        if state.key in keys:
            session.delete(state)


def _move_uploads(before: Path, now: Path, archives: Mapping[str, str], session: Session) -> None:
    """Uploaded datasets lie where uploads lie here, or among the artifacts."""
    for dataset in session.scalars(select(Dataset).where(Dataset.source == "archive")).all():
        root = Path(dataset.root or "")
        if dataset.id in archives:
            dataset.root = archives[dataset.id]
        elif root.is_relative_to(before):
            dataset.root = str(now / root.relative_to(before))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tid restore", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SRC", help="a folder that `tid backup` wrote")
    asked = parser.parse_args(arguments)
    try:
        restore(load_settings(), asked.source, tell=lambda text: print(text, flush=True))  # noqa: T201
    except SQLAlchemyError as error:
        sys.stderr.write(f"tid restore: {told(error, load_settings())}\n")
        return 1
    except (SettingsError, StoreError, OSError) as error:
        sys.stderr.write(f"tid restore: {str(error).splitlines()[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
