"""The guard: a transaction locks and writes the row of its job once, and never longer than it holds it."""

import pytest
from sqlalchemy import event, text, update

from store import claims, logs, metrics
from store.errors import LeaseLost
from store.fencing import guard
from store.models import Job
from store.states import Outcome


def test_a_report_writes_the_row_of_its_job_twice(world, running):
    writes: list[str] = []

    def note(_connection, _cursor, statement, *_):
        if statement.startswith("UPDATE jobs"):
            writes.append(statement.split("RETURNING")[0])

    event.listen(world.database.engine, "before_cursor_execute", note)
    with world.database.write() as session:
        claims.renew(running, lease_seconds=20, session=session)
        metrics.record(running, [metrics.Point("loss/total", 7, 1, 0.5)], session=session)
        claims.record_progress(running, step=7, epoch=1, eta_seconds=None, progress={}, session=session)
        logs.append(running, "a line\n", cap_bytes=4096, session=session)
    assert [("lease_expires_at" in write, "step" in write) for write in writes] == [(True, False), (False, True)]
    assert world.job(running.job_id).step == 7


def test_a_report_writes_into_no_index(world, running):
    if world.database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite keeps no count of it")
    counts = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'jobs'")
    with world.database.write() as session:
        before = session.execute(counts).one()  # of what this connection has not told the server yet
        claims.renew(running, lease_seconds=20, session=session)
        claims.record_progress(running, step=7, epoch=1, eta_seconds=None, progress={}, session=session)
        after = session.execute(counts).one()
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 2]


def test_whoever_let_go_writes_no_more_in_the_same_transaction(world, running):
    with world.database.write() as session:
        claims.finish(running, Outcome.SUCCEEDED, session=session)
        with pytest.raises(LeaseLost):
            logs.append(running, "one more line\n", cap_bytes=4096, session=session)


def test_a_session_asks_again_in_its_next_transaction(world, running):
    with world.database.writer() as session:
        guard(running, session=session)
        session.commit()
        with world.database.write() as another:
            another.execute(update(Job).where(Job.id == running.job_id).values(lease_token="0" * 32))
        with pytest.raises(LeaseLost):
            guard(running, session=session)


def test_what_was_locked_in_a_savepoint_is_locked_again_after_it(world, running):
    with world.database.write() as session:
        with session.begin_nested() as savepoint:
            guard(running, session=session)
            session.execute(update(Job).where(Job.id == running.job_id).values(lease_token="0" * 32))
            session.expire_all()
            with pytest.raises(LeaseLost):
                guard(running, session=session)
            savepoint.rollback()
        assert guard(running, session=session).lease_token == running.token


def test_another_claim_is_not_covered_by_the_first(world, running):
    another = world.start(world.submit().id, worker_id="worker-2")
    with world.database.write() as session:
        assert guard(running, session=session).id == running.job_id
        assert guard(another, session=session).id == another.job_id
