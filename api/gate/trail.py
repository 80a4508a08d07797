"""The audit trail: what a request writes is noted in the transaction that writes it, what is refused a moment later."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import Any, Final, NamedTuple

from sqlalchemy import update

from api.gate.access import SAFE
from api.gate.callers import Caller
from api.gate.keyring import KeyRing
from store import audit, keys
from store.db import Database
from store.models import AuditEntry, Json
from store.monitoring.log_lines import without_secrets
from store.text import storable

log = logging.getLogger("api.audit")

_EVERY_SECONDS: Final = 1.0
_REFUSALS_EVERY_SECONDS: Final = 60.0
_PRUNE_EVERY_SECONDS: Final = 3600.0
_MAX_KINDS: Final = 100
"""Different refusals that are told apart within a minute; what is beyond them is only counted."""
_MAX_WAITING: Final = 10_000
_REFUSALS: Final = frozenset({401, 403, 429})


class _Kind(NamedTuple):
    """What refusals have in common that become one entry."""

    key_id: str | None
    peer: str | None
    method: str
    path: str
    status: int
    code: str | None


_REST = _Kind(None, None, "*", "*", 429, "and_others")


@dataclass
class Trail:
    """Collects in memory; a thread writes it down."""

    database: Database
    ring: KeyRing
    days: float
    clock: Callable[[], float] = time.monotonic
    _refused: dict[_Kind, list[Any]] = field(default_factory=dict)
    _amended: list[tuple[str, Json]] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def note(self, caller: Caller, status: int) -> None:
        """A request has been answered."""
        if caller.entry_id is not None:
            if caller.entry_status != status:
                entry = {**entry_of(caller, status), "code": caller.problem}
                with self._lock:
                    if len(self._amended) < _MAX_WAITING:
                        self._amended.append((caller.entry_id, entry))
        elif status in _REFUSALS or (status >= audit.REFUSED and caller.method not in SAFE):
            self._refuse(caller, status)

    def flush(self, *, refusals: bool = True) -> None:
        """Write down what has come together. What cannot be written is kept."""
        with self._lock:
            amended, self._amended = self._amended, []
            refused, self._refused = (self._refused, {}) if refusals else ({}, self._refused)
        used, self.ring.used = self.ring.used, set()
        if not (amended or refused or used):
            return
        try:
            self._write(amended, refused, used)
        except Exception:
            with self._lock:
                self._amended = [*amended, *self._amended][:_MAX_WAITING]
                for kind, (request_id, count) in refused.items():
                    self._count(kind, request_id, count)
            self.ring.used |= used
            raise

    def prune(self) -> None:
        with self.database.write() as session:
            audit.prune(days=self.days, session=session)

    def _refuse(self, caller: Caller, status: int) -> None:
        entry = entry_of(caller, status)
        kind = _Kind(caller.key_id, entry["peer"], entry["method"], entry["path"], status, caller.problem)
        with self._lock:
            self._count(kind, caller.request_id, 1)

    def _count(self, kind: _Kind, request_id: str, count: int) -> None:
        if kind not in self._refused and len(self._refused) >= _MAX_KINDS:
            kind = _REST
        self._refused.setdefault(kind, [request_id, 0])[1] += count

    def _write(self, amended: list[tuple[str, Json]], refused: dict[_Kind, list[Any]], used: set[str]) -> None:
        entries = [{**kind._asdict(), "request_id": first, "count": count} for kind, (first, count) in refused.items()]
        with self.database.write() as session:
            for entry_id, entry in amended:
                changed = update(AuditEntry).where(AuditEntry.id == entry_id)
                changed = changed.values(status=entry["status"], code=entry["code"]).returning(AuditEntry.id)
                if session.scalar(changed, execution_options={"synchronize_session": False}) is None:
                    entries.append(entry)  # what it was written with was rolled back
            audit.add_all([{"target": None, "count": 1, **entry} for entry in entries], session=session)
            keys.note_used(used, session=session)


def entry_of(caller: Caller, status: int) -> Json:
    """The entry of a request, without what only its transaction knows."""
    return {
        "key_id": caller.key_id,
        "peer": caller.peer and caller.peer[:64],
        "method": caller.method[:16],
        "path": without_secrets(storable(caller.path))[:200],
        "status": status,
        "request_id": caller.request_id,
    }


class TrailWriter:
    """The thread that writes it down, until it is stopped."""

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self._stopping = Event()
        self._refusals_at = self._pruned_at = trail.clock()
        self._thread = Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what has come together by then is written."""
        self._stopping.set()
        self._thread.join(timeout=5)
        self._try(self.trail.flush)

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_SECONDS):
            now = self.trail.clock()
            is_due = now - self._refusals_at >= _REFUSALS_EVERY_SECONDS
            self._refusals_at = now if is_due else self._refusals_at
            self._try(lambda is_due=is_due: self.trail.flush(refusals=is_due))  # type: ignore[misc]
            if now - self._pruned_at >= _PRUNE_EVERY_SECONDS:
                self._pruned_at = now
                self._try(self.trail.prune)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            log.warning("the audit log cannot be written, and is tried again: %s", error)
