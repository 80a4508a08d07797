"""The edge of the application: request ids, size limit, security headers, and a last net for exceptions."""

import asyncio
import logging
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.monitoring.instruments import Instruments
from api.naming import operation_of
from api.problems import ProblemError, internal_problem, problem_response
from store.monitoring import tracing
from store.monitoring.log_lines import about

log = logging.getLogger("api")
access_log = logging.getLogger("api.access")

_UPLOAD = re.compile(r"/datasets/[^/]+/archive")
_DRAIN_SECONDS = 2.0
_UNTRACED = ("/healthz", "/readyz", "/metrics")
_GONE = 499
"""Stands for the status of a request whose client left before there was an answer; nobody is sent it."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class EdgeMiddleware:
    """Pure ASGI, outermost, so that every answer passes it (streams included).

    Args:
        max_body_bytes: largest body of a request.
        max_upload_bytes: the same for an archive of a dataset, which its route writes to the disk as it comes.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_upload_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        body = _Body(receive, self.max_upload_bytes if _is_upload(scope) else self.max_body_bytes)
        answer = _Answer(body, send, request_id, scope)
        begun = time.perf_counter()
        with about(request_id=request_id), _span(scope) as span:
            try:
                await self._serve(scope, body, answer)
            except Exception:
                log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
                if answer.status is not None:
                    raise
                await problem_response(request_id, internal_problem())(scope, body, answer)
            finally:
                _note(scope, answer, begun)
                _describe(span, scope, answer.status or _GONE)

    async def _serve(self, scope: Scope, body: "_Body", answer: "_Answer") -> None:
        if "\0" in scope["path"]:  # no name holds it, and PostgreSQL takes no text with it
            problem = ProblemError(404, "not_found", "nothing is at this path")
            await problem_response(answer.request_id, problem)(scope, body, answer)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > body.limit:
            problem = ProblemError(413, "body_too_large", _too_large(body.limit))
            await problem_response(answer.request_id, problem)(scope, body, answer)
            return
        await self.app(scope, body, answer)


class _Body:
    """Counts the body as it comes in: a chunked request declares no length."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive = receive
        self.limit = limit
        self.seen = 0
        self.is_over = False

    async def __call__(self) -> Message:
        message = await self._next()
        self.seen += len(message.get("body", b""))
        if self.seen > self.limit:
            raise HTTPException(413, _too_large(self.limit))
        return message

    async def drain(self) -> None:
        """Read on for a moment: a connection that is closed with bytes unread is reset, and the answer may be lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self.is_over:
                    await self._next()

    async def _next(self) -> Message:
        message = await self.receive()
        self.is_over = message["type"] != "http.request" or not message.get("more_body")
        return message


class _Answer:
    def __init__(self, body: _Body, send: Send, request_id: str, scope: Scope) -> None:
        self.body = body
        self.send = send
        self.request_id = request_id
        self.is_upload = _is_upload(scope)
        self.status: int | None = None
        self.started_at: float | None = None
        self.is_stream = False
        self.instruments: Instruments = scope["app"].state.instruments

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started_at = message["status"], time.perf_counter()
            headers = MutableHeaders(scope=message)
            self.is_stream = headers.get("content-type", "").startswith("text/event-stream")
            if self.is_stream:
                self.instruments.listeners.inc()
            headers["X-Request-ID"] = self.request_id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if self.is_upload and message["status"] >= 400:
                headers["Connection"] = "close"  # or the rest of an archive would be sent for nothing
        elif self.is_upload and self.status is not None and self.status >= 400 and not message.get("more_body"):
            await self.send({**message, "more_body": True})
            await self.body.drain()
            message = {"type": "http.response.body"}
        await self.send(message)


def _span(scope: Scope) -> AbstractContextManager[Any]:
    """Around a request that is no question after the health of this process; below the caller's, where it has one."""
    if scope["path"] in _UNTRACED:
        return nullcontext()
    method, parent = scope["method"], Headers(scope=scope).get("traceparent")
    return tracing.span(method, parent=parent, kind="server", http__request__method=method, url__path=scope["path"])


def _describe(span: Any, scope: Scope, status: int) -> None:
    if span is not None:
        span.update_name(operation_of(scope))
        span.set_attribute("http.response.status_code", status)


def _note(scope: Scope, answer: _Answer, begun: float) -> None:
    """A line of the log and a count, once a request is over."""
    ended = time.perf_counter()
    method, path, operation = scope["method"], _printable(scope["path"]), operation_of(scope)
    status, took_ms = answer.status or _GONE, (ended - begun) * 1000
    answer.instruments.observe(operation, status, (answer.started_at or ended) - begun)
    if answer.is_stream:
        answer.instruments.listeners.dec()
    fields = {"method": method, "path": path, "status": status, "duration_ms": round(took_ms, 1)}
    ids = {"key_id": scope["state"].get("key_id"), "job_id": scope.get("path_params", {}).get("job_id")}
    known = {name: _printable(value) for name, value in ids.items() if value is not None}
    line = f"{method} {path} {status} {took_ms:.1f}ms"
    # Probes and Prometheus ask every few seconds; that all is well is no news.
    level = logging.DEBUG if path in _UNTRACED and status < 400 else logging.INFO
    access_log.log(level, "%s", line, extra={**fields, "operation": operation, **known})


def _is_upload(scope: Scope) -> bool:
    return scope["method"] == "PUT" and _UPLOAD.fullmatch(scope["path"]) is not None


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _too_large(limit: int) -> str:
    return f"the request's body is larger than {limit} bytes"


def _printable(path: str) -> str:
    """The path without control characters, which could forge lines of a log."""
    return "".join(char if char.isprintable() else "?" for char in path)
