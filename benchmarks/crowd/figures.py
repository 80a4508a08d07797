"""What a PostgreSQL server of this machine does meanwhile: by its own counters, and by what the kernel says of it."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from benchmarks.fire import processes

_TICK = os.sysconf("SC_CLK_TCK")
_COUNTERS = """
SELECT pg_current_wal_lsn() - '0/0'::pg_lsn, pg_database_size(current_database()),
    xact_commit + xact_rollback, tup_inserted + tup_updated + tup_deleted
FROM pg_stat_database WHERE datname = current_database()"""
_UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs'"


class Figures(NamedTuple):
    """Counted since the server began."""

    cpu_seconds: float
    wal_bytes: int
    bytes: int
    transactions: int
    rows: int
    job_updates: int
    job_hot_updates: int

    def since(self, before: "Figures") -> "Figures":
        return Figures(*(now - then for now, then in zip(self, before, strict=True)))  # type: ignore[arg-type]


class Server:
    """A connection that only looks."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        folder = Path(str(self._ask("SHOW data_directory")[0]))
        self._pid = int((folder / "postmaster.pid").read_text().split()[0])

    def figures(self) -> Figures:
        self._connection.execute("SELECT pg_stat_clear_snapshot()")
        wal, size, transactions, rows = self._ask(_COUNTERS)
        return Figures(self.cpu_seconds(), int(wal), size, transactions, rows, *self._ask(_UPDATES))

    def connections(self) -> int:
        """Backends that serve somebody."""
        return int(self._ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")[0]) - 1

    def cpu_seconds(self) -> float:
        """Of the server, its backends, and those that have ended."""
        running = sum(cpu_seconds(process.pid) for process in processes.tree(self._pid))
        return running + cpu_seconds(self._pid, ended_children=True)

    def run(self, statement: str) -> None:
        self._connection.execute(statement.encode())

    def close(self) -> None:
        self._connection.close()

    def _ask(self, question: str) -> tuple[Any, ...]:
        row = self._connection.execute(question.encode()).fetchone()
        assert row is not None
        return row


def cpu_seconds(pid: int, *, ended_children: bool = False) -> float:
    """In the kernel and outside of it; 0 for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    first = 13 if ended_children else 11
    return (int(fields[first]) + int(fields[first + 1])) / _TICK
