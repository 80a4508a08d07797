"""What a line of the log says, as text and as JSON, and what it does not."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.monitoring import log_lines
from store.settings import Settings

log = logging.getLogger("worker")
Write = Callable[..., str]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Write]:
    """What `action` writes under these settings."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    states = {name: (logging.getLogger(name).level, logging.getLogger(name).handlers[:]) for name in log_lines.OURS}

    def written(action: Callable[[], Any], **settings: Any) -> str:
        stream = io.StringIO()
        log_lines.configure(Settings(home=tmp_path, **settings), stream)
        action()
        return stream.getvalue()

    yield written
    root.handlers, _ = before
    root.setLevel(before[1])
    for name, (level, handlers) in states.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers = handlers
    logging.captureWarnings(False)


def test_a_line_of_text_has_the_ids_that_its_message_lacks(written: Write) -> None:
    def act() -> None:
        with log_lines.about(job_id="0a1b", attempt=2):
            log.info("job %s: its lease is renewed", "0a1b")
            log.warning("attempt %d ended", 2, extra={"request_id": "r1", "path": "/jobs"})
        log.info("outside")

    lines = written(act).splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z ", "", line) for line in lines] == [
        "INFO worker job 0a1b: its lease is renewed attempt=2",
        "WARNING worker attempt 2 ended job_id=0a1b request_id=r1",
        "INFO worker outside",
    ]


def test_a_line_of_json_has_every_field_and_the_traceback(written: Write) -> None:
    def act() -> None:
        with log_lines.about(job_id="0a1b", attempt=2):
            try:
                raise ValueError("two\nlines")
            except ValueError:
                log.exception("it failed", extra={"path": "/jobs", "status": 500})

    (line,) = map(json.loads, written(act, log_format="json").splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert "ValueError: two\nlines" in line.pop("exception")
    expected = {"level": "error", "logger": "worker", "message": "it failed", "path": "/jobs", "status": 500}
    assert line == {**expected, "job_id": "0a1b", "attempt": 2}


def test_json_leaves_out_what_uvicorn_and_celery_say_twice(written: Write) -> None:
    def act() -> None:
        log.info("process 7", extra={"color_message": "process \x1b[36m7\x1b[0m", "data": {"args": "('0a1b',)"}})

    line = json.loads(written(act, log_format="json"))
    assert (line["message"], line.keys() & {"color_message", "data"}) == ("process 7", set())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_stay_out(written: Write, log_format: str) -> None:
    key = "tid_0123456789ab_" + "c0ffee" * 10 + "abcd"

    def act() -> None:
        log.error("postgresql+psycopg://user:hunter2@host/name and redis://:hunter2@host")
        log.error("Authorization: Bearer hunter2, and %s", key)
        try:
            raise RuntimeError("https://user:hunter2@host")
        except RuntimeError:
            log.exception("no")

    text = written(act, log_format=log_format)
    assert "hunter2" not in text
    assert key not in text
    assert "user:***@host/name" in text
    assert "tid_0123456789ab_***" in text


def test_a_message_cannot_forge_a_line_or_colour_a_terminal(written: Write) -> None:
    text = written(lambda: log.info("job\n2026-01-01 00:00:00.000Z INFO worker forged \x1b[31m"))
    first, second = text.splitlines()
    assert first.endswith("INFO worker job")
    assert second == "    2026-01-01 00:00:00.000Z INFO worker forged ?[31m"


def test_the_level_is_ours_and_libraries_only_warn(written: Write) -> None:
    def act() -> None:
        log.debug("detail")
        log.warning("trouble")
        logging.getLogger("httpx").info("chatter")
        logging.getLogger("httpx").warning("heed")

    assert [line.split(" ", 3)[3] for line in written(act, log_level="debug").splitlines()] == [
        "worker detail",
        "worker trouble",
        "httpx heed",
    ]
    assert "trouble" not in written(act, log_level="error")


def test_traces_that_nobody_collects_cost_nothing() -> None:
    """Nothing that makes or exports spans is imported (FastAPI looks for the API alone); a missing extra is told."""
    code = """
import logging, os, sys
logging.basicConfig()
import api.app, worker.supervisor
from store.monitoring import tracing
tracing.configure("tid-api")
with tracing.span("anything", tid__job_id="x") as span:
    assert span is None and tracing.traceparent() is None and tracing.open_span("more") is None
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
sys.modules["opentelemetry.sdk.trace"] = None
tracing.configure("tid-api")
assert not tracing.is_on()
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "install `tid-service[otel]`" in done.stderr


def test_a_long_word_is_searched_once(written: Write) -> None:
    """Looked at from each of its letters, it would take minutes."""
    word = "a" * 1_000_000
    assert word in written(lambda: log.info("GET /jobs/%s", word))
