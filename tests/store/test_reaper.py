"""Lost jobs come back, doorbells are rung again, and one process does it."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from store import leases, reaper, workers
from store.models import Attempt, Dataset, Job, Lease
from store.settings import Settings
from store.states import Outcome, State


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path)


def reap(world, settings, token="api-1"):
    rung: list[reaper.Doorbell] = []
    done = reaper.reap_once(world.database, settings, token=token, ring=rung.append)
    return done, rung


def test_the_job_of_a_silent_worker_is_queued_and_rung_in_the_same_round(world, settings, running):
    world.silence(running.job_id)
    done, rung = reap(world, settings)
    assert done.expired == [(running.job_id, 1, State.QUEUED)]
    assert [bell.job_id for bell in rung] == [running.job_id]
    job = world.job(running.job_id)
    assert (job.state, job.status_reason) == (State.QUEUED, "worker_lost")
    with world.database.read() as session:
        attempt = session.get_one(Attempt, (job.id, 1))
    assert (attempt.outcome, attempt.reason) == (Outcome.LOST, "worker_lost")
    assert "worker-1" in attempt.detail
    assert attempt.ended_at is not None


def test_a_worker_that_is_heard_of_keeps_its_job(world, settings, running):
    done, rung = reap(world, settings)
    assert (done.expired, rung) == ([], [])
    assert world.state(running.job_id) is State.RUNNING


def test_only_waiting_jobs_ring_and_not_again_too_soon(world, settings):
    job = world.submit(world.distillation())
    assert reap(world, settings)[1] == []  # announced by whoever submitted them
    with world.database.write() as session:
        session.execute(update(Job).values(last_rung_at=None))
        session.execute(update(Job).where(Job.id == job.baseline_job_id).values(priority=0))
    expected = [(job.baseline_job_id, "default", 0), (job.id, "default", 5)]
    assert reap(world, settings)[1] == expected
    assert reap(world, settings)[1] == []
    world.start(job.id)
    with world.database.write() as session:
        later = reaper.due_doorbells({"default"}, ring_seconds=0.0, session=session)
    assert later == expected[:1]


def test_a_job_rings_again_only_where_a_worker_is_idle(world, settings):
    """Behind a training that takes a week, repeated messages would pile up with nobody to read them."""
    job = world.submit()

    def rung_again() -> list[str]:
        with world.database.write() as session:
            session.execute(update(Job).values(last_rung_at=datetime(2020, 1, 1, tzinfo=UTC)))
        return [bell.job_id for bell in reap(world, settings)[1]]

    assert rung_again() == []
    with world.database.write() as session:
        workers.register("elsewhere", hostname="h", pid=1, queues=["other"], device={}, session=session)
        workers.register("here", hostname="h", pid=2, queues=["default"], device={}, session=session)
    assert rung_again() == [job.id]
    with world.database.write() as session:
        session.execute(update(Dataset).values(state="validating"))
    assert rung_again() == [], "nobody could begin it"
    with world.database.write() as session:
        session.execute(update(Dataset).values(state="ready"))
        workers.drain("here", "wait", session=session)
    assert rung_again() == []
    with world.database.write() as session:
        workers.undrain("here", session=session)
    assert rung_again() == [job.id]
    with world.database.write() as session:
        workers.heartbeat("here", current_job="0123456789ab", session=session)
    assert rung_again() == []


def test_one_of_two_processes_reaps_until_its_lease_is_over(world, settings):
    assert reap(world, settings, "api-1")[0] is not None
    assert reap(world, settings, "api-2")[0] is None
    assert reap(world, settings, "api-1")[0] is not None
    with world.database.write() as session:
        session.execute(update(Lease).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert reap(world, settings, "api-2")[0] is not None
    assert reap(world, settings, "api-1")[0] is None


def test_a_lease_that_is_given_up_is_free_at_once(world):
    with world.database.write() as session:
        assert leases.acquire("gc", "a", seconds=3600, session=session)
        leases.release("gc", "b", session=session)
        assert not leases.acquire("gc", "b", seconds=3600, session=session)
        leases.release("gc", "a", session=session)
        assert leases.acquire("gc", "b", seconds=3600, session=session)
