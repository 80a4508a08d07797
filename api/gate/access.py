"""What each route asks for, and which requests a browser was tricked into.

Every route is in `SCOPES`; one that is not is there for administrators alone, and fails a test.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from api.problems import ProblemError
from store.models import KeyScope

Needed = KeyScope | Literal["open"]

SCOPES: Final[Mapping[str, Mapping[str, Needed]]] = {
    "/healthz": {"GET": "open"},
    "/readyz": {"GET": "open"},  # its details are for readers
    "/docs": {"GET": "open"},
    "/docs/assets/{name}": {"GET": "open"},
    "/openapi.json": {"GET": "open"},
    "/metrics": {"GET": "read"},
    "/detectors": {"GET": "read"},
    "/methods": {"GET": "read"},
    "/recipes": {"GET": "read"},
    "/schemas/job": {"GET": "read"},
    "/jobs": {"GET": "read", "POST": "write"},
    "/jobs/{job_id}": {"GET": "read", "PATCH": "write", "DELETE": "write"},
    "/jobs/{job_id}/cancel": {"POST": "write"},
    "/jobs/{job_id}/pause": {"POST": "write"},
    "/jobs/{job_id}/resume": {"POST": "write"},
    "/jobs/{job_id}/retry": {"POST": "write"},
    "/jobs/{job_id}/attempts": {"GET": "read"},
    "/jobs/{job_id}/logs": {"GET": "read"},
    "/jobs/{job_id}/report": {"GET": "read"},
    "/jobs/{job_id}/metrics": {"GET": "read"},
    "/jobs/{job_id}/events": {"GET": "read"},
    "/jobs/{job_id}/checkpoints": {"GET": "read"},
    "/jobs/{job_id}/checkpoints/{name}": {"GET": "read"},
    "/jobs/{job_id}/maps": {"GET": "read"},
    "/jobs/{job_id}/maps/{name}": {"GET": "read"},
    "/jobs/{job_id}/artifacts": {"GET": "read"},
    "/jobs/{job_id}/artifacts/{name}": {"GET": "read"},
    "/sweeps": {"GET": "read", "POST": "write"},
    "/sweeps/{sweep_id}": {"GET": "read"},
    "/sweeps/{sweep_id}/cancel": {"POST": "write"},
    "/sweeps/{sweep_id}/report": {"GET": "read"},
    "/datasets": {"GET": "read", "POST": "write"},
    "/datasets/{name_or_id}": {"GET": "read", "DELETE": "write"},
    "/datasets/{name_or_id}/archive": {"PUT": "write"},
    "/datasets/{name_or_id}/sample": {"GET": "read"},
    "/workers": {"GET": "read"},
    "/workers/{worker_id:path}/drain": {"POST": "admin"},
    "/workers/{worker_id:path}/undrain": {"POST": "admin"},
    "/keys": {"GET": "admin", "POST": "admin"},
    "/keys/{key_id}": {"DELETE": "admin"},
    "/audit": {"GET": "admin"},
}
MAX_HEAD_BYTES: Final = 32 << 10
"""Largest request line and headers together."""
SAFE: Final = frozenset({"GET", "HEAD"})
_PROBES: Final = ("/healthz", "/readyz")
"""Asked by machines that know no name of this one."""


def _pattern(path: str) -> re.Pattern[str]:
    """As the router has it: a part of a path, or with `:path` any number of them."""
    anywhere = re.sub(r"\\{\w+:path\\}", ".*", re.escape(path))
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", anywhere))


_PATTERNS: Final = [(_pattern(path), scopes) for path, scopes in sorted(SCOPES.items(), key=lambda one: "{" in one[0])]


def of_path(path: str) -> Mapping[str, Needed] | None:
    """What each method of a path asks for (HEAD is GET); None where the path is not known here."""
    if path in SCOPES:
        return SCOPES[path]
    return next((scopes for pattern, scopes in _PATTERNS if pattern.fullmatch(path)), None)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_head(scope: Scope) -> None:
    """Refuse a request line and headers that no client of this API has; the server bounds only what comes in pieces.

    Raises:
        ProblemError: 431.
    """
    size = len(scope["path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEAD_BYTES:
        raise ProblemError(431, "head_too_large", f"the address and the headers are larger than {MAX_HEAD_BYTES} bytes")


def check_host(headers: Headers, path: str, allowed: tuple[str, ...], *, is_open: bool) -> None:
    """Refuse a name that this server does not go by.

    A page can let its own name lead to 127.0.0.1 once it is loaded (DNS rebinding); a browser then takes a server on
    loopback for that page's own. It cannot change the Host header, which still holds the name.

    Raises:
        ProblemError: 421.
    """
    name = _host_name(headers.get("host", ""))
    if path in _PROBES or is_loopback(name) or name in allowed or not (is_open or allowed):
        return
    detail = f"this server does not go by the name {name[:100]!r}; if it should, put the name into TID_ALLOWED_HOSTS"
    raise ProblemError(421, "host_not_allowed", detail)


def check_origin(headers: Headers) -> None:
    """Refuse a write that a page of another site makes a browser send.

    Raises:
        ProblemError: 403.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    same = origin is None or _netloc(origin) == (headers.get("host", "").lower() or "nobody")
    if same and site in ("none", "same-origin"):
        return
    detail = "a page of another site sent this; the API takes writes from its own pages and from programs alone"
    raise ProblemError(403, "cross_site", detail)


def _host_name(header: str) -> str:
    """Without the port and the brackets of an IPv6 address."""
    return header.lower().rpartition("]")[0].strip("[") if header.startswith("[") else header.lower().partition(":")[0]


def _netloc(origin: str) -> str:
    try:
        parts = urlsplit(origin.lower())
        default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
        return parts.netloc.removesuffix(default)
    except ValueError:
        return ""
