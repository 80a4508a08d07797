"""The client against a real server, also over a wire that breaks."""

import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api.schemas import EndEvent, MetricsEvent, Progress, StateEvent
from client.client import Client
from client.errors import AnswerNotUnderstood, ApiError, NoSuchJob, ServerUnreachable
from client.machine import free_port
from store import claims, metrics
from store.metrics import Point
from store.states import Outcome


def test_a_post_whose_answer_was_lost_makes_one_job(server, cut_wire, spec) -> None:
    name = f"lost-{secrets.token_hex(4)}"
    with cut_wire(0) as wire, Client(wire.url, backoff=0.01) as client:
        job = client.submit({**spec, "name": name})
        assert wire.connections >= 2, "the first answer was cut off"
        assert [one.id for one in client.jobs(search=name)] == [job.id]


def test_two_posts_make_two_jobs(client, spec) -> None:
    assert client.submit(spec).id != client.submit(spec).id


def test_a_refusal_says_every_field(client, spec) -> None:
    with pytest.raises(ApiError) as caught:
        client.submit({**spec, "student": {"detector": "fcos"}, "trainig": {}})
    assert caught.value.status == 422
    assert "/trainig" in str(caught.value)
    assert caught.value.request_id


def test_dry_run_makes_no_job(client, spec) -> None:
    name = f"dry-{secrets.token_hex(4)}"
    answer = client.dry_run({**spec, "name": name, "student": {"detector": "fcos_conv6_tiny"}})
    assert not answer.ok
    assert "/student/detector" in {problem.field for problem in answer.problems if problem.severity == "error"}
    assert not list(client.jobs(search=name))


def test_no_server_says_what_to_do() -> None:
    with Client(f"http://127.0.0.1:{free_port('127.0.0.1', 0)}", retries=1, backoff=0.01) as client:
        with pytest.raises(ServerUnreachable, match="tid up"):
            client.job("0" * 12)
        with pytest.raises(ServerUnreachable, match="tid up"):
            client.ready()


def test_lists_are_read_page_after_page(client, spec, monkeypatch) -> None:
    monkeypatch.setattr("client.client.PAGE", 2)
    name = f"page-{secrets.token_hex(4)}"
    made = [client.submit({**spec, "name": name}).id for _ in range(5)]
    assert [job.id for job in client.jobs(search=name)] == made[::-1]
    assert [job.id for job in client.jobs(search=name, limit=3)] == made[:1:-1]


def test_a_job_is_found_by_id_by_its_beginning_and_by_name(client, spec) -> None:
    name = f"find-{secrets.token_hex(4)}"
    job = client.submit({**spec, "name": name})
    assert client.find(job.id).id == client.find(job.id[:9]).id == client.find(name).id == job.id
    other = client.submit({**spec, "name": name})
    with pytest.raises(NoSuchJob) as caught:
        client.find(name)
    assert job.id in str(caught.value)
    assert other.id in str(caught.value)
    with pytest.raises(NoSuchJob, match="tid jobs"):
        client.find("no-such-job")


def test_cancel_and_the_state_of_the_service(client, spec) -> None:
    job = client.submit(spec)
    assert client.cancel(job.id).state == "cancelled"
    assert client.wait(job.id).status_reason == "user"
    ready = {dependency.name: dependency.ok for dependency in client.ready().dependencies}
    assert ready["database"]
    assert not ready["broker"], "this server has none, and says so"
    assert "fcos_conv5_tiny" in {one.name for one in client.detectors()}
    assert "tid" in {one.name for one in client.methods()}
    assert client.workers() == []
    assert "digits" in {one.name for one in client.datasets()}


def test_metrics_are_typed(client, spec, database) -> None:
    job = client.submit(spec)
    claim = begin(database, job.id)
    with database.write() as session:
        points = [Point("loss/total", step, step // 10, 1 / (step + 1)) for step in range(200)]
        metrics.record(claim, [*points, Point("val/AP", 199, 20, 0.5)], session=session)
    whole = client.metrics(job.id, "loss/total").series[0]
    assert [point.step for point in whole.points] == list(range(200))
    thin = client.metrics(job.id, "loss/total", max_points=20, since_step=99).series[0]
    assert len(thin.points) <= 20
    assert thin.total_points == 100
    assert client.metrics(job.id).summary.latest["val/AP"].value == 0.5
    assert client.metrics_csv(job.id, "val/AP").splitlines()[-1].endswith("0.5")


def test_events_go_on_over_a_wire_that_breaks(server, cut_wire, client, spec, database) -> None:
    job = client.submit(spec)
    claim = begin(database, job.id)
    pool = ThreadPoolExecutor(1)
    with cut_wire(1500, 1500, 1500) as wire, Client(wire.url, backoff=0.01) as listener, pool:
        listening = pool.submit(lambda: list(listener.events(job.id)))
        while wire.connections == 0:
            time.sleep(0.01)
        for step in range(30):
            with database.write() as session:
                metrics.record(claim, [Point("loss/total", step, 0, 1.0)], session=session)
                claims.record_progress(claim, step=step, epoch=0, eta_seconds=None, progress={}, session=session)
            time.sleep(0.1)
        with database.write() as session:
            claims.finish(claim, Outcome.SUCCEEDED, session=session)
        events = listening.result(60)
    assert wire.connections >= 2, "the stream was cut, and taken up again"
    heard = {event.step for event in events if isinstance(event, MetricsEvent)}
    first = min(heard)
    assert heard == set(range(first, 30)), "no metric was missed between the streams"
    assert [event for event in events if isinstance(event, Progress)][-1].step == 29
    assert [event for event in events if isinstance(event, StateEvent)][-1].state == "succeeded"
    assert isinstance(events[-1], EndEvent)
    assert sum(isinstance(event, EndEvent) for event in events) == 1


def begin(database, job_id: str):
    with database.write() as session:
        claim = claims.claim(job_id, "tester", lease_seconds=600, session=session)
        claims.mark_started(claim, resumed_from_step=0, total_steps=200, epochs=20, session=session)
    return claim


def test_the_answer_of_another_version_is_told_as_that(client, spec, monkeypatch) -> None:
    job = client.submit(spec)

    def older(*arguments, **how):
        response = request(*arguments, **how)
        return httpx.Response(200, json={name: value for name, value in response.json().items() if name != "state"})

    request = client._transport.request
    monkeypatch.setattr(client._transport, "request", older)
    with pytest.raises(AnswerNotUnderstood, match=r"which is \d+\.\d.*Job\.state: Field required.*GET /healthz"):
        client.job(job.id)
