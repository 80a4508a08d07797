"""What is new to a listener: found from the end of each series, told apart by instants that only go forward."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from store import metrics, news
from store.metrics import Point
from store.models import MetricLatest

FAR = datetime(2999, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def record(world, claim, *points: tuple[str, int, float]) -> None:
    with world.database.write() as session:
        metrics.record(claim, [Point(name, step, 1, value) for name, step, value in points], session=session)


def now(world, job_id: str) -> datetime:
    """The instant of what was written last."""
    with world.database.read() as session:
        return session.scalars(select(func.max(MetricLatest.at)).where(MetricLatest.job_id == job_id)).one()


def heard(world, job_id: str, after: datetime, until: datetime = FAR, limit: int = 1000) -> list[tuple[str, int, int]]:
    with world.database.read() as session:
        found = news.measured(job_id, after, until, limit=limit, session=session)
    return [(point.name, point.step, point.attempt) for point in found]


def test_what_came_between_two_instants_the_newest_first(world, running):
    record(world, running, ("a", 1, 1.0), ("b", 1, 1.0))
    begin = now(world, running.job_id)
    record(world, running, ("a", 2, 1.0))
    middle = now(world, running.job_id)
    record(world, running, ("a", 3, 1.0), ("b", 7, 1.0))
    assert heard(world, running.job_id, begin, middle) == [("a", 2, 1)]
    assert heard(world, running.job_id, begin) == [("b", 7, 1), ("a", 3, 1), ("a", 2, 1)]
    assert heard(world, running.job_id, begin, limit=2) == [("b", 7, 1), ("a", 3, 1)]
    assert heard(world, running.job_id, now(world, running.job_id)) == []
    assert len(heard(world, running.job_id, begin - timedelta(days=1))) == 5


def test_a_later_attempt_is_heard_from_where_it_began_even_when_it_has_overtaken(world, running):
    record(world, running, *(("a", step, 1.0) for step in range(1, 41)))
    begin = now(world, running.job_id)
    world.expire(running.job_id)
    second = world.start(running.job_id, resumed_from_step=10)
    for step in range(11, 46):
        record(world, second, ("a", step, 2.0))
    assert heard(world, running.job_id, begin) == [("a", step, 2) for step in range(45, 10, -1)]


def test_what_is_superseded_is_no_news(world, running):
    begin = datetime(2000, 1, 1, tzinfo=UTC)
    record(world, running, *(("a", step, 1.0) for step in range(1, 41)))
    world.expire(running.job_id)
    second = world.start(running.job_id, resumed_from_step=10)
    record(world, second, ("a", 30, 2.0))
    assert heard(world, running.job_id, begin) == [("a", 30, 2), *(("a", step, 1) for step in range(10, 0, -1))]


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(hours=1)])
def test_batches_of_one_tick_and_a_clock_set_back_are_told_apart(world, running, ahead):
    record(world, running, ("a", 1, 1.0))
    with world.database.write() as session:
        session.execute(update(MetricLatest).values(at=datetime.now(UTC) + ahead))
    begin = now(world, running.job_id)
    for step in range(2, 6):
        record(world, running, ("a", step, 1.0))
        assert heard(world, running.job_id, begin) == [("a", step, 1)]
        assert ahead == timedelta(0) or now(world, running.job_id) == begin + TICK
        begin = now(world, running.job_id)
