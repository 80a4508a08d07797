"""What the service needs besides itself, and for each: is it there, what is wrong, how to mend it.

Each check has a thread and a time limit of its own, so that one that hangs neither holds up the answer nor takes a
thread from the requests.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import select, text

from api.deps import Parts
from api.monitoring.limited import Limited
from api.schemas import Dependency, DependencyName
from store import workers
from store.db import db_now
from store.models import Lease
from store.places import S3Place
from store.reaper import LEASE, LEASE_ROUNDS

LIMIT_SECONDS: Final = 1.2
_LEAST_REAPER_SECONDS: Final = 60.0
_ROUNDS_MISSED: Final = 10


class Finding(NamedTuple):
    """What a check found; no problem = all is well."""

    problem: str = ""
    remedy: str = ""
    is_required: bool = True


class Readiness:
    """The checks of one process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._begun = time.monotonic()
        checks: dict[DependencyName, Callable[[], Finding]] = {
            "database": self._database,
            "migrations": self._migrations,
            "broker": self._broker,
            "artifacts": self._artifacts,
            "uploads": lambda: self._folder(parts.settings.uploads, "TID_UPLOADS"),
            "reaper": self._reaper,
            "workers": self._workers,
        }
        self._checks = {
            name: Limited(check, name=f"ready-{name}", seconds=LIMIT_SECONDS) for name, check in checks.items()
        }

    async def look(self) -> list[Dependency]:
        return list(await asyncio.gather(*(self._checked(name) for name in self._checks)))

    async def _checked(self, name: DependencyName) -> Dependency:
        try:
            found = await self._checks[name].ask()
        except TimeoutError:
            found = Finding(f"no answer within {LIMIT_SECONDS:g} s", _REMEDIES.get(name, ""), name != "workers")
        except Exception as error:  # whatever a driver raises, it is the answer; its text may hold a password
            found = Finding(f"{type(error).__name__}: does not answer", _REMEDIES.get(name, ""), name != "workers")
        return Dependency(
            name=name,
            ok=not found.problem,
            required=found.is_required,
            detail=found.problem or "ok",
            remedy=found.remedy or None if found.problem else None,
        )

    # -- the checks, each in a thread of its own

    def _database(self) -> Finding:
        with self._parts.database.read() as session:
            session.execute(text("SELECT 1"))
        return Finding()

    def _migrations(self) -> Finding:
        newest = _newest_revision()
        with self._parts.database.read() as session:
            current = session.scalar(text("SELECT version_num FROM alembic_version"))
        if current == newest:
            return Finding()
        problem = f"the tables are at revision {current}, this server needs {newest}"
        return Finding(problem, "stop all servers and workers, run `tid migrate`, start them again")

    def _broker(self) -> Finding:
        try:
            self._parts.doorbell.check()
        except Exception as error:
            from redis.exceptions import AuthenticationError  # slow to import, and there by now

            if not isinstance(error.__cause__, AuthenticationError):
                raise
            remedy = "TID_BROKER_URL holds none, or another password than it has. Jobs are taken meanwhile"
            return Finding("it refuses the password", remedy)
        return Finding()

    def _artifacts(self) -> Finding:
        place = self._parts.settings.artifacts
        if not isinstance(place, S3Place):
            return self._folder(place, "TID_ARTIFACTS")
        try:
            self._parts.artifacts.check()
        except OSError as error:
            remedy = getattr(error, "remedy", "") or _REMEDIES["artifacts"]
            return Finding(f"{place}: {getattr(error, 'problem', error)}", remedy)
        return Finding()

    def _folder(self, folder: Path, setting: str) -> Finding:
        """Files can be written, and there is room. A folder that is made when it is needed may be missing."""
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            remedy = f"make it writable for user {os.getuid()}, free some room, or set {setting} to another folder"
            return Finding(f"{folder} takes no files: {error.strerror or error}", remedy)
        free, least = shutil.disk_usage(folder).free, self._parts.settings.ready_free_bytes
        if free >= least:
            return Finding()
        remedy = "run `tid gc`, delete jobs, or add room; TID_READY_FREE_BYTES is what should be left"
        return Finding(f"{free:,} bytes are left at {folder}, fewer than {least:,}", remedy, is_required=False)

    def _reaper(self) -> Finding:
        """Some API process looks for lost jobs: its lease, by the database's clock, tells when."""
        settings = self._parts.settings
        with self._parts.database.read() as session:
            row = session.execute(select(Lease.expires_at, db_now()).where(Lease.name == LEASE)).one_or_none()
        patience = max(_LEAST_REAPER_SECONDS, _ROUNDS_MISSED * settings.reaper_seconds)
        age = time.monotonic() - self._begun
        if row is not None:
            age = (row[1] - row[0]).total_seconds() + LEASE_ROUNDS * settings.reaper_seconds
        if age <= patience:
            return Finding()
        remedy = "read this server's log (logger api.reaper), and start it again"
        return Finding(f"nobody has looked for lost jobs for {age:.0f} s", remedy)

    def _workers(self) -> Finding:
        seconds = self._parts.settings.heartbeat_seconds
        with self._parts.database.read() as session:
            seen = workers.seen(heartbeat_seconds=seconds, session=session)
        if any(one.online for one in seen):
            return Finding()
        remedy = "start one with `python -m worker`, with the settings of this server; jobs wait until then"
        return Finding("no worker is online", remedy, is_required=False)


_REMEDIES: Final[dict[str, str]] = {
    "database": "start the database, or look at what it waits for; TID_DATABASE_URL says where it is",
    "migrations": "mend the database first",
    "broker": "start Valkey or Redis; TID_BROKER_URL says where it is. Jobs are taken meanwhile, and start later",
    "artifacts": "look at the disk, or the S3 server, which does not answer",
    "uploads": "look at the disk, which does not answer",
    "reaper": "mend the database first",
    "workers": "mend the database first",
}


@cache
def _newest_revision() -> str | None:
    from store.upgrade import newest_revision  # Alembic is slow to import

    return newest_revision()
