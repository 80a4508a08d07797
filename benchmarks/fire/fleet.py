"""API, workers, Valkey and a database, each a process that is started again when it ends, as an init system does."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from celery import Celery

from benchmarks.fire import processes
from benchmarks.fire.databases import FaultyDatabase
from client.client import Client
from client.errors import ClientError
from client.machine import free_port, valkey_binary
from client.parts import Part
from store.db import Database
from store.upgrade import upgrade

Value = TypeVar("Value")
PATIENCE = {
    "TID_LEASE_SECONDS": "6",
    "TID_HEARTBEAT_SECONDS": "1",
    "TID_REAPER_SECONDS": "0.5",
    "TID_RING_SECONDS": "2",
    "TID_CANCEL_GRACE_SECONDS": "10",
}
_START_SECONDS = 1.0
_STOP_SECONDS = 60.0


class Fleet:
    """The whole service; use it in a `with` statement.

    Args:
        home: its folder, which all its processes share.
        data: the folder that datasets may lie in.
        environment: further variables of every part; `own`: of single parts, by name.
    """

    def __init__(
        self,
        home: Path,
        data: Path,
        database: FaultyDatabase,
        *,
        workers: int = 2,
        environment: Mapping[str, str] | None = None,
        own: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.home, self.database = home, database
        self.socket = home / "run" / "valkey.sock"
        self.port = free_port("127.0.0.1", 0)
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.records = Database(database.url)
        """The database, to look at from outside."""
        self.parts: dict[str, Part] = {}
        self.held: set[str] = set()
        """Parts that are not started again for now."""
        self.starts: dict[str, int] = {}
        self._environment = {"TID_DATA_ROOTS": str(data), "CUDA_VISIBLE_DEVICES": "", **PATIENCE, **(environment or {})}
        self._own = own or {}
        self._workers = workers
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper")

    def __enter__(self) -> Self:
        for folder in ("logs", "run"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        self.database.start()
        upgrade(self.database.url)
        self._make_parts()
        self._keeper.start()
        self.wait_for(self.answers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._keeper.join()
        self.client.close()
        self.records.close()
        self.database.stop()

    # -- looking at it

    @property
    def workers(self) -> list[str]:
        return [name for name in self.parts if name.startswith("worker")]

    def answers(self) -> bool:
        try:
            return self.client.ready().ready
        except ClientError:
            return False

    def pid(self, name: str) -> int:
        pid = self.parts[name].pid
        assert pid is not None
        return pid

    def training(self, worker: str) -> int | None:
        """The training process of a worker."""
        for process in processes.tree(self.pid(worker)):
            if "tid_core.run" in process.command:
                return process.pid
        return None

    def pool(self, worker: str) -> list[int]:
        """The worker itself and its pool process, without the training."""
        everyone = processes.tree(self.pid(worker))
        training = self.training(worker)
        below = {process.pid for process in processes.tree(training)} if training else set()
        return [process.pid for process in everyone if process.pid not in below]

    def trainings(self) -> list[int]:
        """Every training process of this service, whoever it belongs to."""
        return [one.pid for one in processes.listing() if f"{self.home}/work/" in one.command]

    @staticmethod
    def wait_for(condition: Callable[[], Value], timeout: float = 600.0) -> Value:
        """The first true value of the condition.

        Raises:
            TimeoutError: there was none.
        """
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:.0f} s in vain")
            time.sleep(0.05)
        return value

    # -- hurting it

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """A signal to one part alone; returns the process that was."""
        pid = self.pid(name)
        processes.send(number, [pid])
        return pid

    def ring(self, job_id: str, times: int = 1) -> None:
        """More messages for a job."""
        with Celery("fire", broker=f"redis+socket://{self.socket}", set_as_current=False) as app:
            for _ in range(times):
                app.send_task("tid.run_job", [job_id], queue="default", ignore_result=True)

    # -- in the keeper's thread: parts live as long as the thread that starts them

    def _keep(self) -> None:
        started: dict[str, float] = {}
        while not self._stopping.wait(0.05):
            for name, part in self.parts.items():
                now = time.monotonic()
                ended = part.pid is None or part.exit_code() is not None
                if ended and name not in self.held and now - started.get(name, -_START_SECONDS) >= _START_SECONDS:
                    started[name] = now
                    self.starts[name] = self.starts.get(name, 0) + 1
                    if name == "valkey":
                        self.socket.unlink(missing_ok=True)
                    part.start()
        for part in self.parts.values():
            if part.name.startswith("worker"):
                part.terminate()
        for name in [*self.workers, "api", "valkey"]:
            self.parts[name].stop(threading.Event())

    def _make_parts(self) -> None:
        base = {**os.environ, **self._environment}
        base |= {"TID_HOME": str(self.home), "TID_DATABASE_URL": self.database.url}
        base |= {"TID_BROKER_URL": f"redis+socket://{self.socket}", "TID_PORT": str(self.port)}
        valkey = [valkey_binary(), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        valkey += ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(self.home / "run")]
        self._add("valkey", valkey, base)
        self._add("api", [sys.executable, "-m", "api"], base)
        for number in range(self._workers):
            name = f"worker-{number}"
            own = {"TID_WORKER_ID": name, "TID_THREADS": "1"}
            self._add(name, [sys.executable, "-m", "worker"], {**base, **own})

    def _add(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        variables = {**environment, **self._own.get(name, {})}
        self.parts[name] = Part(name, command, variables, self.home / "logs" / f"{name}.log", _STOP_SECONDS)


def patiently(action: Callable[[], Value], *, pause: float = 0.3) -> Value:
    """Ask the API again and again while it is away or busy."""
    while True:
        with suppress(ClientError):
            return action()
        time.sleep(pause)
