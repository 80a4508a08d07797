"""Workers, users and the reaper in any order: a job has one owner at most, and what the others write is not there."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from store import claims, control, deletion, jobs, logs, metrics, resume_states
from store.db import Database
from store.errors import LeaseLost, NotFound
from store.fencing import Claim
from store.models import Attempt, Dataset, Job, Metric, MetricLatest
from store.reaper import expire_leases
from store.states import ENDED, OWNED, IllegalTransition, Outcome, State
from tid_core.spec import JobSpec

FUZZ = settings.get_profile("fuzz")
SPEC = {"student": {"detector": "fcos_conv5_tiny"}, "dataset": "digits"}
COUNTED = (Outcome.LOST, Outcome.CRASHED)
SERIES = st.sampled_from(["val/AP", "loss/total"])
POINTS = st.lists(st.tuples(SERIES, st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=3)
Curve = dict[tuple[str, int], tuple[float, int]]
"""Series and step to value and attempt."""


class Model:
    """What a job must look like, kept in the plainest way."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.owner: Claim | None = None
        self.num_claims = 0
        self.forgiven = 0
        self.ended: State | None = None
        self.valid: Curve = {}
        self.log = ""

    def resumed(self, claim: Claim, step: int) -> None:
        kept = (lambda at: at <= step) if step > 0 else (lambda _: False)
        self.valid = {key: point for key, point in self.valid.items() if kept(key[1]) or point[1] >= claim.attempt}


