"""A query that the operation does not have is refused, not passed over."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.mark.parametrize(
    ("url", "code", "field", "expected"),
    [
        ("/jobs?states=failed", "query_unknown", "states", "state?"),
        ("/jobs?limit=1&limit=2", "query_repeated", "limit", "once"),
        ("/healthz?x", "query_unknown", "x", "no query"),
        ("/detectors?%00=1", "query_unknown", "\0", "no query"),
    ],
)
def test_what_is_not_in_the_description_is_refused(
    client: TestClient, url: str, code: str, field: str, expected: str
) -> None:
    response = client.get(url)
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert (error["code"], error["field"], error["expected"]) == (code, field, expected)


@pytest.mark.usefixtures("pets")
def test_a_misspelt_dry_run_makes_no_job(client: TestClient, spec: Callable[..., dict[str, Any]]) -> None:
    response = client.post("/jobs?dryrun=true", json=spec())
    assert (response.status_code, response.json()["errors"][0]["expected"]) == (422, "dry_run?")
    assert client.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("url", ["/jobs?state=failed&state=queued", "/jobs?limit=1", "/jobs?", "/openapi.json?x=1"])
def test_what_is_there_is_taken(client: TestClient, url: str) -> None:
    assert client.get(url).status_code == 200


def test_a_405_names_the_methods_of_every_route_at_the_path(client: TestClient) -> None:
    assert client.put("/jobs").headers["Allow"] == "GET, POST"
    assert client.post("/datasets/pets").headers["Allow"] == "DELETE, GET"
