"""What every write of a request carries, whichever route makes it: whose it is, its quota, its audit entry."""

from typing import Any, Final

from sqlalchemy import inspect
from sqlalchemy.orm import ORMExecuteState, Session

from api.gate.callers import CALLER, Caller
from api.gate.trail import entry_of
from store import keys
from store.db import Database
from store.models import ApiKey, AuditEntry, Dataset, Job, Sweep
from store.settings import Settings
from store.states import ENDED

_MADE: Final = (Sweep, Dataset, Job, ApiKey)
"""Tables whose new rows are the target of a request; a sweep rather than its jobs."""


class Stamps:
    """Listens to the sessions in which the API writes. Nothing happens in those of no request."""

    def __init__(self, settings: Settings) -> None:
        self.quota = keys.Quota(settings.max_jobs, settings.max_gpus)

    def install(self, database: Database) -> None:
        database.listen("before_flush", self._before_flush)
        database.listen("after_flush", self._after_flush)
        database.listen("do_orm_execute", self._on_execute)
        database.listen("before_commit", self._before_commit)
        database.listen("after_rollback", self._after_rollback)

    def _before_flush(self, session: Session, _context: Any, _instances: Any) -> None:
        if (caller := CALLER.get()) is None:
            return
        for row in session.new:
            if isinstance(row, Sweep | Dataset | Job) and row.created_by is None:
                row.created_by = caller.key_id

    def _after_flush(self, session: Session, _context: Any) -> None:
        """Rows are as they were flushed, and what is new in them can still be told."""
        session.info["wrote"] = True
        made = [row for row in session.new if isinstance(row, _MADE)]
        session.info.setdefault("made", []).extend(made)
        added = {row.created_by for row in made if isinstance(row, Job)}
        woken = {row.created_by for row in session.dirty if isinstance(row, Job) and _is_woken(row)}
        session.info.setdefault("owners", set()).update((added | woken) - {None})

    def _on_execute(self, state: ORMExecuteState) -> None:
        if not state.is_select:
            state.session.info["wrote"] = True

    def _before_commit(self, session: Session) -> None:
        caller = CALLER.get()
        if caller is None or session.in_nested_transaction():
            return
        session.flush()
        info = session.info
        for key_id in sorted(info.pop("owners", ())):
            keys.check_quota(key_id, self.quota, session=session)
        if info.pop("wrote", False) and caller.entry_id is None:
            self._enter(caller, info.pop("made", []), session)

    def _enter(self, caller: Caller, made: list[Any], session: Session) -> None:
        row = min(made, key=lambda row: _MADE.index(type(row)), default=None)
        entry = AuditEntry(**entry_of(caller, caller.usual_status))
        if row is not None:
            entry.target = f"{str(row.__tablename__).removeprefix('api_')}/{row.id}"
        session.add(entry)
        session.flush()
        caller.entry_id, caller.entry_status = entry.id, entry.status

    def _after_rollback(self, _session: Session) -> None:
        """The entry went as well; where the request tries again, it is written again."""
        if (caller := CALLER.get()) is not None:
            caller.entry_id = None


def _is_woken(job: Job) -> bool:
    """Whether a job that had ended goes on."""
    before = next(iter(inspect(job).attrs.state.history.deleted), None)
    return before in ENDED and job.state not in ENDED
