"""Running the service: one trace from a request to the first step, lines that say what they are about, figures, a
backup while a job trains, and stopping in order. Real processes, one after the other on the same service."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from client.client import Client
from client.embedded import Embedded
from tests.service import PATIENCE, Service

ROOT = Path(__file__).resolve().parents[2]
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """A receiver of spans, by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.services: dict[str, str] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            name = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    if span.trace_id.hex() == TRACE:
                        self.spans[span.name], self.services[span.name] = span, name


@pytest.fixture(scope="module", autouse=True)
def collector() -> Iterator[Collector]:
    """Everything that is started in this module sends its spans here, and writes JSON."""
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    own = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "TID_LOG_FORMAT": "json"}
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    yield collector
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def trained(service: Service, spec: dict[str, Any]) -> str:
    """A job that was asked for by a caller who traces, and has succeeded."""
    short = {**spec, "training": {**spec["training"], "epochs": 1}}
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-ID": "asked-for-it"}
    response = httpx.post(f"{service.embedded.url}/jobs", json=short, headers=headers)
    assert response.status_code == 201
    job_id: str = response.json()["id"]
    assert service.client.wait(job_id).state == "succeeded"
    return job_id


def test_one_trace_leads_from_the_request_to_the_first_step(collector: Collector, trained: str) -> None:
    below = {
        "jobs-create": None,
        "submit": "jobs-create",
        "preflight": "submit",
        "attempt": "submit",
        "queued": "attempt",
        "claim": "attempt",
        "plan": "attempt",
        "start": "attempt",
        "first step": "attempt",
    }
    Service.wait_for(lambda: below.keys() <= collector.spans.keys())
    spans = collector.spans
    assert spans["jobs-create"].parent_span_id.hex() == CALLER
    for name, parent in below.items():
        if parent is not None:
            assert spans[name].parent_span_id == spans[parent].span_id, name
        of_worker = parent == "attempt" or name == "attempt"
        assert collector.services[name] == ("tid-worker" if of_worker else "tid-api")
    ids = {one.key: one.value for one in spans["attempt"].attributes}
    assert (ids["tid.job_id"].string_value, ids["tid.attempt"].int_value) == (trained, 1)
    order = ["queued", "claim", "plan", "start", "first step"]
    starts = [spans[name].start_time_unix_nano for name in order]
    assert starts == sorted(starts)
    assert spans["start"].end_time_unix_nano <= spans["first step"].end_time_unix_nano


def lines(log: Path) -> list[dict[str, Any]]:
    """Every line but Celery's two about a signal, which it writes past all logs."""
    text = re.sub(r"\nworker: (Warm|Hitting)[^\n]*\n", "", log.read_text())
    return [json.loads(line) for line in text.splitlines() if line]


def test_every_line_says_what_it_is_about(service: Service, trained: str) -> None:
    about = [line for line in lines(service.home / "logs" / "worker-0.log") if trained in line["message"]]
    assert len(about) >= 2
    assert {(line["job_id"], line["attempt"], line["trace_id"]) for line in about} == {(trained, 1, TRACE)}
    asked = [line for line in lines(service.home / "logs" / "api.log") if line.get("request_id") == "asked-for-it"]
    (request,) = [line for line in asked if line["logger"] == "api.access"]
    expected = {"method": "POST", "path": "/jobs", "status": 201, "operation": "jobs-create", "level": "info"}
    assert expected.items() <= request.items()
    assert request["duration_ms"] > 0
    probes = [line for line in lines(service.home / "logs" / "api.log") if line.get("path") == "/readyz"]
    assert all(line["status"] == 503 for line in probes), "the service was asked until it was ready; that is no news"


def test_the_figures_of_a_service_at_work(service: Service, trained: str) -> None:
    text = httpx.get(f"{service.embedded.url}/metrics").text
    samples = {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }
    assert samples["tid_jobs", ("state", "succeeded")] == 1
    assert samples["tid_attempts", ("outcome", "succeeded")] == 1
    assert samples["tid_workers", ("state", "idle")] + samples["tid_workers", ("state", "busy")] == 1
    assert samples["tid_http_request_duration_seconds_count", ("operation", "jobs-create"), ("status", "2xx")] == 1
    assert samples["tid_reaper_age_seconds",] >= 0
    ready = service.client.ready()
    assert ready.ready
    assert all(one.ok for one in ready.dependencies if one.name != "artifacts"), "room is what this disk has"


