"""One attempt at one job: claim, plan, start the training, keep the database up to date, settle how it ended."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from store import claims, reasons, resume_states, seats, workers
from store.artifacts import open_artifacts
from store.db import Database
from store.errors import LeaseLost
from store.fencing import Claim
from store.models import Draining
from store.monitoring.log_lines import about
from store.reasons import NODES_MISSING, USER, WORKER_ERROR
from store.states import Outcome, State
from tid_core.events import Finished, TrainingFailure
from worker import leftovers
from worker.child import Child, Heard
from worker.dataset_copies import Abandoned
from worker.endings import CRASHES, RANK_LOST, explain
from worker.link import AWAY, Away, Link, OwnershipUnknown
from worker.nodes import LOOK_SECONDS, NodesMissing, OtherNodes, Others, Trouble
from worker.planning import prepare
from worker.recorder import Recorder
from worker.seat import attend
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag, on_sigterm
from worker.stopping import HANDED_BACK, Reason, StopRequest
from worker.trace import AttemptTrace
from worker.uploads import FULL, Storage, StorageFailed

log = logging.getLogger("worker")

Result = TypeVar("Result")
_LISTEN_SECONDS = 0.2
_WRITE_SECONDS = 0.5
_FULL_SECONDS = 2.0


def work(settings: WorkerSettings, stop: StopFlag) -> None:
    """Run the jobs that wait for this worker, the best of its queues first, until none is left."""
    while _can_keep(settings) and _work_once(settings, stop):
        pass


def _work_once(settings: WorkerSettings, stop: StopFlag) -> bool:
    """A seat beside the owner of a job goes before jobs: others wait for it."""
    goes_on = attend(settings, stop)
    return supervise(None, settings, stop) if goes_on is None else goes_on


def _can_keep(settings: WorkerSettings) -> bool:
    """Whether files can be stored: an attempt whose results nobody would keep is not begun, and the job waits."""
    try:
        open_artifacts(settings).check()
    except OSError as error:
        log.warning("no job is taken while the artifact store takes no files: %s", error)
        return False
    return True


def supervise(job_id: str | None, settings: WorkerSettings, stop: StopFlag) -> bool:
    """Run this job, or None: the first that waits, if one can be claimed.

    Call it in the thread that may be trusted to live as long as the training. Whatever happens to the job is written
    to the database; nothing is raised for it.

    Returns:
        Whether to look for another one: a job was run, and nobody wants this worker to stop.
    """
    if stop.is_set():
        return False
    database = Database(settings.database_url)
    asked_at = datetime.now(UTC)
    try:
        claim = _claim(job_id, database, settings)
        if claim is None:
            log.info("%s", f"job {job_id} is not waiting for a worker" if job_id else "no job waits for this worker")
            return False
        with (
            about(job_id=claim.job_id, attempt=claim.attempt),
            AttemptTrace.of(claim, database, asked_at) as trace,
        ):
            log.info("job %s: attempt %d", claim.job_id, claim.attempt)
            supervisor = Supervisor(claim, database, settings, stop, trace)
            supervisor.run()
        return not supervisor.terminated
    except AWAY as error:
        log.warning("the database does not answer; what waits is announced again: %s", error)
        return False
    finally:
        database.close()


def _claim(job_id: str | None, database: Database, settings: WorkerSettings) -> Claim | None:
    worker_id, lease_seconds = settings.worker_id, settings.lease_seconds
    with database.write() as session:
        if job_id is not None:
            return claims.claim(job_id, worker_id, lease_seconds=lease_seconds, session=session)
        queues = settings.queues.split(",")
        return claims.claim_next(worker_id, queues, lease_seconds=lease_seconds, session=session)


class Supervisor:
    """The owner of one attempt, until it is settled or lost."""

    def __init__(
        self,
        claim: Claim,
        database: Database,
        settings: WorkerSettings,
        stop: StopFlag,
        trace: AttemptTrace,
    ) -> None:
        self._trace = trace
        self._claim, self._database, self._settings, self._stop_flag = claim, database, settings, stop
        self._link = Link(database, claim, settings.lease_seconds, patience=settings.offline_seconds)
        self._storage = Storage(settings, claim)
        self._recorder = Recorder(claim, self._storage, settings)
        self._stop = StopRequest(settings)
        self._state = State.STARTING
        self._draining: Draining | None = None
        self.terminated = False  # whether this process was told to end while the job ran
        self._others = Others()
        self._written_at = time.monotonic()
        self._scratch = settings.home / "work" / claim.job_id / f"attempt-{claim.attempt}"

    def run(self) -> None:
        with on_sigterm(self._note_term):
            try:
                self._settle(self._train())
            except TrainingFailure as failure:
                self._finish_failed(failure.reason, failure.detail)
            except NodesMissing as missing:
                self._hand_back(NODES_MISSING, str(missing))
            except StorageFailed as failed:
                self._report_crash(failed.ending.reason, failed.ending.detail)
            except (LeaseLost, OwnershipUnknown) as error:
                log.warning("%s; its training is stopped and nothing more is written", error)
            except Exception as error:
                log.exception("job %s: the supervisor failed", self._claim.job_id)
                self._report_crash(WORKER_ERROR, f"{type(error).__name__}: {error}")
            finally:
                self._storage.close()
                self._others.close()
                leftovers.remove(self._scratch)

    # -- the three parts of an attempt

    def _train(self) -> int | None:
        """The exit code of the training process, or None where it was stopped before it began."""
        with self._trace.part("plan"):
            path = self._while_renewing(self._prepare)
        self._look_for_requests()
        if path is None or self._stop.reason is not None or not self._all_there():
            return None
        child = Child(path, inherited=self._others.descriptors)
        self._others.close()
        self._trace.began()
        try:
            self._watch(child)
        finally:
            code = child.close()
            self._stop.ended()
        return code

    def _prepare(self) -> Path:
        plan = prepare(self._claim, self._database, self._settings, self._storage, self._scratch)
        if (nodes := plan.spec.resources.nodes) > 1:
            self._others.close()  # of a try before this one, which found the disk full
            self._others = others = OtherNodes(self._claim, self._settings, nodes)
            plan = plan.model_copy(update={"node": others.plan()})
        path = self._scratch / "plan.json"
        path.write_text(plan.model_dump_json(indent=1))
        return path

    def _all_there(self) -> bool:
        """Whether every seat was taken before somebody asked this worker to stop.

        Raises:
            NodesMissing: not in time.
        """
        while self._others.missing and self._others.trouble is None and self._stop.reason is None:
            self._others.check_patience()
            time.sleep(LOOK_SECONDS / 2)
            self._synchronise()
            self._look_for_requests()
        return self._others.trouble is None and self._stop.reason is None

    def _watch(self, child: Child) -> None:
        while not child.exited():
            heard = child.listen(_LISTEN_SECONDS)
            self._trace.hear(heard.events)
            self._recorder.hear(heard)
            self._synchronise()
            self._look_for_requests()
            self._stop.apply(child, finished=self._recorder.finished is not None)
            if self._others.is_over:
                child.kill()
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
        trouble = self._why_alone(finished)
        if finished is not None and finished.outcome == "succeeded":
            self._finish_succeeded()
        elif trouble is not None:
            self._end_for(trouble)
        elif finished is not None and finished.reason in CRASHES:
            self._report_crash(finished.reason, finished.detail or "")
        elif finished is not None and finished.outcome == "failed":
            self._finish_failed(finished.reason or "internal_error", finished.detail)
        elif self._stop.reason is not None or finished is not None:
            detail = self._stop.describe(finished=finished is not None)
            if self._stop.reason is None and isinstance(self._others, OtherNodes):
                detail = "the worker of another node was told to stop; the training saved its state and ended"
            self._let_go(self._stop.reason or Reason.SHUTDOWN, detail)
        else:
            ending = explain(code or 0, self._recorder.log_tail)
            self._report_crash(ending.reason, ending.detail)

    def _why_alone(self, finished: Finished | None) -> Trouble | None:
        """What became of another node, where that ended the attempt: what this one saw of it says less."""
        if self._stop.reason is not None or (finished is not None and finished.reason != RANK_LOST):
            return None
        until = time.monotonic() + self._others.word_seconds
        while finished is not None and not self._others.cause_is_known and time.monotonic() < until:
            self._synchronise()
            time.sleep(LOOK_SECONDS / 2)
        return self._others.trouble

    # -- how it ends

    def _end_for(self, trouble: Trouble) -> None:
        if trouble.reason in seats.LEFT:
            self._hand_back(trouble.reason, trouble.detail)
        elif trouble.reason in reasons.TRIED_AGAIN:
            self._report_crash(trouble.reason, trouble.detail)
        else:
            self._finish_failed(trouble.reason, trouble.detail)

    def _hand_back(self, reason: str, detail: str) -> None:
        self._end(lambda session: claims.hand_back(self._claim, reason=reason, detail=detail, session=session))

    def _let_go(self, reason: Reason, detail: str) -> None:
        def cancelled(session: Session) -> State:
            return claims.finish(self._claim, Outcome.CANCELLED, reason=USER, detail=detail, session=session)

        def handed_back(session: Session) -> State:
            return claims.hand_back(self._claim, reason=HANDED_BACK[reason], detail=detail, session=session)

        self._end(cancelled if reason is Reason.CANCEL else handed_back)

    def _finish_succeeded(self) -> None:
        lost = self._recorder.lost_checkpoint
        if lost is not None and self._stop.reason is not None:  # nobody waited for it to be stored
            self._let_go(self._stop.reason, lost.detail)
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
        due = due or now - self._written_at >= self._others.look_seconds
        if not due and now - self._written_at < self._settings.heartbeat_seconds:
            return
        with suppress(Away):
            self._draining, self._state = self._link.write(self._write)
            self._recorder.clear()
            self._written_at = now

    def _write(self, session: Session) -> Draining | None:
        """What was heard goes out; whether this worker is to drain comes back."""
        self._recorder.write(session)
        self._others.look(session)
        return workers.draining(self._claim.worker_id, session=session)

    def _look_for_requests(self) -> None:
        shutting_down = self.terminated or self._stop_flag.is_set()
        self._stop.see(self._state, shutting_down=shutting_down, draining=self._draining)

    def _note_term(self) -> None:
        self.terminated = True

    def _while_renewing(self, work: Callable[[], Result]) -> Result | None:
        """Do slow work in the storage thread while this one keeps the lease, again while the disk is full.

        Returns:
            What came of it, or None where the attempt is to stop.
        """
        told = False
        while self._stop.reason is None:
            future: Future[Result] = self._storage.submit(work)
            while not wait([future], _LISTEN_SECONDS).done:
                self._hear_storage()
                self._synchronise()
                self._look_for_requests()
                if self._stop.reason is not None:
                    self._storage.give_up()
            self._hear_storage()
            try:
                return future.result()
            except (Abandoned, StorageFailed):
                if self._stop.reason is None:
                    raise
            except AWAY:
                self._link.insist(lambda _session: None)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                if not told:
                    log.warning("job %s: waiting for room on the disk: %s", self._claim.job_id, error)
                told = True
                time.sleep(_FULL_SECONDS)
                self._synchronise()
            self._look_for_requests()
        return None

    def _hear_storage(self) -> None:
        for line in self._storage.lines():
            self._recorder.hear(Heard(log=f"[worker] {line}\n"))
