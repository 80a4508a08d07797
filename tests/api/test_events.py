"""Server-sent events over a real connection."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from store import claims, metrics
from store.db import Database
from store.fencing import Claim
from store.metrics import Point
from store.states import Outcome

Submit = Callable[..., dict[str, Any]]
Start = Callable[[str], Claim]
Event = tuple[str, str, Any]


def events_of(response: httpx.Response) -> Iterator[Event]:
    """Name, id and data of each event."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], fields["id"], json.loads(fields["data"])
            fields = {}


def record(database: Database, claim: Claim, step: int, **values: float) -> None:
    with database.write() as session:
        metrics.record(claim, [Point(name, step, 1, value) for name, value in values.items()], session=session)


def finish(database: Database, claim: Claim) -> None:
    with database.write() as session:
        claims.finish(claim, Outcome.SUCCEEDED, session=session)


def listen(server: httpx.Client, job_id: str, last: str | None = None) -> list[Event]:
    headers = {} if last is None else {"Last-Event-ID": last}
    with server.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        return list(events_of(response))


def test_a_listener_hears_a_job_from_queue_to_end(
    server: httpx.Client, submit: Submit, start: Start, database: Database
) -> None:
    job_id = submit()["id"]
    heard: list[Event] = []
    with server.stream("GET", f"/jobs/{job_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["X-Accel-Buffering"] == "no"
        events = events_of(response)
        heard.append(next(events))
        claim = start(job_id)
        record(database, claim, 1, loss=2.0)
        while not any(name == "metrics" for name, _, _ in heard):
            heard.append(next(events))
        record(database, claim, 2, loss=1.0, lr=0.1)
        finish(database, claim)
        heard += events
    states = [data["state"] for name, _, data in heard if name == "state"]
    assert (states[0], states[-1]) == ("queued", "succeeded")
    values = [(data["step"], data["values"]) for name, _, data in heard if name == "metrics"]
    assert values == [(1, {"loss": 2.0}), (2, {"loss": 1.0, "lr": 0.1})]
    assert heard[-1][0] == "end"
    assert heard[-1][2] == {"reason": "ended"}


def test_who_comes_back_with_the_last_id_misses_and_repeats_nothing(
    server: httpx.Client, submit: Submit, start: Start, database: Database
) -> None:
    job_id = submit()["id"]
    claim = start(job_id)
    record(database, claim, 1, loss=2.0)
    with server.stream("GET", f"/jobs/{job_id}/events") as response:
        last = next(id_ for name, id_, _ in events_of(response) if name == "metrics")
    for step in (2, 3):
        record(database, claim, step, loss=1.0 / step)
    finish(database, claim)
    again = [data for name, _, data in listen(server, job_id, last) if name == "metrics"]
    assert [event["step"] for event in again] == [2, 3]
    end_id = listen(server, job_id, last)[-1][1]
    assert [name for name, _, _ in listen(server, job_id, end_id)] == ["state", "progress", "end"]


def test_a_new_listener_starts_from_the_newest_values(
    server: httpx.Client, submit: Submit, start: Start, database: Database
) -> None:
    job_id = submit()["id"]
    claim = start(job_id)
    for step in range(1, 50):
        record(database, claim, step, loss=float(step))
    finish(database, claim)
    told = [data["values"] for name, _, data in listen(server, job_id) if name == "metrics"]
    assert told == [{"loss": 49.0}]


def test_a_later_attempt_that_goes_back_is_heard(
    server: httpx.Client, submit: Submit, start: Start, database: Database
) -> None:
    job_id = submit()["id"]
    first = start(job_id)
    record(database, first, 40, loss=4.0)
    with server.stream("GET", f"/jobs/{job_id}/events") as response:
        events = events_of(response)
        assert next(data["step"] for name, _, data in events if name == "metrics") == 40
        with database.write() as session:
            claims.hand_back(first, session=session)
        second = start(job_id)
        record(database, second, 10, loss=9.0)
        event = next(data for name, _, data in events if name == "metrics")
        assert (event["step"], event["attempt"]) == (10, 2)
        finish(database, second)
        assert list(events)[-1][0] == "end"


def test_no_connection_is_held_while_nothing_happens(served: FastAPI, server: httpx.Client, submit: Submit) -> None:
    job_id = submit()["id"]
    opened = threading.Barrier(21)
    done = threading.Event()

    def wait() -> None:
        with httpx.stream("GET", f"{server.base_url}/jobs/{job_id}/events", timeout=20) as response:
            next(events_of(response))
            opened.wait(timeout=20)
            done.wait(timeout=20)

    listeners = [threading.Thread(target=wait) for _ in range(20)]
    for listener in listeners:
        listener.start()
    opened.wait(timeout=20)
    pool = served.state.parts.database.engine.pool
    # Each listener looks for a moment, once a second; held connections would never be seen at rest.
    assert any(pool.checkedout() == 0 or time.sleep(0.05) for _ in range(100))
    assert server.get("/jobs").status_code == 200
    done.set()
    for listener in listeners:
        listener.join(timeout=20)


@pytest.mark.parametrize("last", ["x", "-1", "9" * 30])
def test_an_id_that_is_none_of_ours_starts_anew(
    server: httpx.Client, submit: Submit, start: Start, last: str, database: Database
) -> None:
    job_id = submit()["id"]
    finish(database, start(job_id))
    assert [name for name, _, _ in listen(server, job_id, last)] == ["state", "progress", "end"]


def test_an_unknown_job_is_a_problem_and_no_stream(server: httpx.Client) -> None:
    response = server.get("/jobs/000000000000/events")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


def test_a_silent_stream_says_that_it_lives(
    server: httpx.Client, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    with server.stream("GET", f"/jobs/{submit()['id']}/events") as response:
        lines = iter(response.iter_lines())
        assert next(line for line in lines if line == "event: progress")
        assert [next(line for line in lines if line == ": ping") for _ in range(3)] == [": ping"] * 3
