"""The Idempotency-Key header: one request with a key at a time, and the same answer to all (decision 014)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Any

from fastapi import Depends, Header

from api.gate.callers import CALLER
from store.errors import IdempotencyInFlight

REPLAYED = "Idempotency-Replayed"
ANSWER: dict[str, Any] = {
    "description": "Made by this request or, with `Idempotency-Replayed: true`, by an earlier one with the same "
    "Idempotency-Key; its state is the present one.",
    "headers": {
        "Location": {"description": "Where it is.", "schema": {"type": "string"}},
        REPLAYED: {"description": "Only on a repeated answer.", "schema": {"type": "string", "enum": ["true"]}},
    },
}
"""What OpenAPI says of 201."""


async def _key(
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r"^[\x21-\x7e]{1,255}$",
            description="The same key and body again give the same answer, the same key with another body 422 "
            "`idempotency_conflict`; while the first request is at work, 409 `idempotency_in_flight` with Retry-After. "
            "A request that was refused leaves its key free.",
        ),
    ] = None,
) -> str | None:
    """The key as it is stored: what two API keys send is different, also where it reads the same."""
    caller = CALLER.get()
    if idempotency_key is None or caller is None or caller.key_id is None:
        return idempotency_key
    return f"{caller.key_id}:{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


IdempotencyKey = Annotated[str | None, Depends(_key)]


@dataclass(frozen=True)
class InFlight:
    """Keys that this process has a request with, which is not done. Those of other processes: `store.idempotency`."""

    _keys: set[tuple[str, str]] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def only(self, kind: str, key: str | None) -> Iterator[None]:
        """Be the only one with this key; without one, anybody may.

        Raises:
            IdempotencyInFlight: another request has it.
        """
        if key is None:
            yield
            return
        with self._lock:
            if (kind, key) in self._keys:
                raise IdempotencyInFlight(kind)
            self._keys.add((kind, key))
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard((kind, key))