@pytest.fixture
def start_up() -> Iterator[Callable[..., Any]]:
    """`tid up` as a command; killed after the test where it still runs."""
    started = []

    def start(home: Path, *, workers: int = 1, **settings: str) -> Any:
        own = {**PATIENCE, "CUDA_VISIBLE_DEVICES": "", "TID_LOG_FORMAT": "text", **settings}
        command = [sys.executable, "-m", "client.cli", "up", "--home", str(home), "--port", "0", f"--workers={workers}"]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for up in started:
        up.kill()
        up.wait()


def tid(*arguments: str, **settings: str) -> None:
    environment = {**os.environ, **settings}
    subprocess.run([sys.executable, "-m", "client.cli", *arguments], cwd=ROOT, env=environment, check=True)


def answers(client: Client, job_id: str) -> dict[str, Any]:
    """What the service says of a job that has ended."""
    paths = ["", "/metrics", "/logs", "/attempts", "/report", "/checkpoints"]
    url = client._transport.url
    found = {path: httpx.get(f"{url}/jobs/{job_id}{path}").json() for path in paths}
    return {**found, "best": httpx.get(f"{url}/jobs/{job_id}/checkpoints/best").content}


def test_a_backup_of_a_running_service_comes_back_and_stops_in_order(
    service: Service, spec: dict[str, Any], trained: str, tmp_path: Path, start_up: Callable[..., Any]
) -> None:
    endless = {**spec, "training": {**spec["training"], "epochs": 10_000}}
    job_id = service.client.submit(endless).id
    service.wait_until_saved(job_id, step=2, attempt=1)
    copy, home = tmp_path / "copy", tmp_path / "home"
    tid("backup", str(copy), "--home", str(service.home))
    service.client.cancel(job_id)
    tid("restore", str(copy), "--home", str(home))
    tid("gc", "--home", str(home))
    up = start_up(home, workers=0, TID_DATA_ROOTS=str(service._data))
    url = up.stdout.readline().split()[4]
    with Client(url) as restored:
        assert answers(restored, trained) == answers(service.client, trained)
        waits = restored.job(job_id)
        assert (waits.state, waits.status_reason) == ("queued", "restored")
        (first,) = restored.attempts(job_id)
        assert (first.outcome, first.reason) == ("handed_back", "restored")
        states = list((home / "artifacts" / "jobs" / job_id / "attempt-1" / "resume").iterdir())
        assert all((state / "state.pt").stat().st_size > 0 for state in states)
        assert 1 <= len(states) <= 2
        with httpx.stream("GET", f"{url}/jobs/{job_id}/events", timeout=60) as stream:
            heard = stream.iter_lines()
            next(heard)
            up.send_signal(signal.SIGINT)
            last = [line for line in heard if line][-3:]
    assert up.wait() == 0
    assert "event: end" in last
    assert "stopped; jobs that were running go on" in up.stdout.read()
    assert not (home / "tid.db-wal").exists(), "the database was closed"
    assert _of_home(home) == []


def test_a_second_ctrl_c_waits_for_nothing(tmp_path: Path, start_up: Callable[..., Any]) -> None:
    """A part that is frozen would be waited for."""
    up = start_up(tmp_path, workers=0)
    assert "tid is up" in up.stdout.readline()
    assert "Ctrl-C stops everything" in up.stdout.readline()
    api = next(pid for pid in _of_home(tmp_path) if b"\0api\0" in _read(pid, "cmdline"))
    os.kill(api, signal.SIGSTOP)
    up.send_signal(signal.SIGINT)
    assert up.stdout.readline().startswith("stopping")
    up.send_signal(signal.SIGINT)
    assert up.wait() == 130
    assert "stopped without waiting" in up.stdout.read()
    assert _of_home(tmp_path) == []


@pytest.mark.parametrize(("set_to", "waited"), [("600", 630.0), ("", 150.0), ("long", 150.0)])
def test_a_worker_is_waited_for_as_long_as_its_training_may_save(tmp_path: Path, set_to: str, waited: float) -> None:
    environment = {"TID_TERMINATE_GRACE_SECONDS": set_to, "CUDA_VISIBLE_DEVICES": ""}
    embedded = Embedded(tmp_path, environment=environment)
    embedded._make_parts()
    assert embedded.parts["worker-0"].stop_seconds == waited


def _of_home(home: Path) -> list[int]:
    """Processes with this home in their environment, but for `tid up` itself and what has ended."""
    wanted = f"TID_HOME={home}\0".encode()
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if wanted in _read(pid, "environ")]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
