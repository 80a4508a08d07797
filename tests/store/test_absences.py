"""What the reaper does after the database was away, and after its clock was set: no worker loses its job by that."""

import pytest
from sqlalchemy import select, update

from store import leases, reaper, workers
from store.db import db_now
from store.models import Job, Lease
from store.settings import Settings
from store.states import State


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path)


def reap(world, settings):
    return reaper.reap_once(world.database, settings, token="api", ring=lambda _bell: None)


def set_time(world, name: str, seconds: float) -> None:
    with world.database.write() as session:
        session.execute(update(Lease).where(Lease.name == name).values(expires_at=db_now(seconds)))


@pytest.mark.parametrize("last_round", [-3600.0, 3600.0], ids=["away or set forward", "set back"])
def test_leases_expire_only_once_their_owners_could_have_renewed_them(world, settings, running, last_round):
    assert reap(world, settings).expired == []
    set_time(world, "rounds-last", last_round)
    world.silence(running.job_id)
    for since in (0.0, -settings.lease_seconds / 2):
        assert reap(world, settings).expired == []
        set_time(world, "rounds-since", since)
    set_time(world, "rounds-since", -settings.lease_seconds - 1.0)
    assert reap(world, settings).expired == [(running.job_id, 1, State.QUEUED)]


def test_short_pauses_are_no_absence(world, settings, running):
    reap(world, settings)
    set_time(world, "rounds-last", -settings.lease_seconds / 2 + 1.0)
    world.silence(running.job_id)
    assert len(reap(world, settings).expired) == 1


def test_a_clock_that_was_set_back_keeps_nobody_waiting(world, settings, running):
    waiting = world.submit()
    with world.database.write() as session:
        workers.register("idle", hostname="h", pid=1, queues=["default"], device={}, session=session)
        session.execute(update(Job).where(Job.id == running.job_id).values(lease_expires_at=db_now(3600.0)))
        session.execute(update(Job).where(Job.id == waiting.id).values(last_rung_at=db_now(3600.0)))
        assert leases.acquire(reaper.LEASE, "another", seconds=3600.0, session=session)
    assert [bell.job_id for bell in reap(world, settings).rung] == [waiting.id]
    with world.database.read() as session:
        soon = db_now(settings.lease_seconds + 1.0)
        assert session.scalar(select(Job.id).where(Job.lease_expires_at < soon)) == running.job_id
    assert world.state(running.job_id) is State.RUNNING


def test_a_worker_that_begins_anew_gives_up_what_its_last_process_held(world, settings, running):
    with world.database.write() as session:
        assert reaper.expire_of("another", session=session) == []
        assert reaper.expire_of("worker-1", session=session) == [(running.job_id, 1, State.QUEUED)]
    assert [bell.job_id for bell in reap(world, settings).rung] == [running.job_id]
