"""What becomes of a dataset when the processes that look through it are stopped, killed, or many."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.app import create_app
from client.machine import free_port
from store import datasets
from store.artifacts import FolderArtifacts
from store.db import Database
from store.models import Dataset
from store.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = {"TID_LEASE_SECONDS": "3", "TID_HEARTBEAT_SECONDS": "0.2", "TID_REAPER_SECONDS": "0.1"}
Make = Callable[..., Path]
Settled = Callable[..., dict[str, Any]]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


class Api:
    """`python -m api` that can be killed and started again."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, port = home, free_port("127.0.0.1", 0)
        self._environment = {**os.environ, **PATIENCE, "TID_HOME": str(home), "TID_PORT": str(port)}
        self._environment |= {"TID_DATABASE_URL": url, "TID_BROKER_URL": "redis://127.0.0.1:1/0"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)

    def start(self) -> None:
        with (self.home / "api.log").open("ab") as log:
            command = [sys.executable, "-m", "api"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.home / "api.log").read_text()
        try:
            return self.http.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def freeze_child(self, word: str) -> int:
        """Halt the process that has this word among its arguments."""
        pid = int(until(lambda: children(word))[0])
        os.kill(pid, signal.SIGSTOP)
        return pid

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(30)


def children(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"-I" not in arguments and any(word.encode() in one for one in arguments):
            found.append(entry.name)
    return found


def until(look: Callable[[], Any]) -> Any:
    while not (found := look()):
        time.sleep(0.01)
    return found


@pytest.fixture
def api(tmp_path: Path, sqlite_url: str) -> Iterator[Api]:
    (tmp_path / "data").mkdir()
    api = Api(tmp_path, sqlite_url)
    api.start()
    yield api
    if api.process.poll() is None:
        api.end(signal.SIGTERM)
    api.http.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_is_taken_up_again_after_the_end_of_the_api(
    api: Api, make_dataset: Make, settled: Settled, how: signal.Signals
) -> None:
    root = make_dataset(api.home / "data" / "pets", images=8)
    api.http.post("/datasets", json={"name": "pets", "root": str(root)})
    child = api.freeze_child(str(root))
    assert api.http.get("/datasets/pets").json()["state"] == "validating"
    api.end(how)
    until(lambda: not Path(f"/proc/{child}").exists())
    api.start()
    dataset = settled(api.http, "pets")
    assert (dataset["state"], dataset["splits"]["train"]["images"]) == ("ready", 8)
    until(lambda: not list((api.home / "uploads").rglob("*")))
    assert len(list((api.home / "artifacts" / "datasets").rglob("facts.json"))) == 1


@pytest.mark.parametrize("phase", ["tid_core.data.archives", "tid_core.data.index"])
def test_an_archive_is_taken_up_again_after_a_kill(
    api: Api, make_dataset: Make, settled: Settled, tmp_path: Path, phase: str
) -> None:
    root = make_dataset(tmp_path / "packed", images=4)
    with tarfile.open(tmp_path / "pets.tar.gz", "w:gz") as archive:
        archive.add(root, "pets")
    identity = api.http.post("/datasets", json={"name": "pets"}).json()["id"]
    api.http.put("/datasets/pets/archive", content=(tmp_path / "pets.tar.gz").read_bytes())
    child = api.freeze_child(f"{identity}/data-" if phase.endswith("archives") else f"{identity}/index-")
    api.end(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{child}").exists())
    api.start()
    assert settled(api.http, "pets")["state"] == "ready"
    until(lambda: [path.name for path in (api.home / "uploads" / identity).iterdir()] == ["data"])


def test_a_dataset_deleted_while_it_is_looked_through_is_gone(api: Api, make_dataset: Make) -> None:
    root = make_dataset(api.home / "data" / "pets", images=2)
    api.http.post("/datasets", json={"name": "pets", "root": str(root)})
    child = api.freeze_child(str(root))
    assert api.http.delete("/datasets/pets").status_code == 204
    until(lambda: not Path(f"/proc/{child}").exists())
    until(lambda: not list((api.home / "uploads").rglob("*")))
    assert api.http.get("/datasets").json()["data"] == []


def test_a_child_that_is_killed_makes_the_dataset_invalid_and_not_the_next(
    api: Api, make_dataset: Make, settled: Settled
) -> None:
    first, second = (make_dataset(api.home / "data" / name, images=2) for name in ("first", "second"))
    api.http.post("/datasets", json={"name": "first", "root": str(first)})
    api.http.post("/datasets", json={"name": "second", "root": str(second)})
    os.kill(api.freeze_child(str(first)), signal.SIGKILL)
    (problem,) = settled(api.http, "first")["report"]
    assert problem["code"] == "validation_failed"
    assert "signal 9" in problem["detail"]
    assert settled(api.http, "second")["state"] == "ready"


def test_of_two_api_processes_one_looks_through_a_dataset(
    api: Api, make_dataset: Make, settled: Settled, sqlite_url: str, tmp_path: Path
) -> None:
    other = Api(tmp_path, sqlite_url)
    other.start()
    try:
        root = make_dataset(api.home / "data" / "pets", images=2)
        api.http.post("/datasets", json={"name": "pets", "root": str(root)})
        child = api.freeze_child(str(root))
        time.sleep(2 * float(PATIENCE["TID_LEASE_SECONDS"]))  # while it is held, however long it takes
        assert children(str(root)) == [str(child)]
        os.kill(child, signal.SIGCONT)
        assert settled(other.http, "pets")["state"] == "ready"
        assert len(list((api.home / "artifacts" / "datasets").rglob("facts.json"))) == 1
    finally:
        other.end(signal.SIGTERM)


def test_a_dataset_whose_index_is_stored_slowly_is_nobody_elses(
    sqlite_url: str, tmp_path: Path, make_dataset: Make, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_slowly(store: FolderArtifacts, key: str, source: Path) -> Any:
        time.sleep(1.5)
        with database.write() as session:
            if any(taken):  # once is enough to see it
                return put(store, key, source)
            taken.append(datasets.hold(key.split("/")[1], "validating", seconds=1, session=session))
        return put(store, key, source)

    put, database = FolderArtifacts.put, Database(sqlite_url)
    taken: list[Any] = []
    monkeypatch.setattr(FolderArtifacts, "put", put_slowly)
    root = make_dataset(tmp_path / "data" / "pets", images=2)
    settings = Settings(home=tmp_path, database_url=sqlite_url, broker_url="redis://127.0.0.1:1/0")
    settings = settings.model_copy(update={"lease_seconds": 1.0, "heartbeat_seconds": 0.2})
    with TestClient(create_app(settings)) as client:
        client.post("/datasets", json={"name": "pets", "root": str(root)})
        assert settled(client, "pets")["state"] == "ready"
    database.close()
    assert set(taken) == {None}


def test_classes_that_changed_since_an_earlier_version_of_the_service_looked(
    sqlite_url: str, tmp_path: Path, make_dataset: Make, settled: Settled
) -> None:
    """Rows of before the index are looked through at the next start; jobs rely on the order of their classes."""
    root = make_dataset(tmp_path / "data" / "pets", images=2)
    database = Database(sqlite_url)
    with database.write() as session:
        for name in ("same", "others"):
            datasets.register(name=name, root=root, options={}, roots=[tmp_path], session=session)
        for name, classes in (("same", ["cat", "dog"]), ("others", ["dog", "cat"])):
            session.execute(update(Dataset).where(Dataset.name == name).values(classes=classes))
    database.close()
    settings = Settings(home=tmp_path, database_url=sqlite_url, broker_url="redis://127.0.0.1:1/0")
    with TestClient(create_app(settings)) as client:
        assert settled(client, "same")["state"] == "ready"
        assert [problem["code"] for problem in settled(client, "others")["report"]] == ["classes_changed"]
