"""Bytes that no client library sends, to a real server: it refuses them, never fails, and goes on serving others."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import h11
import httpx
import pytest
import uvicorn
from hypothesis import event, given, settings
from hypothesis import strategies as st

from api.app import create_app
from store.settings import Settings
from tests.fuzz.test_files import altered

FUZZ = settings.get_profile("fuzz")
Address = tuple[str, int]
HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"
JOB = json.dumps({"student": {"detector": "fcos_conv5_tiny"}, "dataset": "pets"}).encode()
POST = b"POST /jobs?dry_run=true HTTP/1.1\r\n" + HOST + JSON
SOUND = (
    b"GET /jobs?limit=1&search=a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(JOB) + JOB,
    POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(JOB), JOB),
)
QUEER = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an unknown method": b"BREW /jobs HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "no host": b"GET /jobs HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /jobs HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "an absolute target": b"GET http://127.0.0.1/jobs HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target of another kind": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path that is not UTF-8": b"GET /jobs/%ff%fe%c0%80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "raw bytes in a path": b"GET /jobs/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in a path": b"GET /datasets/a%00b/sample HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in a query": b"GET /jobs?search=%00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a query that is not UTF-8": b"GET /jobs?search=%ff%ed%a0%80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long path": b"GET /jobs/" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header without an end": b"GET /jobs HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 200_000,
    "many headers": b"GET /jobs HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: 1\r\n" % i for i in range(3000)) + b"\r\n",
    "a header that is not ASCII": b"GET /jobs HTTP/1.1\r\n" + HOST + b"Accept: \xff\xfe\r\nX-Request-ID: \xe9\r\n\r\n",
    "a folded header": b"GET /jobs HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "a broken range": b"GET /jobs HTTP/1.1\r\n" + HOST + b"Range: bytes=9-1,-,x\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n{}",
    "a length beyond measure": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
    "a length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that is no number": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond measure": POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    "chunks of one byte": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 2000 + b"0\r\n\r\n",
    "a body that is not UTF-8": POST + b'Content-Length: 4\r\n\r\n"\xff"\n',
    "a body nested without end": POST + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000,
    "a number without end": POST + b"Content-Length: 100000\r\n\r\n" + b"9" * 100_000,
    "an encoding": POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "a charset": POST.replace(b"json", b"json; charset=utf-16") + b"Content-Length: 4\r\n\r\n{\0}\0",
    "an upgrade": b"GET /jobs HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "a request within a body": POST + b"Content-Length: 0\r\n\r\nGET /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "an upload of nothing": b"PUT /datasets/a/archive HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "an idempotency key of bytes": POST + b"Idempotency-Key: \xff\x01\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.fixture(scope="module")
def failures() -> Iterator[list[str]]:
    """What the server logged as an error."""
    told: list[str] = []
    handler = logging.Handler(logging.ERROR)

    def emit(record: logging.LogRecord) -> None:
        # Chunks that turn out broken once the request is under way: uvicorn has answered 400 before the application.
        if not record.exc_info or not isinstance(record.exc_info[1], h11.LocalProtocolError):
            told.append(record.getMessage())

    handler.emit = emit  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "api", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield told
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, failures: list[str]) -> Iterator[Address]:
    home = tmp_path_factory.mktemp("wire")
    config = Settings(home=home, broker_url="redis://127.0.0.1:1/0", reaper_seconds=3600)
    server = uvicorn.Server(uvicorn.Config(create_app(config), log_config=None, timeout_graceful_shutdown=1))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server ended while starting"
            time.sleep(0.02)
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


def send(address: Address, data: bytes, *, patience: float = 20.0) -> bytes:
    """What the server says to these bytes until it closes, or says nothing for so many seconds."""
    with socket.create_connection(address, timeout=20) as connection:
        said = b""
        with suppress(ConnectionError, TimeoutError):
            connection.sendall(data)
            connection.settimeout(patience)
            while part := connection.recv(1 << 16):
                said += part
        return said


def check(said: bytes, failures: list[str]) -> int | None:
    """The status of the first answer; None where there is none."""
    assert failures == []
    if not said:
        return None
    version, status, *_ = said.split(b"\r\n")[0].split(b" ")
    assert version == b"HTTP/1.1"
    head, _, body = said.partition(b"\r\n\r\n")
    assert int(status) < 500, said[:300]
    if b"application/problem+json" in head and b"chunked" not in head:
        assert json.loads(body.split(b"HTTP/1.1 ")[0])["status"] == int(status)
    return int(status)


@pytest.mark.parametrize("what", QUEER)
def test_what_is_no_request_is_refused(address: Address, failures: list[str], what: str) -> None:
    check(send(address, QUEER[what], patience=0.3), failures)
    assert check(send(address, SOUND[0]), failures) == 200


@given(st.sampled_from(SOUND).flatmap(altered))
@settings(FUZZ, max_examples=5 * FUZZ.max_examples)
def test_a_request_with_any_bytes_altered(address: Address, failures: list[str], data: bytes) -> None:
    event(str(check(send(address, data, patience=0.05), failures)))


def test_half_requests_keep_nobody_waiting(address: Address, failures: list[str]) -> None:
    """Heads and bodies that never come to their end, and connections that are reset in the middle."""
    with ExitStack() as stack:
        for index in range(60):
            connection = stack.enter_context(socket.create_connection(address, timeout=20))
            whole = SOUND[index % 3]
            connection.sendall(whole[: len(whole) * (1 + index % 7) // 8])
        with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=20) as client:
            assert client.get("/jobs").status_code == 200
            assert client.post("/jobs?dry_run=true", content=JOB, headers={"Content-Type": "application/json"}).json()
    assert check(send(address, SOUND[0]), failures) == 200
