"""Who makes the request at hand, for whatever is done on its behalf."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from store.keys import SCOPES
from store.models import KeyScope


@dataclass
class Caller:
    """One request: where it comes from, with which key, and what it has written so far."""

    peer: str | None
    """Address at the other end of the connection; what a proxy says of others is not believed."""
    request_id: str
    method: str
    path: str
    connection: Any
    """The ASGI scope, which names the route once it is found."""
    key_id: str | None = None
    scope: KeyScope | None = None
    """None = nobody in particular. Without keys everybody is `admin`."""
    problem: str | None = None
    """Code of the answer, if it is a problem."""
    entry_id: str | None = None
    """The row of the audit log that was written together with what the request did."""
    entry_status: int | None = None

    def may(self, needed: KeyScope) -> bool:
        return self.scope is not None and SCOPES.index(self.scope) >= SCOPES.index(needed)

    @property
    def usual_status(self) -> int:
        """What the route answers when all goes well."""
        return getattr(self.connection.get("route"), "status_code", None) or 200


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""None outside of requests: the reaper, the indexer."""
