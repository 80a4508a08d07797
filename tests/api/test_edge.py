"""What every answer has in common, and the description of them all."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api import openapi
from api.app import create_app
from store.settings import Settings
from tid_core.methods import METHODS
from tid_core.spec import JobSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/jobs/", 404, "not_found"),
        ("GET", "/jobs/a%00b", 404, "not_found"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
        ("GET", "/jobs/nope", 404, "job_not_found"),
        ("GET", "/jobs/nope/report", 404, "job_not_found"),
        ("GET", "/jobs?limit=0", 422, "request_invalid"),
    ],
)
def test_every_error_is_problem_details(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path, headers={"X-Request-ID": "mine-1"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "errors", "request_id"}
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:tid:problem:{code}")
    assert body["request_id"] == response.headers["X-Request-ID"] == "mine-1"


def test_a_405_says_what_is_allowed(client: TestClient) -> None:
    assert "GET" in client.put("/detectors").headers["Allow"]


def test_a_request_id_that_could_forge_a_log_line_is_replaced(client: TestClient) -> None:
    given = "a b" * 3
    assert re.fullmatch("[0-9a-f]{32}", client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"])


@pytest.fixture
def broken(settings: Settings) -> Iterator[TestClient]:
    """The application with a route that has a bug."""
    app: FastAPI = create_app(settings)

    @app.get("/bug", tags=["bug"])
    def bug() -> None:
        raise RuntimeError("the password is hunter2")

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_a_bug_is_logged_and_not_told(broken: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    response = broken.get("/bug")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "hunter2" not in response.text
    assert "hunter2" in caplog.text
    assert response.json()["request_id"] in caplog.text


def test_headers_that_keep_a_browser_careful(client: TestClient) -> None:
    headers = client.get("/jobs").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "Access-Control-Allow-Origin" not in headers
    assert "script-src 'self';" in client.get("/docs").headers["Content-Security-Policy"]


def test_a_form_of_another_site_cannot_submit_a_job(client: TestClient, spec: Callable[..., dict[str, Any]]) -> None:
    """A browser sends text/plain across origins without asking, and application/json not."""
    response = client.post("/jobs", content=json.dumps(spec()), headers={"Content-Type": "text/plain"})
    assert response.status_code == 422


def test_the_committed_description_is_the_application_s() -> None:
    """Otherwise run `python -m api.openapi > openapi.json`."""
    assert (ROOT / "openapi.json").read_text() == openapi.text()


def test_answers_have_no_optional_fields_and_operations_are_named_alike() -> None:
    document = json.loads(openapi.text())
    schemas = document["components"]["schemas"]
    asked = {
        "DatasetIn",
        "DrainIn",
        "IndexOptions",
        "KeyIn",
        "RetryIn",
        *(name for name in schemas if name.endswith(("Spec", "Weights"))),
    }
    for name, schema in schemas.items():
        if name not in asked and "properties" in schema:
            assert set(schema.get("required", ())) == set(schema["properties"]), name
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all(re.fullmatch(r"[a-z]+-[a-z-]+", operation["operationId"]) for operation in operations)
    assert all("application/problem+json" in operation["responses"]["default"]["content"] for operation in operations)


def test_the_schema_of_a_job_and_what_it_may_name_are_published(client: TestClient) -> None:
    schema = client.get("/schemas/job").json()
    assert schema["properties"].keys() == JobSpec.model_fields.keys()
    detectors = {detector["name"]: detector for detector in client.get("/detectors").json()["data"]}
    assert detectors["retinanet_resnet50_fpn_v2"]["coco_map"] == 41.5
    assert {method["name"] for method in client.get("/methods").json()["data"]} == METHODS.keys()
