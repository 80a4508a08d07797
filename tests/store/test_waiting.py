"""Why jobs wait, and where in their queue."""

import pytest
from sqlalchemy import BigInteger, event, literal, update

from store import control, waiting, workers
from store.db import Database
from store.models import Dataset, Job, Worker
from store.waiting import Waiting

HEARTBEAT = 5.0


@pytest.fixture
def crew(world):
    """Sign workers on: their names, each with the job that it is at."""

    def sign_on(queue: str = "default", **jobs: str | None) -> None:
        with world.database.write() as session:
            for worker_id, job_id in jobs.items():
                workers.register(worker_id, hostname="h", pid=1, queues=[queue], device={}, session=session)
                workers.heartbeat(worker_id, current_job=job_id, session=session)

    return sign_on


def waits(world, *rows: Job) -> list[Waiting | None]:
    with world.database.read() as session:
        fresh = [session.get_one(Job, row.id) for row in rows]
        found = waiting.of_jobs(fresh, heartbeat_seconds=HEARTBEAT, session=session)
        return [found.get(row.id) for row in rows]


def reasons(world) -> dict[str, int]:
    with world.database.read() as session:
        found = waiting.reasons(heartbeat_seconds=HEARTBEAT, session=session)
    assert tuple(found) == waiting.REASONS
    return {reason: number for reason, number in found.items() if number}


def test_jobs_wait_in_the_order_of_priority_then_age_in_each_queue(world):
    first, second, urgent = (world.submit(world.spec(resources={"priority": p})) for p in (5, 5, 1))
    elsewhere = world.submit(world.spec(resources={"queue": "big"}))
    told = waits(world, first, second, urgent, elsewhere)
    assert [one.position for one in told] == [2, 3, 1, 1]
    assert {one.reason for one in told} == {"no_worker"}
    assert "'big'" in told[3].detail
    claim = world.claim(urgent.id)
    assert claim is not None
    assert [one and one.position for one in waits(world, first, second, urgent)] == [1, 2, None]


def test_what_a_job_waits_for_follows_the_workers(world, crew):
    first, second = world.submit(), world.submit()
    crew(queue="other", stranger=None)
    assert [one.reason for one in waits(world, first, second)] == ["no_worker", "no_worker"]
    crew(w1=None, w2="0123456789ab")
    soon, behind = waits(world, first, second)
    assert (soon.reason, behind) == ("starting_soon", Waiting("busy", "1 job ahead, 1 worker busy", 2))
    assert reasons(world) == {"starting_soon": 1, "busy": 1}
    with world.database.write() as session:
        for worker_id in ("w1", "w2"):
            workers.drain(worker_id, "wait", session=session)
    assert {one.reason for one in waits(world, first, second)} == {"all_drained"}
    assert reasons(world) == {"all_drained": 2}
    with world.database.write() as session:
        session.execute(update(Worker).values(draining=None, heartbeat_at=Worker.heartbeat_at - _ages()))
    assert reasons(world) == {"no_worker": 2}


def _ages():
    return literal(3600 * 10**6, BigInteger())


def test_a_dataset_that_is_looked_through_and_a_pause_hold_jobs_back(world, crew):
    job, paused = world.submit(), world.submit()
    crew(w1=None)
    with world.database.write() as session:
        control.request_pause(paused.id, session=session)
        session.execute(update(Dataset).values(state="validating"))
    first, second = waits(world, job, paused)
    assert (first.reason, first.position) == ("dataset", 1)
    assert (second.reason, second.position) == ("paused", None)
    assert reasons(world) == {"dataset": 1, "paused": 1}


def test_a_page_of_waiting_jobs_takes_as_few_statements_as_one(world, database: Database):
    rows = [world.submit() for _ in range(8)]
    asked: list[str] = []

    def note(_connection, _cursor, statement: str, *_rest) -> None:
        asked.append(statement)

    with world.database.read() as session:
        found = [session.get_one(Job, row.id) for row in rows]
        event.listen(database.engine, "before_cursor_execute", note)
        told = waiting.of_jobs(found, heartbeat_seconds=HEARTBEAT, session=session)
        assert waiting.of_jobs(found[:1], heartbeat_seconds=HEARTBEAT, session=session) == {
            found[0].id: told[found[0].id]
        }
        event.remove(database.engine, "before_cursor_execute", note)
    assert [told[row.id].position for row in rows] == list(range(1, 9))
    assert len(asked) == 6, asked
