"""Jobs that several workers train together: begun once enough are idle, in order, and each seat is one worker's."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from store import claims, reaper, seats, waiting, workers
from store.db import Database, db_now
from store.fencing import Claim
from store.models import Job, Seat
from store.reasons import NODES_MISSING, WORKER_LOST
from store.seats import Meeting, Seated
from store.settings import Settings
from store.states import Outcome, State

LEASE = 20.0
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def sign_on(world: Any) -> Callable[..., None]:
    def sign_on(*names: str, queues: Iterable[str] = ("default",)) -> None:
        with world.database.write() as session:
            for name in names:
                workers.register(name, hostname="h", pid=1, queues=list(queues), device={}, session=session)

    return sign_on


def claim_next(world: Any, worker_id: str, queues: Iterable[str] = ("default",)) -> Claim | None:
    with world.database.write() as session:
        return claims.claim_next(worker_id, list(queues), lease_seconds=LEASE, session=session)


def take(world: Any, worker_id: str, queues: Iterable[str] = ("default",)) -> Seated | None:
    with world.database.write() as session:
        return seats.take_next(worker_id, list(queues), lease_seconds=LEASE, session=session)


def renew(world: Any, seated: Seated) -> Meeting | None:
    with world.database.write() as session:
        return seats.renew(seated, lease_seconds=LEASE, session=session)


def hand_back(world: Any, claim: Claim) -> State:
    with world.database.write() as session:
        return claims.hand_back(claim, reason=NODES_MISSING, session=session)


def together(world: Any, nodes: int, **resources: Any) -> str:
    return world.submit(world.spec(resources={"nodes": nodes, **resources})).id


def reason(world: Any, job_id: str) -> tuple[str, str]:
    with world.database.read() as session:
        told = waiting.of_jobs([world.job(job_id)], heartbeat_seconds=5, session=session)[job_id]
    return told.reason, told.detail


def beat(world: Any, worker_id: str, job_id: str | None) -> None:
    with world.database.write() as session:
        workers.heartbeat(worker_id, current_job=job_id, session=session)


def counts(world: Any) -> dict[str, int]:
    with world.database.read() as session:
        found = waiting.reasons(heartbeat_seconds=5, session=session)
    return {reason: number for reason, number in found.items() if number}


def test_a_job_for_three_begins_when_three_are_idle_and_holds_back_what_is_behind_it(world, sign_on):
    job = together(world, 3)
    sign_on("a", "b")
    assert claim_next(world, "a") is world.claim(job, "a") is None
    assert reason(world, job) == ("nodes", "needs 3 workers of the queue 'default' at once, 2 are online")
    single = world.submit()
    urgent = world.submit(world.spec(resources={"priority": 0})).id
    sign_on("c")
    sign_on("elsewhere", queues=["other"])
    own = claim_next(world, "a")
    assert own is not None
    assert own.job_id == urgent
    beat(world, "a", urgent)
    assert reason(world, job) == ("nodes", "needs 3 workers of the queue 'default' at once, 2 are idle")
    assert reason(world, single.id) == ("nodes", f"job {job} is first: it needs 3 workers at once, 2 are idle")
    assert counts(world) == {"nodes": 2}
    assert claim_next(world, "b") is None
    with world.database.write() as session:
        claims.finish(own, Outcome.FAILED, session=session)
    beat(world, "a", None)
    assert reason(world, job)[0] == "starting_soon"
    assert claim_next(world, "elsewhere", ["other"]) is None
    leader = claim_next(world, "b")
    assert leader is not None
    assert leader.job_id == job
    with world.database.read() as session:
        assert [one.seat.node for one in seats.look(leader, session=session)] == [1, 2]


def test_a_job_that_never_could_begin_holds_nothing_back(world, sign_on):
    together(world, 3)
    single = world.submit().id
    sign_on("a", "b")
    with world.database.write() as session:
        workers.drain("b", "now", session=session)
    found = claim_next(world, "a")
    assert found is not None
    assert found.job_id == single


def test_two_jobs_for_two_do_not_share_two_workers(world, database_url, sign_on):
    """Of workers that ask at once one leads, and its seats are kept for the others."""
    first, second = together(world, 2), together(world, 2)
    sign_on("a", "b", "c")

    def ask(worker_id: str) -> Claim | None:
        database = Database(database_url)
        try:
            with database.write() as session:
                return claims.claim_next(worker_id, ["default"], lease_seconds=LEASE, session=session)
        finally:
            database.close()

    with ThreadPoolExecutor(3) as pool:
        found = [claim for claim in pool.map(ask, "abc") if claim is not None]
    assert [claim.job_id for claim in found] == [first]
    (leader,) = found
    assert take(world, leader.worker_id) is None, "nobody sits beside himself"
    others = sorted({"a", "b", "c"} - {leader.worker_id})
    with ThreadPoolExecutor(2) as pool:
        seated = [one for one in pool.map(lambda name: take(world, name), others) if one is not None]
    assert [(one.node, one.nodes) for one in seated] == [(1, 2)]
    assert claim_next(world, others[0]) is claim_next(world, others[1]) is None  # one is idle, and waits for another
    assert hand_back(world, leader) is State.QUEUED
    instead = claim_next(world, leader.worker_id)  # the first, whose workers did not all come, lets others go first
    assert instead is not None
    assert instead.job_id == second
    assert hand_back(world, instead) is State.QUEUED
    assert claim_next(world, leader.worker_id) is None
    with world.database.write() as session:
        session.execute(update(Job).values(updated_at=db_now(-61)))
    again = claim_next(world, leader.worker_id)
    assert again is not None
    assert again.job_id == first  # before the second, which it holds up as before
    assert world.state(second) is State.QUEUED


@pytest.fixture
def pair(world: Any, sign_on: Callable[..., None]) -> tuple[Claim, Seated]:
    """The owner of a job for two, and who sits beside it."""
    together(world, 2)
    sign_on("a", "b")
    leader = claim_next(world, "a")
    seated = take(world, "b")
    assert leader is not None
    assert seated is not None
    return leader, seated


def test_who_sits_learns_where_the_owner_waits_and_when_the_attempt_is_over(world, pair):
    leader, seated = pair
    assert renew(world, seated) == (None, None)
    with world.database.write() as session:
        seats.announce(leader, "10.0.0.1", 29500, session=session)
    assert renew(world, seated) == ("10.0.0.1", 29500)
    assert world.expire(leader.job_id) is State.QUEUED
    assert renew(world, seated) is None
    assert claim_next(world, "b") is not None, "who sat there is idle again"
    assert renew(world, seated) is None, "the seat of an earlier attempt stays void"
    assert take(world, "a") is not None


def test_the_owner_sees_who_fell_silent_and_who_left_and_why(world, pair):
    leader, seated = pair

    def look() -> tuple[bool, str | None, str | None]:
        with world.database.read() as session:
            ((seat, is_silent),) = seats.look(leader, session=session)
        return is_silent, seat.reason, seat.detail

    assert look() == (False, None, None)
    with world.database.write() as session:
        session.execute(update(Seat).values(lease_expires_at=PAST))
    assert look()[0]
    assert renew(world, seated) is not None, "nobody else can have taken it meanwhile"
    assert look() == (False, None, None)
    other = Seated(seated.job_id, seated.attempt, seated.node, seated.nodes, "f" * 32, "b")
    with world.database.write() as session:
        assert not seats.leave(other, reason="out_of_memory", session=session)
        assert seats.leave(seated, reason="out_of_memory", detail="8 GiB", session=session)
        assert not seats.leave(seated, reason=None, session=session)
    assert look() == (False, "out_of_memory", "8 GiB")
    assert renew(world, seated) is None
    assert take(world, "b") is None, "a seat that was left stays empty: the attempt is to end"


def test_a_seat_whose_lease_was_written_before_the_clock_was_set_back_ends_like_any_other(world, pair, tmp_path):
    (leader, _), settings = pair, Settings(home=tmp_path)
    with world.database.write() as session:
        session.execute(update(Seat).values(lease_expires_at=datetime(2100, 1, 1, tzinfo=UTC)))
    assert reaper.reap_once(world.database, settings, token="t", ring=lambda _: None) is not None
    with world.database.read() as session:
        ((seat, _),) = seats.look(leader, session=session)
        now = session.scalars(select(db_now())).one()
    assert seat.lease_expires_at - now <= timedelta(seconds=settings.lease_seconds)


def test_a_worker_that_begins_anew_has_left_its_seat(world, pair):
    leader, seated = pair
    with world.database.write() as session:
        seats.give_up_of("b", WORKER_LOST, session=session)
        ((seat, _),) = seats.look(leader, session=session)
    assert (seat.reason, seat.detail) == (WORKER_LOST, "worker b was started again")
    assert renew(world, seated) is None


def test_an_open_seat_rings_at_an_idle_worker_that_may_take_it(world, sign_on):
    job = together(world, 3)
    sign_on("a", "b", "c")
    leader = claim_next(world, "a")
    assert leader is not None

    def rung(ring_seconds: float) -> list[tuple[str, str]]:
        with world.database.write() as session:
            idle = workers.idle(heartbeat_seconds=5, session=session)
            bells = reaper.due_for_seats(idle, ring_seconds=ring_seconds, session=session)
        return [(bell.job_id, bell.queue) for bell in bells]

    both = [(job, workers.bell("b")), (job, workers.bell("c"))]
    assert sorted(rung(60)) == both
    assert rung(60) == []
    assert sorted(rung(0)) == both
    assert take(world, "b") is not None
    assert rung(0) == [(job, workers.bell("c"))]
    hand_back(world, leader)
    assert rung(0) == []
