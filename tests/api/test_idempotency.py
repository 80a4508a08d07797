"""Idempotency-Key: one request with a key at a time, and the same answer to all."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from store import idempotency
from store.db import Database

Spec = Callable[..., dict[str, Any]]
KEY = {"Idempotency-Key": "k-1"}
PATHS = {"/jobs": "job", "/sweeps": "sweep"}


@pytest.fixture
def body(spec: Spec) -> Callable[..., dict[str, Any]]:
    """A small job or sweep."""

    def body(path: str, name: str = "one") -> dict[str, Any]:
        if path == "/jobs":
            return spec(name=name)
        return {"name": name, "base": spec(), "axes": {"training.lr": [0.1, 0.2]}}

    return body


def patient(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    """The answer once no other request with the key is at work."""
    while (answer := client.post(path, json=body, headers=KEY)).status_code == 409:
        assert (answer.json()["code"], answer.headers["Retry-After"]) == ("idempotency_in_flight", "1")
        time.sleep(0.05)
    return answer


@pytest.mark.usefixtures("pets")
@pytest.mark.parametrize("path", PATHS)
def test_one_key_makes_one(client: TestClient, body: Spec, path: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: patient(client, path, body(path)), range(12)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({(answer.json()["id"], answer.headers["Location"]) for answer in answers}) == 1
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers].count("true") == 11
    assert len(client.get(path).json()["data"]) == 1
    other = client.post(path, json=body(path, name="other"), headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert answers[0].json()["id"] in other.json()["detail"]


@pytest.mark.usefixtures("pets")
def test_a_repeated_answer_shows_the_job_as_it_is_now(client: TestClient, spec: Spec) -> None:
    job = client.post("/jobs", json=spec(), headers=KEY).json()
    client.post(f"/jobs/{job['id']}/cancel")
    again = client.post("/jobs", json=spec(), headers=KEY)
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (201, job["id"], "cancelled")


@pytest.mark.usefixtures("pets")
def test_a_refused_request_leaves_its_key_free(client: TestClient, spec: Spec) -> None:
    assert client.post("/jobs", json=spec(dataset="cars"), headers=KEY).status_code == 422
    made = client.post("/jobs", json=spec(), headers=KEY)
    assert (made.status_code, made.headers.get("Idempotency-Replayed")) == (201, None)


@pytest.mark.usefixtures("pets")
@pytest.mark.parametrize("path", PATHS)
def test_a_key_at_work_in_this_process_is_a_conflict_for_now(client: TestClient, body: Spec, path: str) -> None:
    in_flight = client.app.state.parts.in_flight  # type: ignore[attr-defined]
    with in_flight.only(PATHS[path], "k-1"):
        busy = client.post(path, json=body(path), headers=KEY)
        assert (busy.status_code, busy.json()["code"]) == (409, "idempotency_in_flight")
        assert busy.headers["Retry-After"] == "1"
        assert client.post(path, json=body(path), headers={"Idempotency-Key": "k-2"}).status_code == 201
    assert client.post(path, json=body(path), headers=KEY).headers.get("Idempotency-Replayed") is None


@pytest.mark.usefixtures("pets")
@pytest.mark.parametrize("path", PATHS)
def test_a_key_at_work_in_another_process(client: TestClient, database: Database, body: Spec, path: str) -> None:
    """PostgreSQL tells at once; SQLite lets the request wait for the other one's transaction."""
    answers: list[Any] = []
    with database.write() as session:
        session.connection()  # begins the transaction
        idempotency.hold(PATHS[path], "k-1", session=session)
        asking = threading.Thread(target=lambda: answers.append(client.post(path, json=body(path), headers=KEY)))
        asking.start()
        if database.engine.dialect.name == "postgresql":
            asking.join(timeout=30)
            assert answers.pop().json()["code"] == "idempotency_in_flight"
            answers.append(None)
        assert client.get(path).json()["data"] == []
    asking.join(timeout=30)
    final = answers.pop() or client.post(path, json=body(path), headers=KEY)
    assert (final.status_code, final.headers.get("Idempotency-Replayed")) == (201, None)


@pytest.mark.usefixtures("pets")
def test_a_key_of_another_form_is_refused(client: TestClient, body: Spec) -> None:
    for path in PATHS:
        for key in ("", " ", "a b", "k\x7f", "schlüssel", "k" * 256):
            headers = [("Idempotency-Key", key.encode("latin-1"))]
            refused = client.post(path, json=body(path), headers=headers)  # type: ignore[arg-type]
            assert refused.status_code == 422, refused.text
            assert [error["field"].lower() for error in refused.json()["errors"]] == ["idempotency-key"]
        longest = client.post(path, json=body(path), headers={"Idempotency-Key": "k" * 255})
        assert longest.status_code == 201
