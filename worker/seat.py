"""A further worker of an attempt that another one owns: the same preparation, the ranks of this machine, no records.

All that is told of it goes into its seat: why it was left, which the owner makes the reason of the attempt.
"""

import logging
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

from sqlalchemy.orm import Session

from store import seats, workers
from store.db import Database
from store.errors import LeaseLost
from store.fencing import Claim
from store.models import Draining
from store.monitoring.log_lines import about
from store.reasons import WORKER_ERROR
from store.seats import Meeting, Seated
from store.states import State
from tid_core.events import Finished, TrainingFailure
from tid_core.plan import NodePlan, RunPlan
from worker import leftovers
from worker.addresses import is_loopback, own_address
from worker.child import Child, Heard
from worker.endings import RANK_LOST, Ending, explain
from worker.link import AWAY, Away, OwnershipUnknown, SeatLink
from worker.planning import prepare
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag, on_sigterm
from worker.stopping import HANDED_BACK, StopRequest
from worker.uploads import FULL, Storage, StorageFailed

log = logging.getLogger("worker")

_LISTEN_SECONDS = 0.2
_LOOK_SECONDS = 0.5
_FULL_SECONDS = 2.0
_TAIL_CHARACTERS = 4000


def attend(settings: WorkerSettings, stop: StopFlag) -> bool | None:
    """Take a seat that waits for this worker, if there is one, and keep it until the attempt is over.

    Call it where `supervise` may be called.

    Returns:
        Whether to look for more work, or None where there was no seat.
    """
    if stop.is_set():
        return False
    database = Database(settings.database_url)
    try:
        seated = _take(database, settings)
        if seated is None:
            return None
        with about(job_id=seated.job_id, attempt=seated.attempt):
            log.info("job %s: node %d of attempt %d", seated.job_id, seated.node, seated.attempt)
            sitter = Sitter(seated, database, settings, stop)
            sitter.run()
        return not sitter.terminated
    except AWAY as error:
        log.warning("the database does not answer; what waits is announced again: %s", error)
        return False
    finally:
        database.close()


def _take(database: Database, settings: WorkerSettings) -> Seated | None:
    queues = settings.queues.split(",")
    with database.read() as session:
        if not seats.waiting(session=session):
            return None
    with database.write() as session:
        return seats.take_next(settings.worker_id, queues, lease_seconds=settings.lease_seconds, session=session)


