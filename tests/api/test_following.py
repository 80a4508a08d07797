"""Many listeners, one reader: nobody waits for a slow one, and a slow one misses nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest
from fastapi.sse import ServerSentEvent

from api.schemas import MetricsEvent
from api.streams import feed, hub
from api.streams.feed import JobFeed, Listener
from api.streams.hub import Hub
from store import claims, metrics
from store.db import Database
from store.fencing import Claim
from store.metrics import Point
from store.states import Outcome

Submit = Callable[..., dict[str, Any]]
Start = Callable[[str], Claim]
Run = Callable[[Callable[[Hub], Awaitable[Any]]], Any]


@pytest.fixture
def run(database: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run with a hub that looks often."""
    monkeypatch.setattr(hub, "LOOK_SECONDS", 0.01)

    def run(what: Callable[[Hub], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            own = Hub(database)
            try:
                return await what(own)
            finally:
                await own.stop()

        return asyncio.run(inside())

    return run


@pytest.fixture
def record(database: Database) -> Callable[..., None]:
    def record(claim: Claim, steps: Iterable[int], value: float = 1.0) -> None:
        with database.write() as session:
            metrics.record(claim, [Point("loss", step, 1, value) for step in steps], session=session)

    return record


@pytest.fixture
def begin_again(database: Database) -> Callable[..., Claim]:
    """The next attempt of a job that is handed back."""

    def begin_again(claim: Claim, step: int) -> Claim:
        with database.write() as session:
            claims.hand_back(claim, session=session)
            second = claims.claim(claim.job_id, "worker-2", lease_seconds=60, session=session)
            assert second is not None
            claims.mark_started(second, resumed_from_step=step, total_steps=100, epochs=2, session=session)
        return second

    return begin_again


def finish(database: Database, claim: Claim) -> None:
    with database.write() as session:
        claims.finish(claim, Outcome.SUCCEEDED, session=session)


async def until(events: AsyncIterator[ServerSentEvent], name: str) -> ServerSentEvent:
    return await anext(event async for event in events if event.event == name)


async def steps_of(events: AsyncIterator[ServerSentEvent]) -> list[tuple[int, int]]:
    """Step and attempt of every metric that is still told."""
    told = [
        MetricsEvent.model_validate_json(event.raw_data or "") async for event in events if event.event == "metrics"
    ]
    return [(event.step, event.attempt) for event in told]


async def looked(followed: JobFeed, condition: Callable[[JobFeed], bool]) -> None:
    while not condition(followed):
        await followed.news.wait()


@pytest.mark.parametrize("kept", [2000, 0])
def test_a_stalled_listener_that_a_new_attempt_overtakes_misses_no_rewritten_point(
    run: Run, database: Database, submit: Submit, start: Start, record: Callable[..., None],
    begin_again: Callable[..., Claim], monkeypatch: pytest.MonkeyPatch, kept: int,
) -> None:  # fmt: skip
    """From what is kept for all, and (where that is too little) from the database."""
    monkeypatch.setattr(feed, "_KEPT", kept)
    first = start(submit()["id"])
    record(first, range(1, 41))

    async def listen(own: Hub) -> list[tuple[int, int]]:
        with own.follow(JobFeed, first.job_id) as followed:
            slow = Listener(followed, None).events(own)
            await until(slow, "metrics")
            second = await asyncio.to_thread(begin_again, first, 10)
            for step in range(11, 46, 5):
                await asyncio.to_thread(record, second, range(step, step + 5))
                await looked(followed, lambda it: it.seen is not None and it.seen.latest[0].step == step + 4)  # noqa: B023
            await asyncio.to_thread(finish, database, second)
            return await steps_of(slow)

    assert run(listen) == [(step, 2) for step in range(11, 46)]


def test_who_comes_back_after_an_attempt_has_overtaken_hears_what_was_rewritten(
    run: Run, database: Database, submit: Submit, start: Start, record: Callable[..., None],
    begin_again: Callable[..., Claim],
) -> None:  # fmt: skip
    first = start(submit()["id"])
    record(first, range(1, 41))

    async def position(own: Hub) -> int:
        with own.follow(JobFeed, first.job_id) as followed:
            return int((await until(Listener(followed, None).events(own), "metrics")).id or 0)

    heard = run(position)
    second = begin_again(first, 10)
    record(second, range(11, 46))
    finish(database, second)

    async def again(own: Hub) -> list[tuple[int, int]]:
        with own.follow(JobFeed, first.job_id) as followed:
            return await steps_of(Listener(followed, heard).events(own))

    assert run(again) == [(step, 2) for step in range(11, 46)]


def test_more_than_is_sent_again_is_told_as_a_gap(
    run: Run, database: Database, submit: Submit, start: Start, record: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(feed, "MAX_REPLAY", 5)
    claim = start(submit()["id"])
    record(claim, range(20))
    finish(database, claim)

    async def listen(own: Hub) -> list[ServerSentEvent]:
        with own.follow(JobFeed, claim.job_id) as followed:
            return [event async for event in Listener(followed, 1).events(own)]

    told = run(listen)
    assert [event.event for event in told] == ["state", "progress", "gap", *["metrics"] * 5, "end"]
    assert told[2].raw_data == '{"points":5}'
    # Who is cut off before the last one hears all of them again.
    assert {event.id for event in told[:-2]} == {"1"}
    assert told[-1].id == told[-2].id != "1"


def test_a_stream_has_a_longest_time_after_which_its_listener_goes_on(
    run: Run, database: Database, submit: Submit, start: Start, record: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(feed, "MAX_SECONDS", 0.0)
    claim = start(submit()["id"])
    record(claim, [1])

    async def listen(own: Hub, heard: int | None) -> list[ServerSentEvent]:
        with own.follow(JobFeed, claim.job_id) as followed:
            await looked(followed, lambda it: it.is_known)
            return [event async for event in Listener(followed, heard).events(own)]

    first = run(lambda own: listen(own, None))
    assert [event.event for event in first] == ["state", "progress", "metrics", "end"]
    assert first[-1].raw_data == '{"reason":"time"}'
    record(claim, [2])
    again = run(lambda own: listen(own, int(first[-1].id)))
    assert [event.raw_data for event in again if event.event == "metrics"] == [
        '{"step":2,"epoch":1,"attempt":1,"values":{"loss":1.0}}'
    ]


def test_a_job_that_is_deleted_ends_its_streams(run: Run, database: Database, submit: Submit) -> None:
    from sqlalchemy import delete

    from store.models import Job

    job_id = submit()["id"]

    def forget() -> None:
        with database.write() as session:
            session.execute(delete(Job).where(Job.id == job_id))

    async def listen(own: Hub) -> ServerSentEvent:
        with own.follow(JobFeed, job_id) as followed:
            events = Listener(followed, None).events(own)
            await until(events, "progress")
            await asyncio.to_thread(forget)
            return await until(events, "end")

    assert run(listen).raw_data == '{"reason":"deleted"}'


def test_streams_outlive_a_database_that_is_away(
    run: Run, database: Database, submit: Submit, start: Start, record: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from sqlalchemy.exc import OperationalError

    claim = start(submit()["id"])
    record(claim, [1])
    look, away = JobFeed.look.__func__, [False, 0]  # type: ignore[attr-defined]

    def failing(cls: type[JobFeed], *arguments: Any) -> Any:
        if away[0]:
            away[1] += 1
            raise OperationalError("SELECT", {}, Exception("gone"))
        return look(cls, *arguments)

    monkeypatch.setattr(JobFeed, "look", classmethod(failing))

    async def listen(own: Hub) -> list[tuple[int, int]]:
        with own.follow(JobFeed, claim.job_id) as followed:
            events = Listener(followed, None).events(own)
            await until(events, "metrics")
            away[0] = True
            while away[1] < 3:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(record, claim, [2, 3])
            away[0] = False
            await asyncio.to_thread(finish, database, claim)
            return await steps_of(events)

    assert run(listen) == [(2, 1), (3, 1)]
