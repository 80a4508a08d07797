"""Jobs of several nodes: what their owner and those beside it do when one does not come, leaves or cannot begin."""

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from store import claims, seats, workers
from store.fencing import Claim
from store.models import Seat
from store.seats import Seated
from store.states import State
from worker.addresses import NoAddress, own_address, reserve_port
from worker.seat import attend
from worker.settings import WorkerSettings
from worker.shutdown import StopFlag

BESIDE = "worker-2"


@pytest.fixture
def pair(lite: Any) -> Any:
    """A world with two workers that are idle."""
    with lite.database.write() as session:
        for name in (lite.settings.worker_id, BESIDE):
            workers.register(name, hostname="h", pid=1, queues=["default"], device={}, session=session)
    return lite


def submit(world: Any) -> str:
    return str(world.submit(resources={"nodes": 2, "max_attempts": 2}))


def beside(world: Any, **changes: Any) -> WorkerSettings:
    settings: WorkerSettings = world.settings.model_copy(update={"worker_id": BESIDE, **changes})
    return settings


def own(world: Any, job_id: str) -> Claim:
    """Owned by worker-1, of which nothing else is there."""
    with world.database.write() as session:
        claim = claims.claim(job_id, "worker-1", lease_seconds=60, session=session)
    assert claim is not None
    return claim


def seat(world: Any, job_id: str) -> Seat:
    with world.database.read() as session:
        return session.scalars(select(Seat).where(Seat.job_id == job_id)).one()


def test_an_owner_to_whom_nobody_comes_hands_the_job_back(pair):
    job_id = submit(pair)
    pair.settings = pair.settings.model_copy(update={"nodes_seconds": 0.5})
    job = pair.run(job_id)
    assert (job.state, job.status_reason) == (State.QUEUED, "nodes_missing")
    assert job.detail == "1 of 2 workers were there after 0.5 s (TID_NODES_SECONDS)"
    assert [attempt.outcome for attempt in pair.attempts(job_id)] == ["handed_back"]


@pytest.mark.parametrize(
    ("reason", "state", "outcome"),
    [
        ("out_of_memory", State.FAILED, "failed"),
        ("child_killed", State.QUEUED, "crashed"),
        ("worker_drained", State.QUEUED, "handed_back"),
    ],
)
def test_why_a_node_is_gone_is_why_the_attempt_ends(pair, reason, state, outcome):
    job_id = submit(pair)
    thread = pair.start(job_id)

    def take_and_leave() -> Seated | None:
        with pair.database.write() as session:
            seated = seats.take_next(BESIDE, ["default"], lease_seconds=60, session=session)
            if seated is not None:
                seats.leave(seated, reason=reason, detail="a sentence", session=session)
        return seated

    pair.wait_for(take_and_leave)
    thread.join()
    job = pair.job(job_id)
    assert (job.state, job.status_reason) == (state, reason)
    assert job.detail == f"node 1 ({BESIDE}): a sentence"
    assert [attempt.outcome for attempt in pair.attempts(job_id)] == [outcome]


def test_what_keeps_a_node_from_beginning_is_told_in_its_seat(pair, tmp_path):
    job_id = submit(pair)
    own(pair, job_id)
    assert attend(beside(pair, artifacts=tmp_path / "elsewhere"), StopFlag()) is True
    left = seat(pair, job_id)
    assert (left.reason, left.token, left.worker_id) == ("dataset_invalid", None, BESIDE)
    assert "index of dataset digits" in (left.detail or "")
    assert attend(beside(pair), StopFlag()) is None, "a seat that was left is nobody's"


def test_an_owner_elsewhere_that_is_reached_at_loopback_is_told_what_is_wrong(pair):
    job_id = submit(pair)
    claim = own(pair, job_id)
    with pair.database.write() as session:
        workers.register("worker-1", hostname="far", pid=1, queues=["default"], device={}, session=session)
        seats.announce(claim, "127.0.0.1", 29500, session=session)
    assert attend(beside(pair), StopFlag()) is True
    left = seat(pair, job_id)
    told = "node 0, on far, says that it is reached at 127.0.0.1, which is h itself: set TID_NODE_ADDRESS of its worker"
    assert (left.reason, left.detail) == ("rank_lost", told)


def test_who_waits_for_the_owner_leaves_when_told_to_and_when_the_attempt_is_over(pair):
    job_id = submit(pair)
    found: list[bool | None] = []

    def sit(stop: StopFlag) -> tuple[threading.Thread, Path]:
        thread = threading.Thread(target=lambda: found.append(attend(beside(pair), stop)), daemon=True)
        thread.start()
        scratch = pair.settings.home / "work" / job_id / f"attempt-{pair.job(job_id).attempt}-node-1"
        pair.wait_for(lambda: (scratch / "resume-from").exists())
        return thread, scratch

    claim, stop = own(pair, job_id), StopFlag()
    thread, scratch = sit(stop)
    stop.set()
    thread.join()
    assert (seat(pair, job_id).reason, scratch.exists()) == ("worker_stopped", False)
    with pair.database.write() as session:
        claims.hand_back(claim, session=session)
    claim = own(pair, job_id)
    thread, scratch = sit(StopFlag())
    with pair.database.write() as session:
        claims.hand_back(claim, session=session)
    thread.join()
    assert not scratch.exists()
    assert found == [True, True]


def test_the_address_is_that_of_the_route_to_the_database(tmp_path):
    def settings(**values: Any) -> WorkerSettings:
        return WorkerSettings(home=tmp_path, **values)

    assert own_address(settings()) == "127.0.0.1"
    assert own_address(settings(database_url="postgresql://postgres@/x?host=/run/pg")) == "127.0.0.1"
    assert own_address(settings(database_url="postgresql://postgres@127.0.0.9/x")) == "127.0.0.1"
    assert own_address(settings(), towards="127.0.0.9") == "127.0.0.1"
    assert own_address(settings(node_address="127.0.0.2")) == "127.0.0.2"
    with pytest.raises(NoAddress, match=r"TID_NODE_ADDRESS: 'no\.such\.invalid' is no host"):
        own_address(settings(node_address="no.such.invalid"))


def test_a_port_of_the_range_is_kept_and_one_that_is_taken_passed_over():
    with reserve_port("127.0.0.2", None) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        with pytest.raises(NoAddress, match=f"a port of TID_NODE_PORTS {port}-{port} cannot be had at 127.0.0.2"):
            reserve_port("127.0.0.2", range(port, port + 1))
        with reserve_port("127.0.0.2", range(port, min(port + 50, 65536))) as other:
            assert other.getsockname()[1] > port
    with pytest.raises(NoAddress, match=r"cannot be had at 192\.0\.2\.77"):
        reserve_port("192.0.2.77", None)


def test_ports_are_a_range():
    assert WorkerSettings(node_ports="29500-29501").port_range == range(29500, 29502)
    assert WorkerSettings().port_range is None
    for wrong in ("29500", "2-1", "0-9", "1-65536"):
        with pytest.raises(ValueError, match="such as 29500-29599"):
            WorkerSettings(node_ports=wrong)
