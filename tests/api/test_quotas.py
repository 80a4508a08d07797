"""Rates, quotas, and whose is what, on both databases."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.gate.guard import _neighbourhood
from api.gate.rates import MAX_BUCKETS, Buckets
from store import jobs, keys
from store.db import Database
from store.errors import QuotaExceeded
from store.models import Dataset, Job, Sweep
from store.settings import Settings
from store.states import State

Make = Callable[..., dict[str, str]]


@pytest.fixture
def key(client: TestClient, database: Database) -> Make:
    """Makes a key as `tid keys create` does; gives the header that sends it."""

    def make(scope: str = "write", **limits: Any) -> dict[str, str]:
        with database.write() as session:
            issued = keys.create("somebody", scope, session=session, **limits)  # type: ignore[arg-type]
        client.app.state.parts.keys.forget()  # type: ignore[attr-defined]
        return {"Authorization": f"Bearer {issued.key}"}

    return make


def id_of(has: dict[str, str]) -> str:
    return keys.id_of(has["Authorization"].removeprefix("Bearer ")) or ""


def going_on(database: Database, key_id: str) -> int:
    with database.read() as session:
        found = jobs.page(session=session, limit=1000)
        return sum(job.created_by == key_id and job.state is State.QUEUED for job in found)


def test_100_requests_at_once_stay_within_the_quota(
    served: FastAPI, server: httpx.Client, pets: str, spec: Callable[..., Any], key: Make, database: Database
) -> None:
    has, other = key(quota=(7, None)), key()
    served.state.parts.keys.forget()

    def post(_: int) -> int:
        return server.post("/jobs", json=spec(), headers=has).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(post, range(100)))
    assert sorted(set(statuses)) == [201, 403]
    assert statuses.count(201) == 7
    assert going_on(database, id_of(has)) == 7
    refused = server.post("/jobs", json=spec(), headers=has).json()
    assert refused["code"] == "quota_exceeded"
    assert "8 jobs that have not ended; its quota is 7" in refused["detail"]
    assert server.post("/jobs", json=spec(), headers=other).status_code == 201


def test_a_job_that_ended_makes_room(
    client: TestClient, pets: str, spec: Callable[..., Any], key: Make, database: Database
) -> None:
    has = key(quota=(1, None))
    job = client.post("/jobs", json=spec(), headers=has).json()
    assert client.post("/jobs", json=spec(), headers=has).status_code == 403
    assert client.post(f"/jobs/{job['id']}/cancel", headers=has).status_code == 202
    assert client.post("/jobs", json=spec(), headers=has).status_code == 201


def test_a_job_that_is_woken_counts_again(
    client: TestClient, pets: str, spec: Callable[..., Any], key: Make, database: Database
) -> None:
    has = key(quota=(1, None))
    first = client.post("/jobs", json=spec(), headers=has).json()
    client.post(f"/jobs/{first['id']}/cancel", headers=has)
    second = client.post("/jobs", json=spec(), headers=has).json()
    refused = client.post(f"/jobs/{first['id']}/retry", headers=key())  # by whomever
    assert (refused.status_code, refused.json()["code"]) == (403, "quota_exceeded")
    assert client.get(f"/jobs/{first['id']}", headers=has).json()["state"] == "cancelled"
    client.post(f"/jobs/{second['id']}/cancel", headers=has)
    assert client.post(f"/jobs/{first['id']}/retry", headers=has).status_code == 202


def test_gpus_count_for_all_jobs_and_sweeps_count_whole(
    client: TestClient, pets: str, spec: Callable[..., Any], key: Make, database: Database
) -> None:
    has = key(quota=(None, 7))
    assert client.post("/jobs", json=spec(resources={"gpus": 4}), headers=has).status_code == 201
    refused = client.post("/jobs", json=spec(resources={"gpus": 4}), headers=has)
    assert (refused.status_code, refused.json()["code"]) == (403, "quota_exceeded")
    assert "8 GPUs; its quota is 7" in refused.json()["detail"]
    refused = client.post("/jobs", json=spec(resources={"gpus": 2, "nodes": 2}), headers=has)
    assert "8 GPUs; its quota is 7" in refused.json()["detail"]
    sweep = {"name": "s", "base": spec(), "axes": {"training.lr": [0.1, 0.2, 0.3, 0.4]}}
    assert client.post("/sweeps", json=sweep, headers=has).status_code == 403
    with database.read() as session:
        assert session.query(Job).count() == 1
        assert session.query(Sweep).count() == 0
    sweep["axes"] = {"training.lr": [0.1, 0.2]}
    assert client.post("/sweeps", json=sweep, headers=has).status_code == 201


def test_the_settings_quota_is_that_of_keys_without_their_own(database: Database, pets: str) -> None:
    with database.write() as session:
        limited, free = (
            keys.create("a", "write", session=session),
            keys.create("b", "write", quota=(0, 0), session=session),
        )
        dataset_id = session.query(Dataset).one().id
        for one in (limited, free):
            for _ in range(2):
                session.add(Job(name="j", spec={"resources": {"gpus": 4}}, method="none", queue="default", epochs=1,
                                max_attempts=1, dataset_id=dataset_id, created_by=one.row.id))  # fmt: skip
    with database.write() as session:
        keys.check_quota(limited.row.id, keys.Quota(2, 8), session=session)
        with pytest.raises(QuotaExceeded, match="2 jobs"):
            keys.check_quota(limited.row.id, keys.Quota(1, 0), session=session)
        with pytest.raises(QuotaExceeded, match="8 GPUs"):
            keys.check_quota(limited.row.id, keys.Quota(0, 7), session=session)
        keys.check_quota(free.row.id, keys.Quota(1, 1), session=session)


def test_what_was_made_names_its_key(
    client: TestClient, pets: str, spec: Callable[..., Any], key: Make, database: Database
) -> None:
    has = key()
    pair = {
        "teacher": {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"},
        "student": {"detector": "fcos_resnet18_fpn"},
    }
    one = client.post("/jobs", json=spec(**pair, baseline=True), headers=has)
    assert one.status_code == 201, one.text
    client.post("/sweeps", json={"name": "s", "base": spec(), "axes": {"training.lr": [0.1, 0.2]}}, headers=has)
    client.post("/datasets", json={"name": "mine"}, headers=has)
    with database.read() as session:
        made = [row.created_by for row in (*session.query(Job), *session.query(Sweep))]
        assert made == [id_of(has)] * (2 + 2 + 1)
        assert {row.name: row.created_by for row in session.query(Dataset)} == {"pets": None, "mine": id_of(has)}
    for path in ("/jobs", "/sweeps", "/datasets/mine"):
        told = client.get(path, headers=has).json()
        assert (told["data"][0] if "data" in told else told)["created_by"] == id_of(has)


def test_keys_do_not_see_each_other_s_idempotency_keys(
    client: TestClient, pets: str, spec: Callable[..., Any], key: Make
) -> None:
    one, other = key(), key()
    longest = {"Idempotency-Key": "k" * 255}
    first = client.post("/jobs", json=spec(), headers={**one, **longest})
    again = client.post("/jobs", json=spec(), headers={**one, **longest})
    theirs = client.post("/jobs", json=spec(name="else"), headers={**other, **longest})
    assert (first.status_code, again.status_code, theirs.status_code) == (201, 201, 201)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.json()["id"] == again.json()["id"] != theirs.json()["id"]
    assert (
        client.post("/jobs", json=spec(name="x"), headers={**one, **longest}).json()["code"] == "idempotency_conflict"
    )


def test_a_replayed_answer_is_no_new_job_for_the_quota(
    client: TestClient, pets: str, spec: Callable[..., Any], key: Make
) -> None:
    has = {**key(quota=(1, None)), "Idempotency-Key": "once"}
    assert [client.post("/jobs", json=spec(), headers=has).status_code for _ in range(3)] == [201] * 3


def test_a_key_may_ask_so_often_and_is_told_when_to_go_on(client: TestClient, key: Make) -> None:
    has, other = key("read", rate_per_minute=3), key("read")
    answers = [client.get("/detectors", headers=has) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["RateLimit"] for answer in answers[:3]] == [
        f'"key";r={left};t={20 * (3 - left)}' for left in (2, 1, 0)
    ]
    assert answers[0].headers["RateLimit-Policy"] == '"key";q=3;w=60'
    refused = answers[3]
    assert refused.json()["code"] == "rate_limited"
    assert 0 < int(refused.headers["Retry-After"]) <= 20
    assert refused.headers["RateLimit"] == f'"key";r=0;t={refused.headers["Retry-After"]}'
    assert client.get("/detectors", headers=other).status_code == 200


def test_an_address_without_a_good_key_is_soon_told_to_wait_and_good_keys_from_there_are_not(
    client: TestClient, key: Make, settings: Settings
) -> None:
    has = key("read")
    statuses = [client.get("/jobs").status_code for _ in range(settings.failed_per_minute + 1)]
    assert statuses == [401] * settings.failed_per_minute + [429]
    refused = client.get("/jobs", headers={"Authorization": "Bearer guess"})
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_failures")
    assert int(refused.headers["Retry-After"]) >= 1
    assert client.get("/jobs", headers=has).status_code == 200


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
    ],
)
def test_who_counts_as_one_address(one: str, other: str, alike: bool) -> None:
    assert (_neighbourhood(one) == _neighbourhood(other)) is alike


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Iterator[Time]:
    return Time()  # type: ignore[return-value]


def test_a_bucket_fills_evenly_and_not_beyond_its_size(time: Time) -> None:
    buckets = Buckets(clock=time)
    assert [buckets.take("a", 2).granted for _ in range(3)] == [True, True, False]
    time.now = 29.0
    assert buckets.take("a", 2) == (False, 2, 0, 1)
    time.now = 30.0
    assert buckets.take("a", 2).granted
    time.now = 1e6
    assert buckets.take("a", 2) == (True, 2, 1, 30)


def test_buckets_of_many_names_take_no_endless_room(time: Time) -> None:
    buckets = Buckets(clock=time)
    for number in range(MAX_BUCKETS + 10):
        buckets.take(str(number), 1)
    assert len(buckets._held) == MAX_BUCKETS
    assert buckets.take("0", 1).granted  # forgotten, so it begins anew
    assert not buckets.take(str(MAX_BUCKETS + 9), 1).granted
