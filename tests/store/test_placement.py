"""Each job lands only where it fits, waits where nobody has what it wants, and wakes nobody else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, update

from store import claims, control, reaper, waiting, workers
from store.db import Database
from store.models import Job, Worker
from store.placement import Gpus, largest
from store.settings import Settings
from store.waiting import Waiting

HEARTBEAT = 5.0
SignOn = Callable[..., None]


@pytest.fixture
def sign_on(world) -> SignOn:
    """A worker with GPUs of these many GiB; None = a GPU that does not tell, or that trainings cannot use."""

    def sign_on(name: str, *gib: float | None, queue: str = "default", problem: str | None = None) -> None:
        gpus = [{"memory_total_mib": size and int(size * 1024), "problem": problem} for size in gib]
        with world.database.write() as session:
            workers.register(name, hostname="h", pid=1, queues=[queue], device={"gpus": gpus}, session=session)

    return sign_on


def want(world, **resources: Any) -> Job:
    training = {"device": resources.pop("device", "auto")}
    return world.submit(world.spec(resources=resources, training=training))


def take(world, worker_id: str, *queues: str) -> str | None:
    with world.database.write() as session:
        claim = claims.claim_next(worker_id, queues or ("default",), lease_seconds=60, session=session)
    return claim and claim.job_id


def told(world, job: Job) -> Waiting:
    with world.database.read() as session:
        row = session.get_one(Job, job.id)
        return waiting.of_jobs([row], heartbeat_seconds=HEARTBEAT, session=session)[job.id]


def counted(world) -> dict[str, int]:
    with world.database.read() as session:
        found = waiting.reasons(heartbeat_seconds=HEARTBEAT, session=session)
    return {reason: number for reason, number in found.items() if number}


WANTS: tuple[tuple[dict[str, Any], set[str]], ...] = (
    ({}, {"stranger", "cpu", "small", "large", "pair", "mixed", "silent", "broken"}),
    ({"gpus": 0}, {"stranger", "cpu", "small", "large", "pair", "mixed", "silent", "broken"}),
    ({"gpus": 8, "device": "cpu"}, {"stranger", "cpu", "small", "large", "pair", "mixed", "silent", "broken"}),
    ({"device": "cuda"}, {"small", "large", "pair", "mixed", "silent"}),
    ({"gpus": 2}, {"pair", "mixed"}),
    ({"gpus": 3}, set()),
    ({"min_gpu_memory_gib": 20}, {"small", "large", "pair"}),
    ({"min_gpu_memory_gib": 24}, {"large", "pair"}),
    ({"min_gpu_memory_gib": 79.6}, {"large"}),
    ({"min_gpu_memory_gib": 40, "gpus": 2}, {"pair"}),
    ({"min_gpu_memory_gib": 10, "gpus": 2}, {"pair", "mixed"}),
)
FLEET: dict[str, tuple[float | None, ...]] = {
    "cpu": (), "small": (23.99,), "large": (79.65,), "pair": (40, 40), "mixed": (80, 12), "silent": (None,),
}  # fmt: skip


def test_a_job_is_claimed_by_those_alone_that_have_what_it_wants(world, sign_on):
    for name, gpus in FLEET.items():
        sign_on(name, *gpus)
    sign_on("broken", 80, 80, problem="the driver is too old")
    for resources, able in WANTS:
        found = set()
        for name in ("stranger", "broken", *FLEET):
            job = want(world, **resources)
            by_name = world.claim(job.id, name)
            if by_name is None:
                assert take(world, name) is None, "nor when it asks for any"
            else:
                found.add(name)
            with world.database.write() as session:
                session.execute(update(Job).values(state="cancelled", lease_token=None, lease_expires_at=None))
        assert found == able, resources


def test_what_does_not_fit_is_passed_over(world, sign_on):
    sign_on("one", 24)
    sign_on("two", 40, 40)
    wide, plain, deep = want(world, gpus=2, priority=0), want(world), want(world, min_gpu_memory_gib=30)
    assert take(world, "one") == plain.id
    assert take(world, "one") is None
    assert (take(world, "two"), take(world, "two")) == (wide.id, deep.id)


def test_of_two_that_ask_at_once_the_one_that_fits_gets_it(world, sign_on, database_url):
    sign_on("small", 24)
    sign_on("large", 80)
    jobs = {want(world, min_gpu_memory_gib=40).id for _ in range(6)}

    def take_all(name: str) -> list[str]:
        own = Database(database_url)
        found = []
        try:
            for _ in range(8):
                with own.write() as session:
                    claim = claims.claim_next(name, ["default"], lease_seconds=60, session=session)
                found += [claim.job_id] if claim else []
        finally:
            own.close()
        return found

    with ThreadPoolExecutor(2) as pool:
        small, large = pool.map(take_all, ("small", "large"))
    assert (small, set(large)) == ([], jobs)
    with world.database.read() as session:
        assert set(session.scalars(select(Job.worker_id))) == {"large"}


def test_why_it_waits_follows_the_workers(world, sign_on):
    wide, plain = want(world, gpus=2, min_gpu_memory_gib=40, priority=1), want(world)
    assert [told(world, job).position for job in (wide, plain)] == [1, 2]
    assert counted(world) == {"no_worker": 2}
    sign_on("elsewhere", 80, 80, queue="other")
    assert told(world, wide).reason == "no_worker"
    sign_on("cpu")
    assert told(world, wide) == Waiting(
        "no_fitting_worker",
        "no worker of the queue 'default' has 2 GPUs with 40 GiB: "
        "none has a GPU that it can use; start a worker that has",
        None,
    )
    assert told(world, plain) == Waiting("starting_soon", "a worker is free and will take it", 1), "nobody is ahead"
    sign_on("small", 23.99)
    sign_on("many", 16, 16, 16, 16)
    assert told(world, wide).detail == (
        "no worker of the queue 'default' has 2 GPUs with 40 GiB; the largest have 4 with 16 GiB, or 1 with 23.9 GiB: "
        "ask for less, or start a worker that has more"
    )
    assert counted(world) == {"no_fitting_worker": 1, "starting_soon": 1}
    sign_on("pair", 80, 40)
    assert (told(world, wide).reason, told(world, plain).position) == ("starting_soon", 2)
    assert take(world, "pair") == wide.id
    with world.database.write() as session:
        workers.heartbeat("pair", current_job=wide.id, session=session)
    next_one = want(world, gpus=2, min_gpu_memory_gib=40)
    assert told(world, next_one) == Waiting("busy", "1 job ahead, 1 worker with 2 GPUs with 40 GiB busy", 2)
    assert counted(world) == {"busy": 1, "starting_soon": 1}
    with world.database.write() as session:
        workers.drain("pair", "wait", session=session)
    assert told(world, next_one).reason == "all_drained"
    assert "the worker of the queue 'default' with 2 GPUs with 40 GiB" in told(world, next_one).detail


def test_places_are_told_alike_for_one_job_and_for_many(world, sign_on):
    jobs = [want(world, **({"gpus": 4} if number % 2 else {})) for number in range(6)]
    sign_on("pair", 24, 24)
    with world.database.read() as session:
        rows = [session.get_one(Job, job.id) for job in jobs]
        together = waiting.of_jobs(rows, heartbeat_seconds=HEARTBEAT, session=session)
    assert [together[job.id].position for job in jobs] == [1, None, 2, None, 3, None]
    assert [told(world, job) for job in jobs] == [together[job.id] for job in jobs]


def test_the_idle_are_not_counted_twice(world, sign_on):
    sign_on("pair", 24, 24)
    for resources in ({"gpus": 2}, {}, {"gpus": 4}):
        want(world, **resources)
    assert counted(world) == {"starting_soon": 1, "busy": 1, "no_fitting_worker": 1}


@pytest.fixture
def rung(world, tmp_path) -> Callable[[], list[tuple[str, str]]]:
    """A round of the reaper, when everything that was ever announced was long ago: jobs and whom they woke."""

    def rung() -> list[tuple[str, str]]:
        with world.database.write() as session:
            session.execute(
                update(Job).where(Job.last_rung_at.is_not(None)).values(last_rung_at=datetime(2020, 1, 1, tzinfo=UTC))
            )
        bells: list[reaper.Doorbell] = []
        reaper.reap_once(world.database, Settings(home=tmp_path), token="api", ring=bells.append)
        return [(bell.job_id, bell.queue) for bell in bells]

    return rung


def test_a_job_wakes_an_idle_worker_that_fits_and_no_other(world, sign_on, rung):
    wide, plain = want(world, gpus=2), want(world)
    assert (world.job(wide.id).last_rung_at, world.job(plain.id).last_rung_at is None) == (None, False)
    assert rung() == [], "nobody is there"
    sign_on("a", 24)
    assert rung() == [(plain.id, "default")]
    assert world.job(wide.id).last_rung_at is None, "and so it rings as soon as somebody is"
    sign_on("b", 24, 24)
    sign_on("c", 24, 24)
    assert rung() == [(plain.id, "default"), (wide.id, "worker:b")]
    other = want(world, gpus=2)
    again = want(world, gpus=2)
    assert rung() == [(plain.id, "default"), (wide.id, "worker:b"), (other.id, "worker:c")], "one for each"
    with world.database.write() as session:
        for name in ("b", "c"):
            workers.heartbeat(name, current_job="0123456789ab", session=session)
    assert rung() == [(plain.id, "default")], "messages would pile up behind the trainings"
    with world.database.write() as session:
        workers.heartbeat("c", current_job=None, session=session)
    assert rung()[1:] == [(wide.id, "worker:c")]
    with world.database.write() as session:
        control.request_pause(again.id, session=session)
        control.request_resume(again.id, session=session)
    assert world.job(again.id).last_rung_at is None


def test_a_job_for_several_hosts_wakes_as_many(world, sign_on, rung):
    for name in ("a", "b", "c"):
        sign_on(name, 24)
    sign_on("cpu")
    job = want(world, nodes=2, device="cuda")
    assert rung() == [(job.id, "worker:a"), (job.id, "worker:b")]


def test_a_worker_that_is_undrained_is_woken_for_what_fits_it(world, sign_on, rung):
    sign_on("a", 24, 24)
    sign_on("b")
    with world.database.write() as session:
        workers.drain("a", "wait", session=session)
    plain, wide = want(world), want(world, gpus=2)
    assert rung() == [(plain.id, "default")]
    with world.database.write() as session:
        session.execute(update(Job).values(last_rung_at=datetime(2090, 1, 1, tzinfo=UTC)))
        workers.undrain("a", session=session)
    assert {world.job(job.id).last_rung_at for job in (plain, wide)} == {None}
    assert (wide.id, "worker:a") in rung()


def test_a_worker_that_is_started_anew_may_have_other_gpus(world, sign_on):
    sign_on("w", 24)
    sign_on("w", 80, 40)
    with world.database.read() as session:
        assert Gpus.of(session.get_one(Worker, "w")) == (2, 40960)
    job = want(world, gpus=2)
    sign_on("w")
    assert world.claim(job.id, "w") is None


def test_the_largest_leaves_out_what_another_has_more_of():
    def all_of(*had: tuple[int, int]) -> list[Gpus]:
        return largest(Worker(gpus=number, gpu_memory_mib=memory) for number, memory in had)

    assert all_of() == []
    assert all_of((0, 0), (0, 0)) == [(0, 0)]
    assert all_of((1, 9), (0, 0), (2, 4), (1, 4), (2, 3)) == [(2, 4), (1, 9)]
    assert (str(Gpus(0, 0)), str(Gpus(1, 0)), str(Gpus(2, 24570))) == ("no GPU", "1 GPU", "2 GPUs with 23.9 GiB")