class Machine(RuleBasedStateMachine):
    database: Database
    dataset_id: str

    known = Bundle("known")
    issued = Bundle("issued")
    """Every proof of ownership that was ever handed out, most of them void."""

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, Model] = {}

    @rule(target=known, max_attempts=st.integers(1, 3))
    def submit(self, max_attempts: int) -> str:
        spec = JobSpec.model_validate({**SPEC, "resources": {"max_attempts": max_attempts}})
        with self.database.write() as session:
            job_id = jobs.create(spec, dataset_id=self.dataset_id, session=session).job.id
        self.models[job_id] = Model(max_attempts)
        return job_id

    @rule(target=issued, job_id=known, worker=st.sampled_from(["one", "two"]))
    def claim(self, job_id: str, worker: str) -> Any:
        queued = self.state(job_id) is State.QUEUED
        with self.database.write() as session:
            claim = claims.claim(job_id, worker, lease_seconds=3600, session=session)
        assert (claim is not None) == queued
        if claim is None:
            return multiple()
        model = self.models[job_id]
        assert model.owner is None
        model.owner, model.num_claims = claim, model.num_claims + 1
        assert claim.attempt == model.num_claims
        return claim

    @rule(claim=issued, step=st.integers(0, 5))
    def start(self, claim: Claim, step: int) -> None:
        def write(session: Session) -> None:
            claims.mark_started(claim, resumed_from_step=step, total_steps=9, epochs=1, session=session)

        if self.write(claim, write):
            self.models[claim.job_id].resumed(claim, step)

    @rule(claim=issued, points=POINTS)
    def measure(self, claim: Claim, points: list[tuple[str, int, float]]) -> None:
        told = [metrics.Point(name, step, 0, value) for name, step, value in points]
        if self.write(claim, lambda session: metrics.record(claim, told, session=session)):
            model = self.models[claim.job_id]
            model.valid |= {(name, step): (value, claim.attempt) for name, step, value in points}

    @rule(claim=issued, text=st.text(max_size=8))
    def print(self, claim: Claim, text: str) -> None:
        if self.write(claim, lambda session: logs.append(claim, text, cap_bytes=1 << 20, session=session)):
            self.models[claim.job_id].log += text.replace("\0", "\ufffd")

    @rule(claim=issued, step=st.integers(0, 5))
    def save(self, claim: Claim, step: int) -> None:
        key = f"{claim.job_id}/{claim.attempt}/{step}"
        self.write(claim, lambda session: resume_states.record(claim, step=step, epoch=0, key=key, session=session))

    @rule(claim=issued)
    def renew(self, claim: Claim) -> None:
        with self.database.write() as session:
            state = claims.renew(claim, lease_seconds=3600, session=session)
        model = self.models.get(claim.job_id)
        assert (state is not None) == (model is not None and model.owner == claim)

    @rule(claim=issued, outcome=st.sampled_from([Outcome.SUCCEEDED, Outcome.FAILED]))
    def finish(self, claim: Claim, outcome: Outcome) -> None:
        self.let_go(claim, lambda session: claims.finish(claim, outcome, session=session))

    @rule(claim=issued)
    def hand_back(self, claim: Claim) -> None:
        self.let_go(claim, lambda session: claims.hand_back(claim, session=session))

    @rule(claim=issued)
    def crash(self, claim: Claim) -> None:
        self.let_go(claim, lambda session: claims.crashed(claim, reason="child_crashed", session=session))

    @rule(job_id=known)
    def expire(self, job_id: str) -> None:
        """The owner falls silent, and the reaper comes by."""
        with self.database.write() as session:
            silent = update(Job).where(Job.id == job_id, Job.lease_token.is_not(None))
            session.execute(silent.values(lease_expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
        with self.database.write() as session:
            expired = [one.job_id for one in expire_leases(session=session)]
        model = self.models[job_id]
        assert expired == ([job_id] if model.owner else [])
        model.owner, model.ended = None, self.ended(job_id)

    @rule(job_id=known, action=st.sampled_from(["cancel", "pause", "resume", "retry", "anew"]))
    def ask(self, job_id: str, action: str) -> None:
        ways: dict[str, Callable[[Session], object]] = {
            "cancel": lambda session: jobs.request_cancel(job_id, session=session),
            "pause": lambda session: control.request_pause(job_id, session=session),
            "resume": lambda session: control.request_resume(job_id, session=session),
            "retry": lambda session: control.request_retry(job_id, fresh=False, session=session),
            "anew": lambda session: control.request_retry(job_id, fresh=True, session=session),
        }
        before, model = self.everything(job_id), self.models[job_id]
        keeps_states = before["states"] and action == "retry"
        try:
            with self.database.write() as session:
                ways[action](session)
        except IllegalTransition:
            assert self.everything(job_id) == before
            return
        if action in ("retry", "anew"):
            assert model.ended in (State.FAILED, State.CANCELLED)
            model.forgiven, model.ended = model.num_claims, None
            if not keeps_states:
                model.valid = {}
        elif model.ended is not None:
            assert (action, model.ended) == ("cancel", State.CANCELLED)
        else:
            model.ended = self.ended(job_id)

    @rule(job_id=consumes(known))
    def delete(self, job_id: str) -> None:
        model = self.models[job_id]
        try:
            with self.database.write() as session:
                deletion.delete(job_id, session=session)
        except IllegalTransition:
            assert model.ended is None
        else:
            assert model.ended is not None
            model.owner = None
            with self.database.read() as session, pytest.raises(NotFound):
                jobs.get(job_id, session=session)
            del self.models[job_id]

    @invariant()
    def every_job_is_as_it_must_be(self) -> None:
        for job_id, model in self.models.items():
            self.check(job_id, model)

    def check(self, job_id: str, model: Model) -> None:
        with self.database.read() as session:
            job = jobs.get(job_id, session=session)
            attempts = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()
            valid = session.execute(
                select(Metric.name, Metric.step, Metric.value, Metric.attempt).where(
                    Metric.job_id == job_id, ~Metric.superseded
                )
            ).all()
            latest = session.execute(
                select(MetricLatest.name, MetricLatest.step).where(MetricLatest.job_id == job_id)
            ).all()
            log = logs.read(job_id, session=session)
        assert job.lease_token == (model.owner.token if model.owner else None)
        assert (job.state in OWNED) == (model.owner is not None)
        assert (job.state if job.state in ENDED else None) == model.ended
        assert (job.ended_at is not None) == (model.ended is not None)
        assert [attempt.number for attempt in attempts] == list(range(1, model.num_claims + 1))
        assert job.attempt == model.num_claims
        assert [a.number for a in attempts if a.ended_at is None] == ([job.attempt] if model.owner else [])
        counted = [a for a in attempts if a.outcome in COUNTED and a.number > model.forgiven]
        assert len(counted) <= model.max_attempts
        if model.ended is None:
            assert len(counted) < model.max_attempts
        assert {(name, step): (value, attempt) for name, step, value, attempt in valid} == model.valid
        newest = {name: max(s for n, s in model.valid if n == name) for name, _ in model.valid}
        assert dict(tuple(row) for row in latest) == newest
        assert log.text == model.log

    def write(self, claim: Claim, write: Callable[[Session], object]) -> bool:
        """Whether it was written; by anybody but the owner it must not be."""
        model = self.models.get(claim.job_id)
        if model is not None and model.owner == claim:
            with self.database.write() as session:
                write(session)
            return True
        before = self.everything(claim.job_id)
        with pytest.raises(LeaseLost), self.database.write() as session:
            write(session)
        assert self.everything(claim.job_id) == before
        return False

    def let_go(self, claim: Claim, write: Callable[[Session], object]) -> None:
        before = self.everything(claim.job_id)
        try:
            was_written = self.write(claim, write)
        except IllegalTransition:
            assert self.everything(claim.job_id) == before
            return
        if was_written:
            model = self.models[claim.job_id]
            model.owner, model.ended = None, self.ended(claim.job_id)

    def state(self, job_id: str) -> State | None:
        with self.database.read() as session:
            return session.scalar(select(Job.state).where(Job.id == job_id))

    def ended(self, job_id: str) -> State | None:
        state = self.state(job_id)
        return state if state in ENDED else None

    def everything(self, job_id: str) -> dict[str, Any]:
        with self.database.read() as session:
            job = session.get(Job, job_id)
            rows = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()
            return {
                "job": job and [getattr(job, column.key) for column in Job.__table__.columns],
                "attempts": [[getattr(row, column.key) for column in Attempt.__table__.columns] for row in rows],
                "states": resume_states.keys(job_id, session=session),
                "log": logs.read(job_id, session=session),
                "latest": metrics.latest(job_id, session=session),
            }


@pytest.mark.timeout(0)
def test_a_job_has_one_owner_at_most(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":  # no power is cut here
        event.listen(database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
    with database.write() as session:
        dataset = Dataset(name="digits", source="folder", state="ready", root="/data", index_prefix="i")
        dataset.facts, dataset.classes = {}, ["zero"]
        session.add(dataset)

    class OnThis(Machine):
        pass

    OnThis.database, OnThis.dataset_id = database, dataset.id
    run_state_machine_as_test(
        OnThis, settings=settings(FUZZ, max_examples=max(5, FUZZ.max_examples // 6), stateful_step_count=30)
    )
