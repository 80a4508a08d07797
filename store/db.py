"""The database: engines for SQLite and PostgreSQL, sessions for reading and writing, and the database's own clock."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    NullPool,
    create_engine,
    event,
    make_url,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from store.settings import normal_url
from store.silent_clients import end_sessions_of
from store.text import json_text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BUSY_SECONDS = 30
_READ_ONLY = "tid_read_only"
_COMMON: Final[dict[str, Any]] = {
    "hide_parameters": True,
    "json_serializer": json_text,
    "json_deserializer": from_json,  # twice as fast as the standard library's, for lists of jobs with their specs
}
WRITES = "tid_writes"
"""Key in the `info` of a session for writing."""
# Seconds and milliseconds after which a server counts as gone, also one whose host vanished without a word.
_POSTGRES_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


class UTCTime(TypeDecorator[datetime]):
    """Aware datetimes, stored as whole microseconds since 1970: exact, ordered and alike on both databases."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use datetime.now(UTC)")
        return (value - EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else EPOCH + value * _MICROSECOND


class _Now(FunctionElement[int]):
    """Microseconds since 1970 at the start of the statement, by the clock of the database."""

    type = BigInteger()
    inherit_cache = True


@compiles(_Now, "sqlite")
def _sqlite_now(_element: _Now, _compiler: Any, **_options: Any) -> str:
    # julianday counts milliseconds inside; unixepoch('subsec') needs a newer SQLite than some distributions have.
    return "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000"


@compiles(_Now, "postgresql")
def _postgresql_now(_element: _Now, _compiler: Any, **_options: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS BIGINT)"


def db_now(plus: float = 0.0) -> ColumnElement[datetime]:
    """The time by the database's clock, `plus` seconds. Leases are measured with it: hosts may disagree on the time."""
    return type_coerce(_Now() + round(plus * 1_000_000), UTCTime())


def make_engine(url: str, *, foreign_keys: bool = True, keep_connections: bool = True) -> Engine:
    """An engine set up as this service needs it. `foreign_keys=False` is for migrations, which rebuild tables."""
    parsed = make_url(normal_url(url))
    common = _COMMON if keep_connections else {**_COMMON, "poolclass": NullPool}
    if parsed.get_backend_name() == "postgresql":
        options = {name: value for name, value in _POSTGRES_PATIENCE.items() if name not in parsed.query}
        return create_engine(parsed, pool_pre_ping=True, connect_args=options | _preparing(parsed), **common)
    # isolation_level None: the driver starts no transaction of its own, `_begin` does.
    connecting = {"timeout": _BUSY_SECONDS, "isolation_level": None}
    engine = create_engine(parsed, connect_args=connecting, **common)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # An accepted job survives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        # Its own knows the letters of ASCII alone, and names are searched in any case.
        connection.create_function("lower", 1, _lower, deterministic=True)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that turns into a writer fails at once when another writes; IMMEDIATE waits its turn.
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        connection.exec_driver_sql("BEGIN DEFERRED" if read_only else "BEGIN IMMEDIATE")

    return engine


def _preparing(url: URL) -> dict[str, int | None]:
    """`?prepare_threshold=none` is for a pooler between transactions that knows no prepared statements."""
    told = url.query.get("prepare_threshold")
    if told is None:
        return {}
    try:
        return {"prepare_threshold": None if told == "none" else int(str(told))}
    except ValueError:
        raise ValueError(f"prepare_threshold={told} in the URL of the database: write a number, or none") from None


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


class Database:
    """Sessions of one database. Open it after a fork, never before: connections are not shared by processes.

    Objects stay readable after their session has closed.

    Args:
        keep_connections: False for one that may be open while its process forks, and for those who write seldom: each
            transaction has a connection of its own.
    """

    def __init__(self, url: str, *, keep_connections: bool = True) -> None:
        self.engine = make_engine(url, keep_connections=keep_connections)
        read_only: dict[str, Any] = {_READ_ONLY: True}
        if self.engine.dialect.name == "postgresql":
            read_only = {"postgresql_readonly": True}
            end_sessions_of(self.engine)
        self._writers = sessionmaker(self.engine, expire_on_commit=False, info={WRITES: True})
        self._readers = sessionmaker(self.engine.execution_options(**read_only), expire_on_commit=False)

    def write(self) -> AbstractContextManager[Session]:
        """A transaction that commits when the block ends and rolls back when it raises."""
        return self._writers.begin()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads: a write in it is refused by the database."""
        with self._readers() as session:
            yield session

    def listen(self, name: str, hook: Callable[..., None]) -> None:
        """Call `hook` at an event of SQLAlchemy, in every session of this object that writes."""
        event.listen(self._writers, name, hook)

    def writer(self) -> Session:
        """A session for writing that its user begins, commits and closes."""
        return self._writers()

    def reader(self) -> Session:
        """A session for reading that its user closes."""
        return self._readers()

    def close(self) -> None:
        self.engine.dispose()


def upsert(session: Session, table: Any) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that takes ON CONFLICT, in the dialect of the session."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
