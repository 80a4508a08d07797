"""HTTP with patience: requests that may be repeated are repeated, and every failure becomes a `ClientError`."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from client.errors import ApiError, ServerUnreachable

BUSY = (502, 503, 504)
LONGEST_PAUSE = 8.0


class Transport:
    """One connection pool to one server.

    Args:
        url: where the server is, e.g. `http://127.0.0.1:8000`.
        api_key: sent with every request, and to no other server that this one redirects to.
        timeout: seconds to wait for an answer to begin.
        retries: how often a request that may safely be repeated is tried again.
        backoff: the first pause in seconds; each next one is twice as long.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float, retries: int, backoff: float) -> None:
        self.url = url.rstrip("/")
        self._retries, self._backoff = retries, backoff
        known = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self.http = httpx.Client(base_url=self.url, timeout=timeout, follow_redirects=True, headers=known)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerUnreachable(self.url, f"not an address: {error}") from error

    def request(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (),
        timeout: float | None = None,
    ) -> httpx.Response:
        """Send, and try again on a lost connection or a busy server if `repeatable`; statuses in `accept` are answers.

        `timeout` is the longest wait for an answer where that of all requests is too short.

        Raises:
            ServerUnreachable: no answer. ApiError: the answer is a problem.
        """
        sent = {key: value for key, value in (params or {}).items() if value is not None}
        usual = self.http.timeout
        wait = usual if timeout is None else httpx.Timeout(usual.connect, read=timeout)
        for attempt in range(self._retries + 1):
            last = attempt == self._retries or not repeatable
            try:
                response = self.http.request(
                    method, path, params=sent, json=json, headers=dict(headers or {}), timeout=wait
                )
            except httpx.TransportError as error:
                if last:
                    raise unreachable(self.url, error) from error
                self.pause(attempt)
                continue
            if response.status_code in accept:
                return response
            if not last and _is_busy(response):
                self.pause(attempt, response.headers.get("Retry-After"))
                continue
            return checked(response)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def stream(
        self, path: str, *, params: Mapping[str, Any] | None = None, headers: Mapping[str, str], timeout: float
    ) -> Iterator[httpx.Response]:
        """One GET whose body is read bit by bit; not repeated. `timeout` bounds the silence between two reads."""
        wait = httpx.Timeout(self.http.timeout.connect, read=timeout)
        sent = {key: value for key, value in (params or {}).items() if value is not None}
        with self.http.stream("GET", path, params=sent, headers=dict(headers), timeout=wait) as response:
            if response.status_code >= 400:
                response.read()
                checked(response)
            yield response

    def put(
        self, path: str, body: Iterable[bytes], *, num_bytes: int, headers: Mapping[str, str], answer_within: float
    ) -> httpx.Response:
        """One PUT whose body is sent bit by bit; not repeated. Its failures are httpx's own.

        Raises:
            ApiError: the answer is a problem. httpx.TransportError: no answer.
        """
        sent = {"Content-Type": "application/octet-stream", "Content-Length": str(num_bytes), **headers}
        wait = httpx.Timeout(self.http.timeout.connect, read=answer_within, write=answer_within)
        return checked(self.http.put(path, content=body, headers=sent, timeout=wait))

    def pause(self, attempt: int, asked: str | None = None) -> None:
        """Sleep before trying again; a server's Retry-After in seconds wins."""
        wait = float(asked) if asked and asked.isdigit() else self._backoff * 2**attempt
        time.sleep(min(wait, LONGEST_PAUSE))

    def close(self) -> None:
        self.http.close()


def _is_busy(response: httpx.Response) -> bool:
    """Whether the same request may be answered in a moment: the server is, or another try of it is still at work."""
    if response.status_code == 409:
        return b"idempotency_in_flight" in response.content
    if response.status_code == 429:
        return b"rate_limited" in response.content
    return response.status_code in BUSY


def checked(response: httpx.Response) -> httpx.Response:
    """Raise what the server says is wrong."""
    if response.status_code < 400:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": f"{_bare(response.request.url)} answered {response.status_code} {response.reason_phrase}"}
    raise ApiError(response.status_code, problem)


def _bare(url: httpx.URL) -> httpx.URL:
    """Without its query, which may be a signature."""
    return url.copy_with(query=None)


def unreachable(url: str, error: httpx.TransportError) -> ServerUnreachable:
    if isinstance(error, httpx.ConnectError):
        return ServerUnreachable(url)
    return ServerUnreachable(url, f"{type(error).__name__}: {error}".rstrip(": "))
