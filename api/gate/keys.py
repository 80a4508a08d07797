"""`python -m api.gate.keys`, which `tid keys` calls: API keys made, listed and revoked in the database itself.

The first key has to come from somewhere, and who can write to the database needs none.
"""

import argparse
import getpass
import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from store import audit, keys
from store.db import Database
from store.errors import KeyUnfit, NotFound
from store.models import ApiKey
from store.settings import SettingsError, load_settings
from store.upkeep.preparing import NotMigrated, prepare_database
from store.upkeep.starting import told

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_LONGEST = timedelta(days=36_500)
_COLUMNS = ("id", "name", "scope", "created", "expires", "last used", "rate", "jobs", "gpus", "state")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        settings = load_settings()
        prepare_database(settings)
        database = Database(settings.database_url)
        try:
            arguments.run(arguments, database)
        finally:
            database.close()
    except (SettingsError, NotMigrated, NotFound, KeyUnfit) as error:
        return _complain(str(error))
    except SQLAlchemyError as error:
        return _complain(told(error, settings))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tid keys", description="API keys, in the database itself.")
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", help="make a key, and print it once")
    adopt = commands.add_parser("adopt", help="take a key that was made elsewhere, as by docker/init.sh")
    for command in (create, adopt):
        command.add_argument("--name", required=True, type=_name, help="whose it is")
        command.add_argument("--scope", required=True, choices=keys.SCOPES, help="admin includes write includes read")
    adopt.add_argument("--file", required=True, type=Path, help="that holds the key; - = standard input")
    adopt.set_defaults(run=_adopt)
    create.add_argument("--expires", type=_span, metavar="90d", help="hours (h), days (d) or weeks (w); else never")
    for option, meaning in (
        ("--rate", "requests a minute"),
        ("--max-queued", "jobs that have not ended"),
        ("--max-gpus", "GPUs that those ask for together"),
    ):
        create.add_argument(option, type=_limit, metavar="N", help=f"{meaning}; 0 = no limit, else as TID_* says")
    create.set_defaults(run=_create)
    commands.add_parser("list", help="list all keys").set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="end a key")
    revoke.add_argument("id")
    revoke.set_defaults(run=_revoke)
    return parser


def _create(arguments: argparse.Namespace, database: Database) -> None:
    with database.write() as session:
        row, key = keys.create(
            arguments.name,
            arguments.scope,
            valid_for=arguments.expires,
            rate_per_minute=arguments.rate,
            quota=(arguments.max_queued, arguments.max_gpus),
            session=session,
        )
        _enter("create", row, session)
    until = f"until {_time(row.expires_at)}" if row.expires_at else "until it is revoked"
    sys.stderr.write(f"key {row.id} of {row.name!r}, {row.scope}, {until}; it is shown this once:\n")
    sys.stdout.write(f"{key}\n")
    sys.stdout.flush()
    sys.stderr.write("Clients take it from TID_API_KEY. From now on the server answers to keys alone.\n")


def _adopt(arguments: argparse.Namespace, database: Database) -> None:
    key = _read(arguments.file)
    try:
        told = _take(key, arguments, database)
    except IntegrityError:  # another process was at it too, and its row is there now
        told = _take(key, arguments, database)
    sys.stdout.write(f"{told}\n")


def _take(key: str, arguments: argparse.Namespace, database: Database) -> str:
    with database.write() as session:
        row, is_new = keys.adopt(key, arguments.name, arguments.scope, session=session)
        if is_new:
            _enter("adopt", row, session)
        state = "is good from now on" if is_new else "was here already" + (", and is revoked" if row.revoked_at else "")
        return f"key {row.id} of {row.name!r}, {row.scope}, {state}"


def _read(file: Path) -> str:
    """The key in a file.

    Raises:
        KeyUnfit: the file cannot be read.
    """
    try:
        return (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise KeyUnfit(f"the key cannot be read from {file}: {why}") from None


def _list(_arguments: argparse.Namespace, database: Database) -> None:
    with database.read() as session:
        usable = {row.id for row in keys.usable(session=session)}
        found = keys.page(limit=10_000, session=session)
    rows = [_COLUMNS, *(_cells(row, usable=row.id in usable) for row in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows if found else ():
        sys.stdout.write("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    if not found:
        sys.stdout.write("no keys yet; `tid keys create --name NAME --scope write` makes one\n")


def _revoke(arguments: argparse.Namespace, database: Database) -> None:
    key_id = keys.id_of(arguments.id) or arguments.id  # a whole key is taken as well
    with database.write() as session:
        row = keys.revoke(key_id, session=session)
        _enter("revoke", row, session)
        left = len(keys.usable(session=session))
    sys.stdout.write(f"key {row.id} of {row.name!r} is revoked; servers that run learn of it within seconds\n")
    if not left:
        sys.stdout.write("it was the last one: nobody gets in until `tid keys create` makes another\n")


def _enter(command: str, row: ApiKey, session: Session) -> None:
    """In the audit log: whoever has a shell here can do this, and it is to be seen."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        who = f"user {os.getuid()}"
    told = {"peer": f"shell of {who}"[:64], "method": "CLI", "path": f"tid keys {command}", "status": 200}
    entry = {**told, "key_id": None, "target": f"keys/{row.id}", "code": None, "request_id": "-"}
    audit.add_all([entry], session=session)


def _cells(row: ApiKey, *, usable: bool) -> tuple[str, ...]:
    state = "revoked" if row.revoked_at else "good" if usable else "expired"
    limits = ("-" if limit is None else str(limit) for limit in (row.rate_per_minute, row.max_jobs, row.max_gpus))
    times = (_time(time) for time in (row.created_at, row.expires_at, row.last_used_at))
    return (row.id, row.name, row.scope, *times, *limits, state)


def _time(time: datetime | None) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M}Z"


def _name(text: str) -> str:
    if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,120}", text):
        raise argparse.ArgumentTypeError("a name has 1 to 120 characters, none of them control characters")
    return text


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    span = int(match[1]) * _UNITS[match[2]] if match else timedelta()
    if not timedelta() < span <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time to live; write 12h, 90d or 52w (at most 36500d)")
    return span


def _limit(text: str) -> int:
    if not text.isdecimal() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1000000")
    return int(text)


def _complain(text: str) -> int:
    sys.stderr.write(f"error: {text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
