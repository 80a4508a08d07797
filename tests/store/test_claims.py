"""Ownership: one winner, a lease by the database's clock, and a token in front of every write."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from store import checkpoints, claims, jobs, logs, metrics, outputs, resume_states
from store.db import Database
from store.errors import LeaseLost
from store.fencing import Claim
from store.models import Attempt
from store.states import IllegalTransition, Outcome, State


def test_of_many_that_claim_one_wins(world, database_url):
    job_id = world.submit().id

    def try_claim(number: int) -> Claim | None:
        # Each with connections of its own, as processes have them.
        database = Database(database_url)
        try:
            with database.write() as session:
                return claims.claim(job_id, f"worker-{number}", lease_seconds=20, session=session)
        finally:
            database.close()

    with ThreadPoolExecutor(16) as pool:
        winners = [claim for claim in pool.map(try_claim, range(32)) if claim is not None]
    assert len(winners) == 1
    job = world.job(job_id)
    assert (job.state, job.attempt, job.worker_id) == (State.STARTING, 1, winners[0].worker_id)
    with world.database.read() as session:
        assert len(session.scalars(select(Attempt)).all()) == 1


def test_the_lease_is_measured_by_the_clock_of_the_database(world, running):
    with world.database.write() as session:
        assert claims.renew(running, lease_seconds=3600, session=session) is State.RUNNING
    left = world.job(running.job_id).lease_expires_at - datetime.now(UTC)
    assert timedelta(minutes=58) < left < timedelta(minutes=62)


WRITES: dict[str, Callable[[Claim, Session], object]] = {
    "mark_started": lambda claim, s: claims.mark_started(
        claim, resumed_from_step=0, total_steps=9, epochs=1, session=s
    ),
    "record_progress": lambda claim, s: claims.record_progress(
        claim, step=99, epoch=9, eta_seconds=None, progress={}, session=s
    ),
    "add_warning": lambda claim, s: claims.add_warning(claim, code="x", detail="y", session=s),
    "finish": lambda claim, s: claims.finish(claim, Outcome.SUCCEEDED, session=s),
    "hand_back": lambda claim, s: claims.hand_back(claim, session=s),
    "crashed": lambda claim, s: claims.crashed(claim, reason="child_crashed", session=s),
    "metrics": lambda claim, s: metrics.record(claim, [metrics.Point("loss/total", 99, 9, 9.9)], session=s),
    "log": lambda claim, s: logs.append(claim, "from the grave", cap_bytes=4096, session=s),
    "resume_state": lambda claim, s: resume_states.record(claim, step=99, epoch=9, key="zombie", session=s),
    "artifact": lambda claim, s: outputs.record(
        claim, kind="map", name="m.png", key="zombie", sha256="0" * 64, num_bytes=1, session=s
    ),
    "checkpoint": lambda claim, s: checkpoints.record(
        claim, name="best", file_format="pt", key="zombie", sha256="0" * 64, num_bytes=1, step=99, epoch=9, ap=0.9,
        session=s,
    ),
}  # fmt: skip


def test_a_worker_that_slept_past_its_lease_writes_nothing_more(world, running):
    assert world.expire(running.job_id) is State.QUEUED
    second = world.start(running.job_id, worker_id="worker-2")
    before = _everything(world, running.job_id)
    for write in WRITES.values():
        with pytest.raises(LeaseLost), world.database.write() as session:
            write(running, session)
    with world.database.write() as session:
        assert claims.renew(running, lease_seconds=20, session=session) is None
    assert _everything(world, running.job_id) == before
    with world.database.write() as session:
        assert claims.renew(second, lease_seconds=20, session=session) is State.RUNNING


def _everything(world, job_id):
    with world.database.read() as session:
        job = jobs.get(job_id, session=session)
        return (
            {column.key: getattr(job, column.key) for column in job.__table__.columns if column.key != "updated_at"},
            metrics.latest(job_id, session=session),
            logs.read(job_id, session=session),
            resume_states.keys(job_id, session=session),
            [row.key for row in outputs.of_job(job_id, session=session)],
            [row.key for row in checkpoints.of_job(job_id, session=session)],
            [attempt.outcome for attempt in session.scalars(select(Attempt).order_by(Attempt.number))],
        )


def test_a_result_ends_the_job_and_its_lease(world, running):
    with world.database.write() as session:
        claims.record_progress(running, step=100, epoch=2, eta_seconds=0.0, progress={}, session=session)
        assert claims.finish(running, Outcome.SUCCEEDED, session=session) is State.SUCCEEDED
    job = world.job(running.job_id)
    assert (job.state, job.step, job.lease_token, job.worker_id) == (State.SUCCEEDED, 100, None, "worker-1")
    assert job.created_at <= job.started_at <= job.ended_at
    with world.database.read() as session:
        attempt = session.get_one(Attempt, (job.id, 1))
    assert (attempt.outcome, attempt.last_step, attempt.resumed_from_step) == (Outcome.SUCCEEDED, 100, 0)


def test_a_failure_keeps_its_reason_in_storable_text(world, running):
    with world.database.write() as session:
        claims.finish(
            running, Outcome.FAILED, reason="non_finite_loss", detail="loss/cls\0\ud800 at 7", session=session
        )
    job = world.job(running.job_id)
    assert (job.state, job.status_reason) == (State.FAILED, "non_finite_loss")
    assert job.detail is not None
    assert job.detail.startswith("loss/cls")
    assert job.detail.endswith(" at 7")


def test_nothing_can_be_finished_that_was_not_started(world):
    claim = world.claim(world.submit().id)
    with pytest.raises(IllegalTransition, match="from starting to succeeded"), world.database.write() as session:
        claims.finish(claim, Outcome.SUCCEEDED, session=session)
    assert world.state(claim.job_id) is State.STARTING


def test_handing_back_queues_the_job_at_once_and_costs_no_attempt(world):
    job_id = world.submit(world.spec(resources={"max_attempts": 1})).id
    for number in (1, 2, 3):
        claim = world.start(job_id)
        assert claim.attempt == number
        with world.database.write() as session:
            assert claims.hand_back(claim, session=session) is State.QUEUED
    job = world.job(job_id)
    assert (job.status_reason, job.lease_token, job.worker_id, job.last_rung_at) == ("worker_stopped", None, None, None)


@pytest.mark.parametrize("how", ["lost", "crashed"])
def test_after_max_attempts_the_job_has_failed_and_says_why(world, how):
    job_id = world.submit(world.spec(resources={"max_attempts": 2})).id
    for expected in (State.QUEUED, State.FAILED):
        claim = world.start(job_id)
        if how == "lost":
            assert world.expire(job_id) is expected
        else:
            with world.database.write() as session:
                assert claims.crashed(claim, reason="child_crashed", detail="signal 9", session=session) is expected
    job = world.job(job_id)
    assert job.status_reason == "max_attempts"
    assert "2 of 2 attempts" in job.detail
    assert {"lost": "worker_lost", "crashed": "child_crashed: signal 9"}[how] in job.detail
    assert job.ended_at is not None
    assert world.claim(job_id) is None


def test_the_same_warning_is_kept_once(world, running):
    for _ in range(2):
        with world.database.write() as session:
            claims.add_warning(running, code="teacher_unmatched", detail="class 'x'", session=session)
    assert world.job(running.job_id).warnings == [{"code": "teacher_unmatched", "detail": "class 'x'"}]


def test_the_newest_states_are_kept_and_a_restart_from_before_them_comes_first(world, running):
    def record(claim: Claim, step: int, key: str) -> list[str]:
        with world.database.write() as session:
            return resume_states.record(claim, step=step, epoch=0, key=key, session=session)

    assert [record(running, step, f"a1-{step}") for step in (10, 20, 30)] == [[], [], ["a1-10"]]
    world.expire(running.job_id)
    second = world.start(running.job_id)
    assert record(second, 10, "a2-10") == ["a1-20"]
    assert record(second, 30, "a2-30") == ["a1-30"]
    with world.database.read() as session:
        assert resume_states.keys(running.job_id, session=session) == ["a2-30", "a2-10"]


def test_a_checkpoint_written_again_tells_which_file_it_replaces(world, running):
    def record(key: str) -> str | None:
        with world.database.write() as session:
            return checkpoints.record(
                running, name="best", file_format="safetensors", key=key, sha256="0" * 64, num_bytes=1, step=1, epoch=1,
                ap=0.5, session=session,
            )  # fmt: skip

    assert [record(key) for key in ("k1", "k2", "k2")] == [None, "k1", None]
    with world.database.read() as session:
        assert [row.key for row in checkpoints.of_job(running.job_id, session=session)] == ["k2"]
