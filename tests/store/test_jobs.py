"""Submitting, reading and cancelling."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from store import checkpoints, claims, jobs
from store.db import Database
from store.errors import IdempotencyConflict, NotFound, TeacherNotReady
from store.states import IllegalTransition, Outcome, State
from tid_core.spec import JobSpec


def test_a_job_keeps_its_whole_spec_and_gets_a_twin_behind_it(world):
    spec = world.distillation(name="r18", training={"epochs": 7}, resources={"queue": "big", "max_attempts": 5})
    job = world.submit(spec)
    twin = world.job(job.baseline_job_id)
    assert JobSpec.model_validate(job.spec) == spec
    assert JobSpec.model_validate(twin.spec) == spec.baseline_twin()
    assert (twin.twin_of, twin.baseline_job_id, twin.method, twin.queue) == (job.id, None, "none", "big")
    assert (job.epochs, job.max_attempts, job.method, job.state) == (7, 5, "tid", State.QUEUED)
    assert job.created_at < twin.created_at


def test_a_job_without_a_baseline_has_no_twin(world):
    assert world.submit(world.distillation(baseline=False)).baseline_job_id is None
    with world.database.read() as session:
        assert len(jobs.page(session=session)) == 1


def test_one_key_makes_one_job_however_many_ask_at_once(world, database_url):
    spec = world.distillation()

    def submit(_: int) -> tuple[str, bool]:
        database = Database(database_url)
        try:
            with database.write() as session:
                job, replayed = jobs.create(
                    spec, dataset_id=world.dataset_id, session=session, idempotency_key="k", request_hash="h"
                )
                return job.id, replayed
        finally:
            database.close()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(16)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert [replayed for _, replayed in answers].count(False) == 1
    with world.database.read() as session:
        assert len(jobs.page(session=session)) == 2  # the job and its twin


def test_a_key_is_not_good_for_another_request(world):
    first = world.submit(idempotency_key="k", request_hash="h1")
    with pytest.raises(IdempotencyConflict, match=first.id):
        world.submit(idempotency_key="k", request_hash="h2")


def test_pages_hold_each_job_once_while_others_are_added(world):
    submitted = [world.submit().id for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        with world.database.read() as session:
            rows = jobs.page(session=session, limit=3, after=cursor)
        if not rows:
            break
        seen += [row.id for row in rows]
        cursor = jobs.Cursor(rows[-1].created_at, rows[-1].id)
        world.submit()
    assert sorted(seen) == sorted(submitted)


def test_filters_take_names_as_they_are_written(world):
    for name in ("50% off", "50 on", "A_b"):
        world.submit(world.spec(name=name))
    cancelled = world.submit(world.distillation(name="x", baseline=False))

    def found(**filters: object) -> set[str]:
        with world.database.read() as session:
            return {job.name for job in jobs.page(session=session, **filters)}

    with world.database.write() as session:
        jobs.request_cancel(cancelled.id, session=session)
    assert found(search="0%") == {"50% off"}
    assert found(search="a_B") == {"A_b"}
    assert found(states=[State.CANCELLED]) == found(methods=["tid"]) == {"x"}
    assert found(queue="elsewhere") == set()


def test_cancelling_a_waiting_job_ends_it_and_its_twin(world):
    job = world.submit(world.distillation())
    with world.database.write() as session:
        jobs.request_cancel(job.id, session=session)
    for job_id in (job.id, job.baseline_job_id):
        ended = world.job(job_id)
        assert (ended.state, ended.status_reason) == (State.CANCELLED, "user")
        assert ended.ended_at is not None
        assert world.claim(job_id) is None


@pytest.mark.parametrize("end", ["finish", "hand_back", "crash", "silence"])
def test_a_running_job_that_was_cancelled_ends_cancelled_however_it_stops(world, running, end):
    with world.database.write() as session:
        assert jobs.request_cancel(running.job_id, session=session).state is State.CANCELLING
        jobs.request_cancel(running.job_id, session=session)
    with world.database.write() as session:
        assert claims.renew(running, lease_seconds=20, session=session) is State.CANCELLING
        if end == "finish":
            claims.finish(running, Outcome.SUCCEEDED, session=session)
        elif end == "hand_back":
            claims.hand_back(running, session=session)
        elif end == "crash":
            claims.crashed(running, reason="child_crashed", session=session)
    if end == "silence":
        assert world.expire(running.job_id) is State.CANCELLED
    job = world.job(running.job_id)
    assert (job.state, job.status_reason, job.lease_token) == (State.CANCELLED, "user", None)


def test_an_ended_job_cannot_be_cancelled(world, running):
    with world.database.write() as session:
        claims.finish(running, Outcome.SUCCEEDED, session=session)
    with pytest.raises(IllegalTransition, match="has ended"), world.database.write() as session:
        jobs.request_cancel(running.job_id, session=session)
    with pytest.raises(NotFound), world.database.write() as session:
        jobs.request_cancel("000000000000", session=session)


def test_only_a_job_that_succeeded_teaches(world, running):
    def teacher(name: str = "best") -> str:
        with world.database.read() as session:
            return jobs.teacher_checkpoint(running.job_id, name, session=session).key

    with world.database.write() as session:
        checkpoints.record(
            running, name="best", file_format="safetensors", key="k", sha256="0" * 64, num_bytes=1, step=1, epoch=1,
            ap=0.5, session=session,
        )  # fmt: skip
    with pytest.raises(TeacherNotReady, match="is running"):
        teacher()
    with world.database.write() as session:
        claims.finish(running, Outcome.SUCCEEDED, session=session)
    assert teacher() == "k"
    with pytest.raises(TeacherNotReady, match="it has: best"):
        teacher("epoch-3")
    weights = {"job": running.job_id}
    student = world.submit(world.spec(teacher={"weights": weights}, method="tid", baseline=False))
    assert student.teacher_job_id == running.job_id
    with pytest.raises(NotFound):
        world.submit(world.spec(teacher={"weights": {"job": "nobody"}}))
