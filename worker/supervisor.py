"""One attempt at one job: claim, plan, start the training, keep the database up to date, settle how it ended."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

from sqlalchemy.orm import Session

from store import claims, resume_states
from store.db import Database
from store.errors import LeaseLost
from store.fencing import Claim
from store.states import Outcome, State
from tid_core.events import TrainingFailure
from tid_core.plan import RunPlan
from worker import leftovers
from worker.child import Child
from worker.endings import CRASHES, explain
from worker.link import AWAY, Away, Link, OwnershipUnknown
from worker.planning import prepare
from worker.recorder import Recorder
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag
from worker.stopping import Reason, StopRequest
from worker.uploads import Storage

log = logging.getLogger("worker")

Result = TypeVar("Result")
_LISTEN_SECONDS = 0.2
_WRITE_SECONDS = 0.5


def supervise(job_id: str, settings: WorkerSettings, stop: StopFlag) -> None:
    """Run the job if it can be claimed. Call it in the thread that may be trusted to live as long as the training.

    Whatever happens to the job is written to the database; nothing is raised for it.
    """
    if stop.is_set():
        return
    database = Database(settings.database_url)
    try:
        with database.write() as session:
            claim = claims.claim(job_id, settings.worker_id, lease_seconds=settings.lease_seconds, session=session)
        if claim is None:
            log.info("job %s is not waiting for a worker", job_id)
            return
        log.info("job %s: attempt %d", job_id, claim.attempt)
        Supervisor(claim, database, settings, stop).run()
    except AWAY as error:
        log.warning("job %s: the database does not answer, left to be announced again: %s", job_id, error)
    finally:
        database.close()


class Supervisor:
    """The owner of one attempt, until it is settled or lost."""

    def __init__(self, claim: Claim, database: Database, settings: WorkerSettings, stop: StopFlag) -> None:
        self._claim, self._database, self._settings, self._stop_flag = claim, database, settings, stop
        self._link = Link(database, claim, settings.lease_seconds, patience=settings.offline_seconds)
        self._storage = Storage(settings, claim)
        self._recorder = Recorder(claim, self._storage, settings)
        self._stop = StopRequest(settings)
        self._state = State.STARTING
        self._terminated = False
        self._written_at = time.monotonic()
        self._scratch = settings.home / "work" / claim.job_id / f"attempt-{claim.attempt}"

    def run(self) -> None:
        with _on_sigterm(self._note_term):
            try:
                self._settle(self._train())
            except TrainingFailure as failure:
                self._finish_failed(failure.reason, failure.detail)
            except (LeaseLost, OwnershipUnknown) as error:
                log.warning("%s; its training is stopped and nothing more is written", error)
            except Exception as error:
                log.exception("job %s: the supervisor failed", self._claim.job_id)
                self._report_crash("worker_error", f"{type(error).__name__}: {error}")
            finally:
                self._storage.close()
                leftovers.remove(self._scratch)

    # -- the three parts of an attempt

    def _train(self) -> int | None:
        """The exit code of the training process, or None where it was stopped before it began."""
        plan = self._while_renewing(self._prepare)
        self._look_for_requests()
        if self._stop.reason is not None:
            return None
        path = self._scratch / "plan.json"
        path.write_text(plan.model_dump_json(indent=1))
        child = Child(path)
        try:
            self._watch(child)
        finally:
            code = child.close()
        return code

    def _prepare(self) -> RunPlan:
        return prepare(self._claim, self._database, self._settings, self._storage, self._scratch)

    def _watch(self, child: Child) -> None:
        while not child.exited():
            self._recorder.hear(child.listen(_LISTEN_SECONDS))
            self._synchronise()
            self._look_for_requests()
            self._stop.apply(child, finished=self._recorder.finished is not None)
        self._recorder.hear(child.drain())

    def _settle(self, code: int | None) -> None:
        """Bring everything that was heard into the database, then end the attempt."""
        while self._storage.busy:
            time.sleep(_LISTEN_SECONDS / 4)
            self._synchronise()
            self._look_for_requests()
            if self._stop.reason is not None:
                self._storage.give_up()
        self._recorder.collect()
        self._link.insist(self._recorder.write)
        self._recorder.clear()
        finished = self._recorder.finished
        if finished is not None and finished.outcome == "succeeded":
            self._finish_succeeded()
        elif finished is not None and finished.reason in CRASHES:
            self._report_crash(finished.reason, finished.detail or "")
        elif finished is not None and finished.outcome == "failed":
            self._finish_failed(finished.reason or "internal_error", finished.detail)
        elif self._stop.reason is Reason.CANCEL:
            self._end(lambda session: claims.finish(self._claim, Outcome.CANCELLED, reason="user", session=session))
        elif self._stop.reason is Reason.SHUTDOWN or finished is not None:
            self._end(lambda session: claims.hand_back(self._claim, session=session))
        else:
            ending = explain(code or 0, self._recorder.log_tail)
            self._report_crash(ending.reason, ending.detail)

    # -- how it ends

    def _finish_succeeded(self) -> None:
        lost = self._recorder.lost_checkpoint
        if lost is not None and self._stop.reason is Reason.SHUTDOWN:  # nobody waited for it
            self._end(lambda session: claims.hand_back(self._claim, detail=lost.detail, session=session))
            return
        if lost is not None:
            self._report_crash(lost.reason, lost.detail)
            return
        outdated: list[str] = []

        def succeed(session: Session) -> State:
            outdated[:] = resume_states.forget(self._claim, session=session)
            return claims.finish(self._claim, Outcome.SUCCEEDED, session=session)

        if self._end(succeed):
            self._storage.discard(outdated)

    def _finish_failed(self, reason: str, detail: str | None) -> None:
        self._end(
            lambda session: claims.finish(self._claim, Outcome.FAILED, reason=reason, detail=detail, session=session)
        )

    def _report_crash(self, reason: str, detail: str) -> None:
        self._end(lambda session: claims.crashed(self._claim, reason=reason, detail=detail, session=session))

    def _end(self, action: Callable[[Session], State]) -> bool:
        """Whether the end of the attempt is recorded."""
        try:
            state = self._link.insist(action)
        except (LeaseLost, OwnershipUnknown) as error:
            log.warning("%s; the end of its attempt is not recorded", error)
            return False
        log.info("job %s: attempt %d ended, the job is %s", self._claim.job_id, self._claim.attempt, state)
        return True

    # -- what happens again and again

    def _synchronise(self) -> None:
        """Write what was heard, at most twice a second, and renew the lease at least every heartbeat."""
        self._recorder.collect()
        now = time.monotonic()
        due = self._recorder.pending and now - self._written_at >= _WRITE_SECONDS
        if not due and now - self._written_at < self._settings.heartbeat_seconds:
            return
        with suppress(Away):
            _, self._state = self._link.write(self._recorder.write)
            self._recorder.clear()
            self._written_at = now

    def _look_for_requests(self) -> None:
        self._stop.see(self._state, shutting_down=self._terminated or self._stop_flag.is_set())

    def _note_term(self) -> None:
        self._terminated = True

    def _while_renewing(self, work: Callable[[], Result]) -> Result:
        """Do slow work in the storage thread while this one keeps the lease."""
        while True:
            future: Future[Result] = self._storage.submit(work)
            while not wait([future], _LISTEN_SECONDS).done:
                self._synchronise()
            try:
                return future.result()
            except AWAY:
                self._link.insist(lambda _session: None)


@contextmanager
def _on_sigterm(note: Callable[[], None]) -> Iterator[None]:
    """Service managers may send SIGTERM to every process at once: this one, too, then stops in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: note())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