class Sitter:
    """Keeps one seat, until the attempt is over or the seat is void."""

    def __init__(self, seated: Seated, database: Database, settings: WorkerSettings, stop: StopFlag) -> None:
        self._seated, self._database, self._settings, self._stop_flag = seated, database, settings, stop
        self._link = SeatLink(database, seated, settings.lease_seconds, patience=settings.offline_seconds)
        self._storage = Storage(settings, Claim(seated.job_id, seated.attempt, seated.token, seated.worker_id))
        self._stop = StopRequest(settings)
        self._draining: Draining | None = None
        self._meeting = Meeting(None, None)
        self._finished: Finished | None = None
        self._log_tail = ""
        self._looked_at = 0.0
        self.terminated = False  # whether this process was told to end meanwhile
        name = f"attempt-{seated.attempt}-node-{seated.node}"
        self._scratch = settings.home / "work" / seated.job_id / name

    def run(self) -> None:
        with on_sigterm(self._note_term):
            try:
                self._leave(self._train())
            except TrainingFailure as failure:
                self._leave(Ending(failure.reason, failure.detail))
            except StorageFailed as failed:
                self._leave(failed.ending)
            except (LeaseLost, OwnershipUnknown) as error:
                log.info("job %s: the attempt is over for node %d: %s", self._seated.job_id, self._seated.node, error)
            except Exception as error:
                log.exception("job %s: the worker of node %d failed", self._seated.job_id, self._seated.node)
                self._leave(Ending(WORKER_ERROR, f"{type(error).__name__}: {error}"))
            finally:
                self._storage.close()
                leftovers.remove(self._scratch)

    def _train(self) -> Ending | None:
        """Why the seat is left before the attempt is over; None: all nodes ended in agreement."""
        plan = self._prepare()
        while self._meeting.host is None and self._stop.reason is None:
            time.sleep(_LISTEN_SECONDS)
            self._synchronise()
        if plan is None or self._stop.reason is not None:
            return self._stopped()
        if (why_not := self._why_unreachable()) is not None:
            return why_not
        child = Child(self._write_plan(plan))
        try:
            self._watch(child)
        finally:
            code = child.close()
            self._stop.ended()
        return self._judge(code)

    def _prepare(self) -> RunPlan | None:
        """In the storage thread, while this one keeps the seat; None where it is to be left."""
        while self._stop.reason is None:
            task: Future[RunPlan] = self._storage.submit(self._plan)
            while not wait([task], _LISTEN_SECONDS).done:
                self._synchronise()
                if self._stop.reason is not None:
                    self._storage.give_up()
            try:
                return task.result()
            except AWAY:
                self._link.insist(lambda _session: None)
            except Exception as error:
                is_full = isinstance(error, OSError) and error.errno in FULL
                if not is_full and not self._is_told_to_stop():
                    raise
                log.warning("job %s: node %d cannot begin yet: %s", self._seated.job_id, self._seated.node, error)
                time.sleep(_FULL_SECONDS)
                self._synchronise()
        return None

    def _is_told_to_stop(self) -> bool:
        return self._stop.reason is not None

    def _plan(self) -> RunPlan:
        return prepare(self._seated, self._database, self._settings, self._storage, self._scratch, resumes=False)

    def _why_unreachable(self) -> Ending | None:
        """An owner on another host that gives an address of loopback would be looked for on this one."""
        if not is_loopback(self._meeting.host or ""):
            return None
        names = self._link.insist(lambda session: seats.hostnames(self._seated, session=session))
        if len(set(names)) < 2:
            return None
        told = f"node 0, on {names[0]}, says that it is reached at {self._meeting.host}, which is {names[1]} itself"
        return Ending(RANK_LOST, f"{told}: set TID_NODE_ADDRESS of its worker")

    def _write_plan(self, plan: RunPlan) -> Path:
        host, port = self._meeting
        assert host is not None  # noqa: S101
        assert port is not None  # noqa: S101
        address = own_address(self._settings, towards=host)
        node = NodePlan(number=self._seated.node, count=self._seated.nodes, host=host, port=port, address=address)
        path = self._scratch / "plan.json"
        path.write_text(plan.model_copy(update={"node": node}).model_dump_json(indent=1))
        return path

    def _watch(self, child: Child) -> None:
        while not child.exited():
            self._hear(child.listen(_LISTEN_SECONDS))
            self._synchronise()
            self._stop.apply(child, finished=self._finished is not None)
        self._hear(child.drain())

    def _hear(self, heard: Heard) -> None:
        for event in heard.events:
            self._finished = event if isinstance(event, Finished) else self._finished
        self._log_tail = (self._log_tail + heard.log)[-_TAIL_CHARACTERS:]

    def _judge(self, code: int) -> Ending | None:
        finished = self._finished
        if finished is not None and finished.outcome != "failed":
            return self._stopped() if self._stop.reason is not None else None
        if self._stop.reason is not None:
            return self._stopped()
        ending = explain(code, self._log_tail)
        if finished is not None:
            ending = Ending(finished.reason or "internal_error", finished.detail or "")
        if ending.reason != RANK_LOST:
            log.warning(
                "job %s: node %d failed; its last words:\n%s", self._seated.job_id, self._seated.node, self._log_tail
            )
        return ending

    def _stopped(self) -> Ending | None:
        if self._stop.reason is None:
            return None
        return Ending(HANDED_BACK[self._stop.reason], self._stop.describe(finished=self._finished is not None))

    def _leave(self, ending: Ending | None) -> None:
        reason, detail = (ending.reason, ending.detail) if ending is not None else (None, None)
        with suppress(LeaseLost, OwnershipUnknown):
            self._link.insist(lambda session: seats.leave(self._seated, reason=reason, detail=detail, session=session))
        told = f"left ({reason}: {detail})" if reason else "done"
        log.info(
            "job %s: node %d of attempt %d: %s", self._seated.job_id, self._seated.node, self._seated.attempt, told
        )

    # -- what happens again and again

    def _synchronise(self) -> None:
        """Renew the lease at least every heartbeat, and see where the owner waits and whether to stop."""
        self._stop.see(
            State.RUNNING, shutting_down=self.terminated or self._stop_flag.is_set(), draining=self._draining
        )
        every = self._settings.heartbeat_seconds if self._meeting.host else _LOOK_SECONDS
        if time.monotonic() - self._looked_at < every:
            return
        with suppress(Away):
            self._draining, self._meeting = self._link.write(self._ask)
            self._looked_at = time.monotonic()

    def _ask(self, session: Session) -> Draining | None:
        return workers.draining(self._seated.worker_id, session=session)

    def _note_term(self) -> None:
        self.terminated = True
