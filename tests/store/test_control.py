"""Pause, resume, retry, priority, delete; and what becomes of the baseline twin, of files and of figures."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from sqlalchemy import func, select

from store import checkpoints, claims, control, deletion, jobs, logs, metrics, outputs, resume_states, sweeps, workers
from store.db import Database
from store.errors import JobInUse, NotFound, TeacherNotReady
from store.metrics import Point
from store.models import Attempt, LogChunk
from store.states import NotPossible, Outcome, State


def ask(world, what, job_id, **options):
    with world.database.write() as session:
        return what(job_id, session=session, **options)


def pause(world, job_id):
    return ask(world, control.request_pause, job_id)


def resume(world, job_id):
    return ask(world, control.request_resume, job_id)


def retry(world, job_id, *, fresh=False):
    return ask(world, control.request_retry, job_id, fresh=fresh)


def cancel(world, job_id):
    return ask(world, jobs.request_cancel, job_id)


def finish(world, claim, outcome=Outcome.FAILED, **how):
    with world.database.write() as session:
        return claims.finish(claim, outcome, session=session, **how)


def write_everything(world, claim, *, step=10, ap=0.5):
    """What an attempt leaves: a state, a checkpoint, a file, metrics, a log, a warning."""
    key = f"jobs/{claim.job_id}/attempt-{claim.attempt}"
    with world.database.write() as session:
        metrics.record(claim, [Point("val/AP", step, 1, ap), Point("loss/total", step, 1, 1.0)], session=session)
        resume_states.record(claim, step=step, epoch=1, key=f"{key}/resume/s", session=session)
        file = {"sha256": "0" * 64, "num_bytes": 1, "session": session}
        checkpoints.record(
            claim, name="best", file_format="safetensors", key=f"{key}/best", step=step, epoch=1, ap=ap, **file
        )
        outputs.record(claim, kind="map", name="m.png", key=f"{key}/m.png", **file)
        claims.record_progress(
            claim, step=step, epoch=1, eta_seconds=1.0, progress={"phase": "training"}, session=session
        )
        claims.add_warning(claim, code="teacher_unmatched", detail="of the training", session=session)
        logs.append(claim, "words\n", cap_bytes=1 << 20, session=session)


def test_a_waiting_job_and_its_twin_are_paused_at_once_and_claimed_by_nobody(world):
    job = world.submit(world.distillation())
    pause(world, job.id)
    pause(world, job.id)  # twice is no error
    for job_id in (job.id, job.baseline_job_id):
        row = world.job(job_id)
        assert (row.state, row.status_reason, world.claim(job_id)) == (State.PAUSED, "user", None)
    asked = resume(world, job.id)
    assert [one.id for one in asked.queued] == [job.id, job.baseline_job_id]
    assert (world.job(job.id).status_reason, world.state(job.baseline_job_id)) == ("resumed", State.QUEUED)
    assert resume(world, job.id).queued == []
    assert world.claim(job.id) is not None


def test_a_twin_can_be_paused_alone_and_one_that_has_ended_is_left_alone(world):
    job = world.submit(world.distillation())
    pause(world, job.baseline_job_id)
    assert (world.state(job.id), world.state(job.baseline_job_id)) == (State.QUEUED, State.PAUSED)
    cancel(world, job.baseline_job_id)
    pause(world, job.id)
    assert world.state(job.baseline_job_id) is State.CANCELLED


@pytest.mark.parametrize("end", ["hand_back", "crash", "silence"])
def test_a_running_job_is_pausing_until_its_worker_lets_go_however_that_comes(world, running, end):
    assert pause(world, running.job_id).state is State.PAUSING
    with world.database.write() as session:
        assert claims.renew(running, lease_seconds=20, session=session) is State.PAUSING
        if end == "hand_back":
            claims.hand_back(running, reason="paused", detail="in 2 s", session=session)
        elif end == "crash":
            claims.crashed(running, reason="child_crashed", session=session)
    if end == "silence":
        assert world.expire(running.job_id) is State.PAUSED
    job = world.job(running.job_id)
    assert (job.state, job.status_reason, job.lease_token, job.worker_id) == (State.PAUSED, "user", None, None)
    with world.database.read() as session:
        reason = session.get_one(Attempt, (job.id, 1)).reason
    assert reason == {"hand_back": "paused", "crash": "child_crashed", "silence": "worker_lost"}[end]


def test_a_training_that_ends_while_it_is_to_pause_has_its_result(world, running):
    pause(world, running.job_id)
    assert finish(world, running, Outcome.SUCCEEDED) is State.SUCCEEDED


@pytest.mark.parametrize("begun", [True, False])
def test_a_job_that_is_resumed_before_it_was_paused_goes_on_and_loses_nothing(world, begun):
    job_id = world.submit().id
    claim = world.start(job_id) if begun else world.claim(job_id)
    pause(world, job_id)
    assert resume(world, job_id).queued == []
    assert world.state(job_id) is (State.RUNNING if begun else State.STARTING)
    with world.database.write() as session:  # the worker had asked the training to stop by then
        assert claims.hand_back(claim, reason="paused", session=session) is State.QUEUED
    job = world.job(job_id)
    assert (job.status_reason, job.last_rung_at) == ("resumed", None)


def test_what_is_not_possible_says_what_is(world, running):
    with pytest.raises(NotPossible, match="is running, so retry is not possible; possible: pause, cancel"):
        retry(world, running.job_id)
    with pytest.raises(NotPossible, match="delete is not possible; cancel it first"):
        ask(world, deletion.delete, running.job_id)
    cancel(world, running.job_id)
    for what in (pause, resume):
        with pytest.raises(NotPossible, match="is cancelling"):
            what(world, running.job_id)
    with world.database.write() as session:
        claims.hand_back(running, session=session)
    for what in (pause, resume):
        with pytest.raises(NotPossible, match=r"has ended: cancelled, .*; possible: retry, delete"):
            what(world, running.job_id)
    with pytest.raises(NotPossible, match="possible: retry, delete"):
        ask(world, control.set_priority, running.job_id, priority=1)
    with pytest.raises(NotFound):
        pause(world, "000000000000")


def test_a_retry_goes_on_from_the_newest_state_and_forgives_what_failed_before(world):
    job = world.submit(world.distillation(resources={"max_attempts": 1}))
    claim = world.start(job.id)
    write_everything(world, claim)
    assert world.expire(job.id) is State.FAILED
    asked = retry(world, job.id)
    assert ([one.id for one in asked.queued], asked.outdated) == ([job.id], []), "its twin still waits by itself"
    kept = world.job(job.id)
    assert (kept.state, kept.status_reason, kept.step, kept.best_ap) == (State.QUEUED, "retried", 10, 0.5)
    assert (kept.ended_at, kept.worker_id, kept.progress) == (None, None, None)
    with world.database.read() as session:
        assert resume_states.keys(job.id, session=session) == [f"jobs/{job.id}/attempt-1/resume/s"]
        assert [row.attempt for row in checkpoints.of_job(job.id, session=session)] == [1]
    second = world.start(job.id, resumed_from_step=10)
    assert second.attempt == 2
    assert world.expire(job.id) is State.FAILED, "one more failure is one of one"
    assert "1 of 1 attempts" in world.job(job.id).detail


def test_a_fresh_retry_leaves_nothing_that_could_be_taken_for_its_result(world, running):
    write_everything(world, running)
    finish(world, running, reason="non_finite_loss")
    asked = retry(world, running.job_id, fresh=True)
    assert asked.outdated == [f"jobs/{running.job_id}/attempt-1"]
    job = world.job(running.job_id)
    assert (job.step, job.epoch, job.best_ap, job.warnings) == (0, 0, None, [])
    with world.database.read() as session:
        assert resume_states.keys(job.id, session=session) == []
        assert checkpoints.of_job(job.id, session=session) == outputs.of_job(job.id, session=session) == []
        assert metrics.latest(job.id, session=session) == {}
        assert metrics.read(job.id, "val/AP", session=session) == []
        assert "words" in logs.read(job.id, session=session).text, "what was said stays"
    second = world.start(job.id)
    write_everything(world, second, step=5, ap=0.2)
    assert finish(world, second, Outcome.SUCCEEDED) is State.SUCCEEDED
    with world.database.read() as session:
        assert [sample.step for sample in metrics.read(job.id, "val/AP", session=session)] == [5]
    assert world.job(job.id).best_ap == 0.2


def test_a_retry_without_any_state_begins_anew(world, running):
    with world.database.write() as session:
        metrics.record(running, [Point("val/AP", 3, 1, 0.9)], session=session)
    finish(world, running, reason="out_of_memory")
    assert retry(world, running.job_id).outdated == [f"jobs/{running.job_id}/attempt-1"]
    assert world.job(running.job_id).best_ap is None


def test_a_cancelled_pair_is_retried_together_and_a_twin_that_succeeded_keeps_its_result(world):
    job = world.submit(world.distillation())
    cancel(world, job.id)
    assert len(retry(world, job.id).queued) == 2
    finish(world, world.start(job.baseline_job_id), Outcome.SUCCEEDED)
    cancel(world, job.id)
    assert [one.id for one in retry(world, job.id, fresh=True).queued] == [job.id]
    assert world.state(job.baseline_job_id) is State.SUCCEEDED


@pytest.fixture
def teacher(world):
    """A job that has succeeded, with a checkpoint."""
    claim = world.start(world.submit().id)
    write_everything(world, claim)
    finish(world, claim, Outcome.SUCCEEDED)
    return claim.job_id


def test_the_teacher_of_a_job_that_has_not_ended_cannot_be_deleted(world, teacher):
    taught = world.submit(world.spec(teacher={"weights": {"job": teacher}}, method="tid", baseline=False))
    begun = world.submit(world.spec(student={"detector": "fcos_resnet18_small", "weights": {"job": teacher}}))
    with pytest.raises(JobInUse, match=f"{taught.id}, {begun.id}"):
        ask(world, deletion.delete, teacher)
    cancel(world, taught.id)
    with pytest.raises(JobInUse, match=begun.id):
        ask(world, deletion.delete, teacher)
    cancel(world, begun.id)
    assert ask(world, deletion.delete, teacher) == f"jobs/{teacher}"
    assert world.job(taught.id).teacher_job_id is None
    for student in (taught, begun):
        with pytest.raises(TeacherNotReady, match=f"job {teacher}, which is gone"):
            retry(world, student.id)


def test_a_job_cannot_be_deleted_while_another_that_begins_with_it_is_being_submitted(world, teacher, database_url):
    """The weights of a student are no foreign key: the one who submits holds the row until its commit."""
    begun = world.spec(student={"detector": "fcos_resnet18_small", "weights": {"job": teacher}})

    def delete() -> str:
        database = Database(database_url)
        try:
            with database.write() as session:
                return deletion.delete(teacher, session=session)
        finally:
            database.close()

    with ThreadPoolExecutor(1) as pool:
        with world.database.write() as session:
            created = jobs.create(begun, dataset_id=world.dataset_id, session=session)
            deleting = pool.submit(delete)
            assert not wait([deleting], timeout=0.5).done, "it waits for the other"
        with pytest.raises(JobInUse, match=created.job.id):
            deleting.result()


def test_a_deleted_job_takes_its_rows_along_and_leaves_its_twin(world):
    job = world.submit(world.distillation())
    claim = world.start(job.id)
    write_everything(world, claim)
    finish(world, claim, reason="non_finite_loss")
    ask(world, deletion.delete, job.id)
    with pytest.raises(NotFound):
        world.job(job.id)
    with world.database.read() as session:
        assert session.scalar(select(func.count()).select_from(LogChunk)) == 0
    twin = world.job(job.baseline_job_id)
    assert (twin.twin_of, twin.state) == (None, State.QUEUED)
    pause(world, twin.id)
    cancel(world, twin.id)
    ask(world, deletion.delete, twin.id)


def test_a_sweep_without_jobs_has_ended(world):
    with world.database.write() as session:
        planned = [sweeps.Planned(world.spec(), "point", "a", {}, None, world.dataset_id) for _ in range(2)]
        sweep = sweeps.create("s", {}, planned, session=session).sweep
        first, second = (job.id for job in sweeps.jobs_of(sweep.id, session=session))
    pause(world, first)
    ask(world, sweeps.request_cancel, sweep.id)
    assert (world.state(first), world.state(second)) == (State.CANCELLED, State.CANCELLED)
    for job_id in (first, second):
        ask(world, deletion.delete, job_id)
    with world.database.read() as session:
        assert sweeps.state_of(sweeps.counts([sweep.id], session=session)[sweep.id]) == "cancelled"


def next_job(database: Database, worker_id="w", queues=("default",)):
    with database.write() as session:
        claim = claims.claim_next(worker_id, queues, lease_seconds=20, session=session)
    return None if claim is None else claim.job_id


def test_the_best_job_of_the_workers_queues_is_taken_first(world):
    old, new, urgent = (world.submit(world.spec(resources={"priority": p})).id for p in (5, 5, 2))
    big = world.submit(world.spec(resources={"queue": "big", "priority": 0})).id
    late = world.submit(world.distillation())
    for job_id in (late.id, late.baseline_job_id):
        assert world.job(job_id).priority == 5
    ask(world, control.set_priority, late.id, priority=1)
    assert world.job(late.baseline_job_id).priority == 1
    order = [late.id, late.baseline_job_id, urgent, old, new, None]
    assert [next_job(world.database) for _ in order] == order
    assert next_job(world.database, queues=("default", "big")) == big


def test_workers_that_ask_at_once_get_one_job_each(world, database_url):
    waiting = {world.submit().id for _ in range(12)}

    def take(number: int) -> list[str | None]:
        database = Database(database_url)
        try:
            return [next_job(database, f"w{number}") for _ in range(3)]
        finally:
            database.close()

    with ThreadPoolExecutor(4) as pool:
        taken = [job_id for found in pool.map(take, range(4)) for job_id in found]
    assert sorted(taken) == sorted(waiting)


def test_a_drained_worker_claims_nothing_even_after_a_new_start(world):
    def register():
        with world.database.write() as session:
            workers.register("w", hostname="h", pid=1, queues=["default", "big"], device={}, session=session)

    def told():
        with world.database.read() as session:
            idle = workers.idle(heartbeat_seconds=5, session=session)
            return workers.draining("w", session=session), {queue for worker in idle for queue in worker.queues}

    job_id = world.submit().id
    register()
    ask(world, workers.drain, "w", draining="wait")
    register()
    assert told() == ("wait", set())
    assert next_job(world.database) is None
    assert world.claim(job_id, "w") is None
    ask(world, workers.undrain, "w")
    assert told() == (None, {"default", "big"})
    assert world.job(job_id).last_rung_at is None, "announced in the next round"
    assert next_job(world.database) == job_id
    with pytest.raises(NotFound, match="no worker 'nobody'"):
        ask(world, workers.drain, "nobody", draining="now")
