"""What a job has cost, from its attempts."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from store import claims
from store.cost import gpu_seconds
from store.models import Attempt
from store.states import Outcome

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def cost(world):
    def cost(*job_ids: str) -> dict[str, float]:
        with world.database.read() as session:
            return gpu_seconds(job_ids, session=session)

    return cost


def took(world, job_id: str, number: int, seconds: float | None) -> None:
    """Let an attempt have begun at a known time; None = it runs on."""
    ended = None if seconds is None else BEGAN + timedelta(seconds=seconds)
    which = (Attempt.job_id == job_id, Attempt.number == number)
    with world.database.write() as session:
        session.execute(update(Attempt).where(*which).values(started_at=BEGAN, ended_at=ended))


def test_attempts_add_up_whatever_became_of_them(world, cost):
    job, other, waiting = (world.submit().id for _ in range(3))
    world.start(job)
    world.expire(job)
    claim = world.start(job, resumed_from_step=10)
    with world.database.write() as session:
        claims.finish(claim, Outcome.SUCCEEDED, session=session)
    took(world, job, 1, 30.0)
    took(world, job, 2, 12.5)
    world.start(other)
    took(world, other, 1, 7.0)
    assert cost(job, other, waiting) == {job: 42.5, other: 7.0, waiting: 0.0}
    assert cost() == {}
    assert cost("0" * 12) == {"0" * 12: 0.0}


def test_every_process_counts(world, cost):
    job = world.submit().id
    claim = world.claim(job)
    took(world, job, 1, 30.0)
    assert cost(job) == {job: 30.0}  # nothing is known yet of how many there will be
    with world.database.write() as session:
        claims.mark_started(
            claim, resumed_from_step=0, total_steps=9, epochs=1, run_facts={"processes": 4}, session=session
        )
    assert cost(job) == {job: 120.0}


def test_a_running_attempt_counts_up_to_now_by_the_clock_of_the_database(world, cost):
    job = world.submit().id
    world.start(job)
    before = cost(job)[job]
    took(world, job, 1, None)
    since = (datetime.now(UTC) - BEGAN).total_seconds()
    assert 0 <= before < 60
    assert cost(job)[job] == pytest.approx(since, abs=60)
