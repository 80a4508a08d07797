"""Jobs that are submitted together: what is stored, what they share, and how they end."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from store import claims, jobs, sweeps
from store.db import Database
from store.errors import IdempotencyConflict, NotFound
from store.models import Job, Sweep
from store.reaper import due_doorbells
from store.states import Outcome, State
from store.sweeps import Planned
from tid_core.sweep import SweepSpec, expand

AXES: dict[str, Any] = {"method": ["fitnet", "tid"], "training.seed": [1, 0]}


def planned(world, axes: dict[str, Any] = AXES) -> tuple[SweepSpec, list[Planned]]:
    base = world.distillation().model_dump(mode="json", exclude={"name", "method"})
    sweep = SweepSpec.model_validate({"name": "s", "base": base, "axes": axes})
    return sweep, [
        Planned(job.spec, job.role, job.label, job.values, job.baseline, world.dataset_id) for job in expand(sweep)
    ]


def create(world, axes: dict[str, Any] = AXES, **options: Any) -> Sweep:
    spec, rows = planned(world, axes)
    with world.database.write() as session:
        return sweeps.create(spec.name, spec.model_dump(), rows, session=session, **options).sweep


def jobs_of(world, sweep: Sweep) -> list[Job]:
    with world.database.read() as session:
        return sweeps.jobs_of(sweep.id, session=session)


def state_of(world, sweep: Sweep) -> str:
    with world.database.read() as session:
        return sweeps.state_of(sweeps.counts([sweep.id], session=session)[sweep.id])


def end(world, job_id: str, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    claim = world.start(job_id)
    with world.database.write() as session:
        claims.finish(claim, outcome, session=session)


def test_all_jobs_are_queued_in_order_and_share_the_baseline_of_their_seed(world):
    sweep = create(world)
    rows = jobs_of(world, sweep)
    assert [job.name for job in rows] == [
        "s baseline seed=1",
        "s fitnet seed=1",
        "s tid seed=1",
        "s baseline seed=0",
        "s fitnet seed=0",
        "s tid seed=0",
    ]
    first, second = rows[0].id, rows[3].id
    assert [job.baseline_job_id for job in rows] == [None, first, first, None, second, second]
    assert {job.twin_of for job in rows} == {None}
    assert [job.sweep_role for job in rows[:2]] == ["baseline", "point"]
    assert (rows[2].sweep_label, rows[2].sweep_point) == ("tid", {"method": "tid", "training.seed": 1})
    with world.database.write() as session:
        rung = due_doorbells({"default"}, ring_seconds=-1, session=session)
    assert [doorbell.job_id for doorbell in rung] == [job.id for job in rows]


def test_what_was_asked_for_is_kept_in_its_order(world):
    axes = {"training.seed": [0], "loss": [{"medium": 1, "low": 0.5}, {"high": 3}]}
    sweep = create(world, axes)
    with world.database.read() as session:
        stored = sweeps.get(sweep.id, session=session).spec
    assert list(stored["axes"]) == ["training.seed", "loss"]
    assert list(stored["axes"]["loss"][0]) == ["medium", "low"]
    assert list(jobs_of(world, sweep)[1].sweep_point["loss"]) == ["medium", "low"]


def test_jobs_are_found_by_their_sweep(world):
    create(world)
    sweep = create(world)
    world.submit()
    with world.database.read() as session:
        found = jobs.page(session=session, sweep_id=sweep.id)
        assert {job.sweep_id for job in found} == {sweep.id}
        assert len(found) == 6
        assert jobs.page(session=session, sweep_id="nobody") == []


def test_one_key_makes_one_sweep_however_many_ask_at_once(world, database_url):
    spec, rows = planned(world)

    def submit(_: int) -> tuple[str, bool]:
        database = Database(database_url)
        try:
            with database.write() as session:
                sweep, replayed = sweeps.create(
                    spec.name, spec.model_dump(), rows, session=session, idempotency_key="k", request_hash="h"
                )
                return sweep.id, replayed
        finally:
            database.close()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(submit, range(8)))
    assert len({sweep_id for sweep_id, _ in answers}) == 1
    assert [replayed for _, replayed in answers].count(False) == 1
    with world.database.read() as session:
        assert len(jobs.page(session=session)) == 6
    with pytest.raises(IdempotencyConflict, match=f"sweep {answers[0][0]}"):
        create(world, idempotency_key="k", request_hash="other")


def test_a_job_that_cannot_be_stored_takes_the_sweep_with_it(world):
    spec, rows = planned(world)
    lost = world.spec(teacher={"weights": {"job": "nobody"}})
    with pytest.raises(NotFound), world.database.write() as session:
        sweeps.create(spec.name, {}, [*rows, rows[0]._replace(spec=lost)], session=session)
    with world.database.read() as session:
        assert sweeps.page(session=session) == jobs.page(session=session) == []


def test_pages_hold_each_sweep_once_while_others_are_added(world):
    created = [create(world, {"training.seed": [0]}).id for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        with world.database.read() as session:
            rows = sweeps.page(session=session, limit=2, after=cursor)
        if not rows:
            break
        seen += [row.id for row in rows]
        cursor = jobs.Cursor(rows[-1].created_at, rows[-1].id)
        create(world, {"training.seed": [0]})
    assert sorted(seen) == sorted(created)
    with world.database.read() as session:
        assert len(sweeps.page(session=session, search="S")) == 5 + 3
        assert sweeps.page(session=session, search="%") == []


def test_cancelling_one_job_leaves_the_baseline_to_the_others(world):
    baseline, fitnet, tid, *_ = jobs_of(world, create(world))
    with world.database.write() as session:
        jobs.request_cancel(fitnet.id, session=session)
    states = [world.state(job.id) for job in (baseline, fitnet, tid)]
    assert states == [State.QUEUED, State.CANCELLED, State.QUEUED]


def test_a_sweep_is_cancelled_whole_and_twice_is_no_error(world):
    sweep = create(world)
    waiting, running, done, *_ = jobs_of(world, sweep)
    world.start(running.id)
    end(world, done.id)
    other = world.submit()
    for _ in range(2):
        with world.database.write() as session:
            sweeps.request_cancel(sweep.id, session=session)
    assert world.state(waiting.id) is State.CANCELLED
    assert world.state(running.id) is State.CANCELLING
    assert world.state(done.id) is State.SUCCEEDED
    assert world.state(other.id) is State.QUEUED
    with world.database.read() as session:
        counted = sweeps.counts([sweep.id], session=session)[sweep.id]
    assert counted == Counter({State.CANCELLED: 4, State.CANCELLING: 1, State.SUCCEEDED: 1})
    with pytest.raises(NotFound), world.database.write() as session:
        sweeps.request_cancel("000000000000", session=session)


def test_the_state_of_a_sweep_is_that_of_its_jobs(world):
    sweep = create(world, {"training.seed": [0, 1]})
    ids = [job.id for job in jobs_of(world, sweep)]
    assert state_of(world, sweep) == "queued"
    end(world, ids[0])
    assert state_of(world, sweep) == "running"
    end(world, ids[1], Outcome.FAILED)
    end(world, ids[2])
    assert state_of(world, sweep) == "running"
    with world.database.write() as session:
        jobs.request_cancel(ids[3], session=session)
    assert state_of(world, sweep) == "failed"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({State.SUCCEEDED: 3}, "succeeded"),
        ({State.SUCCEEDED: 2, State.CANCELLED: 1}, "cancelled"),
        ({State.CANCELLED: 3}, "cancelled"),
        ({State.CANCELLED: 1, State.FAILED: 1}, "failed"),
        ({State.QUEUED: 2, State.FAILED: 1}, "running"),
        ({State.QUEUED: 2, State.STARTING: 1}, "running"),
        ({State.CANCELLING: 1, State.CANCELLED: 1}, "running"),
    ],
)
def test_every_mixture_of_states_has_a_name(states: dict[State, int], expected: str) -> None:
    assert sweeps.state_of(Counter(states)) == expected
