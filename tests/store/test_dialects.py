"""What SQLite and PostgreSQL would do differently, and must not: each holds on both."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, StatementError

from store import claims, jobs, logs, metrics, outputs, workers
from store.metrics import Point, Sample
from store.models import Job, Metric, Worker

QUEER = "a\0b\ud800c"
PLAIN = "a\ufffdb?c"


def test_text_that_no_database_takes_is_kept_without_it(world, running):
    with world.database.write() as session:
        logs.append(running, QUEER, cap_bytes=4096, session=session)
        claims.add_warning(running, code="c", detail=QUEER, session=session)
        metrics.record(running, [Point(f"val/{QUEER}", 1, 1, 0.5)], session=session)
        claims.record_progress(running, step=1, epoch=1, eta_seconds=1.0, progress={QUEER: [QUEER]}, session=session)
        workers.register("w", hostname="h", pid=1, queues=[QUEER], device={"name": QUEER}, session=session)
    with world.database.read() as session:
        assert logs.read(running.job_id, session=session).text == PLAIN
        assert metrics.latest(running.job_id, session=session) == {f"val/{PLAIN}": Sample(1, 1, 0.5)}
        worker = session.get_one(Worker, "w")
    job = world.job(running.job_id)
    assert (job.warnings, job.progress) == ([{"code": "c", "detail": PLAIN}], {PLAIN: [PLAIN]})
    assert (worker.queues, worker.device) == ([PLAIN], {"name": PLAIN})


def test_numbers_that_json_has_not_are_null(world, running):
    told = {"load": math.nan, "free": [math.inf, 1.5], "big": 10**30}
    with world.database.write() as session:
        workers.register("w", hostname="h", pid=1, queues=[], device={}, session=session)
        assert workers.heartbeat("w", current_job=None, telemetry=told, session=session)
    with world.database.read() as session:
        assert session.get_one(Worker, "w").telemetry == {"load": None, "free": [None, 1.5], "big": 10**30}


@pytest.mark.parametrize("value", [5e-324, -1.7976931348623157e308, 0.1 + 0.2, 2.0**60 + 256])
def test_numbers_come_back_to_the_last_bit(world, running, value):
    with world.database.write() as session:
        metrics.record(running, [Point("x", 1, 1, value)], session=session)
    with world.database.read() as session:
        (sample,) = metrics.read(running.job_id, "x", session=session)
    assert sample.value == value


def test_the_largest_integer_is_taken_and_the_next_one_refused(world, running):
    with world.database.write() as session:
        metrics.record(running, [Point("x", 2**63 - 1, 1, 0.5)], session=session)
    with pytest.raises((DBAPIError, StatementError, OverflowError)), world.database.write() as session:
        metrics.record(running, [Point("x", 2**63, 1, 0.5)], session=session)
    with world.database.read() as session:
        assert session.scalars(select(Metric.step)).all() == [2**63 - 1]
        assert metrics.read(running.job_id, "x", since_step=2**53, max_points=2, session=session)


def test_names_are_in_the_order_of_their_characters(world, running):
    names = ["Z", "a", "_", "~", "é", "val/b", "val/B", "val", "val0", "\U0001f600", "\uffee"]
    with world.database.write() as session:
        metrics.record(running, [Point(name, 1, 1, 0.5) for name in names], session=session)
        for name in names:
            outputs.record(running, kind="map", name=name, key="k", sha256="0" * 64, num_bytes=1, session=session)
    with world.database.read() as session:
        assert metrics.names(running.job_id, session=session) == sorted(names)
        assert list(metrics.latest(running.job_id, session=session)) == sorted(names)
        assert [row.name for row in outputs.of_job(running.job_id, session=session)] == sorted(names)


@pytest.mark.parametrize(
    ("search", "found"),
    [("ärger", ["ÄRGER 100%"]), ("100%", ["ÄRGER 100%"]), ("A_B", ["xa_by"]), ("%", ["ÄRGER 100%"]), ("\\", [])],
)
def test_names_are_searched_in_any_case_and_as_they_are(world, search, found):
    for name in ("ÄRGER 100%", "xa_by", "xaby"):
        world.submit(world.spec(name=name))
    with world.database.read() as session:
        assert [job.name for job in jobs.page(search=search, session=session)] == found


def test_times_are_the_same_instant_whatever_the_zone(world, running):
    at = datetime(2024, 3, 31, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    with world.database.write() as session:
        session.get_one(Job, running.job_id).ended_at = at
    with world.database.write() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SET LOCAL TIME ZONE 'America/New_York'"))
        read = session.get_one(Job, running.job_id, populate_existing=True).ended_at
    assert (read, read.utcoffset(), read.microsecond) == (at, timedelta(0), 123456)
    with world.database.write() as session:
        session.get_one(Job, running.job_id).ended_at = datetime(2024, 1, 1)
        with pytest.raises(StatementError, match="no time zone"):
            session.flush()
        session.rollback()
    assert world.job(running.job_id).ended_at == at.astimezone(UTC)


def test_a_json_document_comes_back_as_it_was(world):
    deep = {"é": [1, 1.0, 2**53, True, None, "", {"": {}}], "a": 0.1 + 0.2}
    with world.database.write() as session:
        workers.register("w", hostname="h", pid=1, queues=[], device=deep, session=session)
    with world.database.read() as session:
        assert session.get_one(Worker, "w").device == deep
