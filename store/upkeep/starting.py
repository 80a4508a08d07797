"""What keeps a process of the service from starting, in one line: what is wrong, where, and how to mend it.

What mends itself, a database that is about to be there, is waited for. Everything else ends the process, so that
whoever started it hears of it. Passwords are in no line.
"""

import errno
import logging
import os
import time
from pathlib import Path
from typing import Final

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from store.db import make_engine
from store.monitoring.log_lines import without_secrets
from store.settings import Settings

log = logging.getLogger("store.starting")

_PAUSE_SECONDS: Final = 1.0
_AWAY: Final = (
    "connection refused", "connection reset", "no such file or directory", "no route to host", "network is unreachable",
    "timeout expired", "could not translate host name", "failed to resolve host", "name or service not known",
    "starting up", "shutting down", "not yet accepting connections", "in recovery mode", "too many clients",
    "server closed the connection",
)  # fmt: skip
"""What libpq says of a server that may be there in a moment."""
_POSTGRESQL: Final = {
    ("password authentication failed", "no password supplied"): "TID_DATABASE_URL holds none, or another one than the "
    "server knows for this user",
    ("role",): "TID_DATABASE_URL should name a user that the server knows",
    ("pg_hba.conf", "ssl"): "let this machine in in the server's pg_hba.conf, or ask for what it wants "
    "(?sslmode=require at the end of TID_DATABASE_URL)",
    ("does not exist",): "make it with `createdb`, or name another one in TID_DATABASE_URL",
    ("permission denied",): "the user of TID_DATABASE_URL should own the database, or be given the right there",
    ("no space left", "disk full"): "free some room on the disk of the database",
    _AWAY: "start the database, or let TID_DATABASE_URL say where it is",
}
_FILES: Final = {
    errno.ENOSPC: "free some room there",
    errno.ENOTDIR: "a part of that path is a file: move it away",
    errno.EROFS: "mount it for writing",
    errno.EDQUOT: "the quota of this user is used up: free some room there",
}


def await_database(settings: Settings) -> None:
    """Return once the database answers, after TID_START_SECONDS at the latest.

    Raises:
        OperationalError: it does not, or refuses for a reason that time does not mend.
    """
    engine = make_engine(settings.database_url)
    if engine.dialect.name == "sqlite":
        return
    deadline, has_told = time.monotonic() + settings.start_seconds, False
    try:
        while True:
            try:
                engine.connect().close()
            except OperationalError as error:
                if time.monotonic() >= deadline or not is_away(error):
                    raise
                if not has_told:
                    log.warning("waiting up to %g s for the database: %s", settings.start_seconds, _first_line(error))
                has_told = True
                time.sleep(_PAUSE_SECONDS)
            else:
                return
    finally:
        engine.dispose()


def told(error: Exception, settings: Settings) -> str:
    """The line for an error of the database, of a file or of our own."""
    if isinstance(error, SQLAlchemyError):
        url = make_url(settings.database_url)
        if url.get_backend_name() == "sqlite" and url.database:
            return _of_sqlite(_first_line(error), Path(url.database), settings)
        return _with_remedy(_first_line(error))
    if isinstance(error, OSError) and error.filename is not None and error.strerror and not hasattr(error, "remedy"):
        return _of_file(error, Path(os.fsdecode(error.filename)), settings)
    return without_secrets(str(error).partition("\n")[0])


def is_away(error: OperationalError) -> bool:
    """Whether the database may be there in a moment; what else it says, time does not mend."""
    text = str(error.orig).lower()
    return any(sign in text for sign in _AWAY)


def _first_line(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(cause).strip().partition("\n")[0]
    text = text.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    return without_secrets(text).replace("FATAL:  ", "").rstrip(".")


def _with_remedy(text: str) -> str:
    signs = text.lower()
    if "does not exist" in signs and ("relation" in signs or "column" in signs):
        return f"{text}; {_MIGRATE}"
    found = (remedy for marks, remedy in _POSTGRESQL.items() if any(mark in signs for mark in marks))
    return f"database: {text}; {next(found, 'TID_DATABASE_URL says which database that is')}"


_MIGRATE: Final = "the tables are those of another version: run `tid migrate` with the same TID_DATABASE_URL"


def _of_sqlite(text: str, file: Path, settings: Settings) -> str:
    if "no such table" in text or "no such column" in text or "has no column" in text:
        return f"{file}: {text}; {_MIGRATE} and TID_HOME"
    if "disk is full" in text:
        return _of_file(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), file.parent, settings)
    if "not a database" in text:
        return f"{file} is not a database of SQLite; {_setting_of(file, settings)} should name another place"
    if "locked" in text:
        return f"another program has kept the database {file} locked for half a minute; look which (`fuser {file}`)"
    if (refusal := why_not_writable(file.parent)) is not None:
        return _of_file(refusal, Path(str(refusal.filename)), settings)
    return f"the database {file}: {text}; it must be a file that user {_user()} may write"


def why_not_writable(folder: Path) -> OSError | None:
    """Why this user cannot make files in the folder, or the folder itself; None where that can be done."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if os.access(folder, os.W_OK | os.X_OK):
        return None
    is_fixed = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
    code = errno.EROFS if is_fixed else errno.EACCES
    return OSError(code, os.strerror(code), str(folder))


def _of_file(error: OSError, path: Path, settings: Settings) -> str:
    remedy = _FILES.get(error.errno or 0, f"let user {_user()} write there")
    return f"{path}: {error.strerror}; {remedy}, or set {_setting_of(path, settings)} to another place"


def _setting_of(path: Path, settings: Settings) -> str:
    """The variable that leads to the path, as far as that can be told."""
    usual = {
        "TID_ARTIFACTS": (settings.artifacts, settings.home / "artifacts"),
        "TID_DATABASE_URL": (Path(make_url(settings.database_url).database or ""), settings.home / "tid.db"),
    }
    for name, (place, usual_place) in usual.items():
        if not isinstance(place, Path) or place == usual_place:
            continue
        if path.is_relative_to(place) or place.is_relative_to(path):
            return name
    return "TID_HOME"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "?")
