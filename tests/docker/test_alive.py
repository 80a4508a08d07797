"""The health checks of the images, run as the images run them."""

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.pulse import Pulse

ALIVE = Path(__file__).resolve().parents[2] / "docker/alive"


def check(name: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-IS", ALIVE / f"{name}.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


@pytest.fixture
def answering() -> Iterator[tuple[int, list[int]]]:
    """A server's port, and the status with which it answers."""
    status = [200]

    class There(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == "/healthz"
            self.send_response(status[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), There) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], status
        server.shutdown()


def test_an_api_is_well_if_it_says_so(answering: tuple[int, list[int]]) -> None:
    port, status = answering
    assert check("api", TID_PORT=str(port)) == (0, "")
    status[0] = 500
    assert check("api", TID_PORT=str(port)) == (1, f"port {port}: GET /healthz is not answered with 200")
    assert check("api", TID_PORT="1")[1] == "port 1: [Errno 111] Connection refused"


def test_workers_are_well_if_each_has_a_pulse(tmp_path: Path) -> None:
    home = {"TID_HOME": str(tmp_path)}
    assert check("worker", **home) == (1, f"no worker has reported in {tmp_path}/run")
    pulses = [Pulse(tmp_path, name) for name in ("host/gpu-0", "host/gpu-1")]
    for pulse in pulses:
        pulse.beat()
    assert check("worker", **home) == (0, "")

    silent_since = time.time() - 90
    os.utime(pulses[1].path, (silent_since, silent_since))
    code, told = check("worker", **home)
    assert (code, told[:30]) == (1, "silent: host%2Fgpu-1 for 90 s"[:30])
    assert check("worker", **home, TID_HEARTBEAT_SECONDS="30") == (0, "")
    pulses[1].beat()
    assert check("worker", **home) == (0, "")

    pulses[1].end()  # it left, in order
    assert check("worker", **home) == (0, "")
    os.utime(pulses[0].path, (1, 1))  # of an earlier life of this container
    assert check("worker", **home)[0] == 1


def test_a_pulse_that_cannot_be_written_stops_no_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").touch()
    pulse = Pulse(tmp_path, "me")
    pulse.beat()
    pulse.beat()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
