"""Nobody gets past here who may not: the key, its scope and its rate; the Host header; requests of other sites."""

import logging
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.deps import Parts
from api.gate.access import SAFE, Needed, check_head, check_host, check_origin, is_loopback, of_path
from api.gate.callers import CALLER, Caller
from api.gate.keyring import FRESH_SECONDS, RETRY_SECONDS
from api.gate.rates import Buckets
from api.problems import ProblemError, problem_response
from store.models import ApiKey, KeyScope
from store.monitoring.log_lines import about

log = logging.getLogger("api.access")

_PATIENCE_SECONDS: Final = 0.3
_WATCHING: Final = ("/healthz", "/readyz", "/metrics")
"""How the service is: asked when it is not well, so a database that hangs does not hold the answer up."""
_REALM: Final = 'Bearer realm="tid"'
_NO_KEY = (
    "this server wants an API key, behind the word `Bearer` in the header `Authorization` (`tid` and the Python client "
    "take it from TID_API_KEY); `tid keys create --name NAME --scope write` makes one on the server's machine"
)
_BAD_KEY = "the API key is not one of this server's: it was mistyped, has expired or was revoked"


class GuardMiddleware:
    """Pure ASGI, right behind the edge: what is refused here is not read, and no route sees it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._rates = Buckets()
        self._failures = Buckets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        caller = _caller(scope)
        parts: Parts = scope["app"].state.parts
        outer = CALLER.set(caller)
        answer = _Answer(send, parts, caller)
        try:
            await self._answer(scope, receive, answer)
        except Exception:
            if not answer.is_cut:  # or the route's own surprise at its stream's end
                raise
        finally:
            CALLER.reset(outer)
            parts.trail.note(caller, answer.status or 500)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        caller = answer.caller
        try:
            answer.headers = await self._admit(scope, answer.parts, caller)
        except ProblemError as problem:
            caller.problem = problem.code
            await problem_response(caller.request_id, problem)(scope, receive, answer)
            return
        scope["state"]["key_id"] = caller.key_id
        with about(key_id=caller.key_id) if caller.key_id else about():
            await self.app(scope, receive, answer)

    async def _admit(self, scope: Scope, parts: Parts, caller: Caller) -> Mapping[str, str]:
        """Let the caller in.

        Returns:
            Headers for the answer.

        Raises:
            ProblemError: or not.
        """
        check_head(scope)
        headers, path, settings = Headers(scope=scope), scope["path"], parts.settings
        needed, allow = _needed(path, caller.method)
        is_public = needed == "open" and "authorization" not in headers
        is_watching = path in _WATCHING
        are_keys = await self._are_keys(headers, parts, is_hasty=is_public or is_watching)
        is_open = is_loopback(settings.host) and not are_keys
        check_host(headers, path, settings.allowed_hosts, is_open=is_open)
        if caller.method not in SAFE:
            check_origin(headers)
        if is_open and _is_local(caller.peer):
            caller.scope = "admin"
        if is_public or caller.scope is not None:
            return {}
        row = await self._identify(headers, parts, caller, seconds=_PATIENCE_SECONDS if is_watching else None)
        if row is None:
            if needed == "open":
                return {}
            raise self._unknown(headers, parts, caller)
        told = self._within_rate(row, settings.rate_per_minute)
        if needed != "open":
            _authorise(row, caller, needed, allow)
        return told

    async def _are_keys(self, headers: Headers, parts: Parts, *, is_hasty: bool) -> bool:
        """What is public does not wait for a database that hangs; where a key is sent, there may just now be one."""
        if is_hasty:
            return await parts.keys.were_any(seconds=_PATIENCE_SECONDS)
        if (await parts.keys.known()).any_exist:
            return True
        return "authorization" in headers and (await parts.keys.known(fresh=RETRY_SECONDS)).any_exist

    async def _identify(
        self, headers: Headers, parts: Parts, caller: Caller, *, seconds: float | None
    ) -> ApiKey | None:
        given = headers.getlist("authorization")
        kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        row = await parts.keys.find(key.strip(), seconds=seconds) if kind.lower() == "bearer" else None
        if row is not None:
            caller.key_id, caller.scope = row.id, row.scope
        return row

    def _unknown(self, headers: Headers, parts: Parts, caller: Caller) -> ProblemError:
        allowance = self._failures.take(_neighbourhood(caller.peer), parts.settings.failed_per_minute)
        if not allowance.granted:
            detail = f"too many requests from this address without a good API key; wait {allowance.seconds} s"
            return ProblemError(429, "too_many_failures", detail, headers={"Retry-After": str(allowance.seconds)})
        if "authorization" in headers:
            challenge = f'{_REALM}, error="invalid_token"'
            return ProblemError(401, "key_invalid", _BAD_KEY, headers={"WWW-Authenticate": challenge})
        return ProblemError(401, "key_missing", _NO_KEY, headers={"WWW-Authenticate": _REALM})

    def _within_rate(self, row: ApiKey, usual: int) -> Mapping[str, str]:
        per_minute = usual if row.rate_per_minute is None else row.rate_per_minute
        if not per_minute:
            return {}
        allowance = self._rates.take(row.id, per_minute)
        if not allowance.granted:
            detail = f"the key {row.name!r} may make {per_minute} requests a minute; wait {allowance.seconds} s"
            raise ProblemError(429, "rate_limited", detail, headers=allowance.headers)
        return allowance.headers


class _Answer:
    """Adds headers, remembers the status, and ends a stream whose key was revoked."""

    def __init__(self, send: Send, parts: Parts, caller: Caller) -> None:
        self.send, self.parts, self.caller = send, parts, caller
        self.headers: Mapping[str, str] = {}
        self.status: int | None = None
        self.is_cut = False
        self._looked_at = time.monotonic()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self.headers.items():
                headers.setdefault(name, value)
        elif self.caller.key_id is not None and message.get("more_body"):
            await self._look()
        await self.send(message)

    async def _look(self) -> None:
        if time.monotonic() - self._looked_at < FRESH_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            known = await self.parts.keys.known()
        except ProblemError:
            return  # the route meets the database's absence by itself
        if self.caller.key_id not in known.usable:
            self.is_cut = True
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})
            raise OSError(f"key {self.caller.key_id} may no longer listen")


def _caller(scope: Scope) -> Caller:
    client = scope.get("client")
    return Caller(
        peer=client[0] if client else None,
        request_id=scope["state"]["request_id"],
        method=scope["method"],
        path=scope["path"],
        connection=scope,
    )


def _needed(path: str, method: str) -> tuple[Needed | None, str]:
    """What the route asks for (None = it is not declared), and the methods that this path has."""
    scopes = of_path(path) or {}
    # Of what anybody may read, anybody is told that it can only be read.
    unknown: Needed | None = "open" if "open" in scopes.values() else None
    return scopes.get("GET" if method == "HEAD" else method, unknown), ", ".join(
        [*scopes, *(["HEAD"] if "GET" in scopes else [])]
    )


def _authorise(row: ApiKey, caller: Caller, needed: KeyScope | None, allow: str) -> None:
    """What is not declared is there for administrators alone."""
    if caller.may(needed or "admin"):
        return
    if needed is None and allow:
        detail = f"{caller.method} is not possible at {caller.path}"
        raise ProblemError(405, "method_not_allowed", detail, headers={"Allow": allow})
    if needed is None:
        raise ProblemError(404, "not_found", f"nothing is at {caller.path}")
    detail = f"this needs a key with the scope `{needed}`; the key {row.name!r} has `{row.scope}`"
    challenge = f'{_REALM}, error="insufficient_scope", scope="{needed}"'
    raise ProblemError(403, "scope_missing", detail, headers={"WWW-Authenticate": challenge})


def _is_local(peer: str | None) -> bool:
    """Whether the connection comes from this machine: loopback, or a socket that is no TCP socket."""
    address = _address(peer)
    return address is None or address.is_loopback


def _neighbourhood(peer: str | None) -> str:
    """One host's addresses: of IPv6 it has a whole /64."""
    address = _address(peer)
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else str(address or peer)


def _address(peer: str | None) -> IPv4Address | IPv6Address | None:
    """An IPv4 address as such, also where a socket for both kinds shows it as one of IPv6."""
    try:
        address = ip_address(peer or "")
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
