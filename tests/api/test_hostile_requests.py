"""Requests that were made to do harm: a clear refusal, and the server goes on."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 200_000, 400),
        (b'{"a":' * 100_000, 400),
        (b'{"name": "x", "student": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, 400),
        (b'{"training": {"epochs": ' + b"9" * 100_000 + b"}}", 400),
        (b'{"training": {"epochs": 1e400}}', 422),
        (b'{"training": {"lr": NaN}}', 422),
        (b'{"training": {"lr": -Infinity}}', 422),
        (b'{"name": "\\ud800"}', 422),
        (b"\xff\xfe" + '{"name": "x"}'.encode("utf-16-le"), 422),
        (b"{" + b",".join(b'"%d": 1' % number for number in range(60_000)) + b"}", 422),
        (b'{"name": "' + b"x" * 900_000 + b'"}', 422),
        (b"[" + b"{}," * 300_000 + b"{}]", 422),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', 413),
    ],
)
def test_bodies(client: TestClient, body: bytes, status: int) -> None:
    answer = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 200_000  # what is sent is not sent back at length
    assert client.get("/healthz").status_code == 200


OUT_OF_RANGE: tuple[dict[str, Any], ...] = (
    {"resources": {"gpus": 2**31}},
    {"resources": {"gpus": -1}},
    {"resources": {"max_attempts": 10**30}},
    {"training": {"epochs": 2**63}},
    {"training": {"batch_size": 2**31}},
    {"training": {"seed": 2**200}},
    {"name": "x" * 10_000},
    {"dataset": "\0"},
    {"dataset": {"$ne": 1}},
)


def test_numbers_and_names_out_of_range(client: TestClient, pets: str, spec: Callable[..., Any]) -> None:
    for changes in OUT_OF_RANGE:
        answer = client.post("/jobs", json=spec(**changes))
        assert answer.status_code == 422, (changes, answer.text)


def test_a_sweep_that_would_be_endless(client: TestClient, pets: str, spec: Callable[..., Any]) -> None:
    axes = {f"training.{name}": list(range(1, 1000)) for name in ("epochs", "batch_size", "seed", "warmup_steps")}
    answer = client.post("/sweeps", json={"name": "s", "base": spec(), "axes": axes})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "path", ["/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/jobs/..%5c..%5cx", "/jobs/%00", "/datasets/%ff"]
)
def test_paths_that_lead_elsewhere(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.get(f"{path}/checkpoints/best").status_code == 404


@pytest.mark.parametrize("how", [{"headers": {"X-Large": "x" * (32 << 10)}}, {"params": {"search": "x" * (32 << 10)}}])
def test_a_head_larger_than_any_client_has(client: TestClient, how: dict[str, Any]) -> None:
    answer = client.get("/jobs", **how)
    assert (answer.status_code, answer.json()["code"]) == (431, "head_too_large")


def test_an_address_too_long_for_a_table(client: TestClient) -> None:
    answer = client.delete("/datasets/" + "x" * 20_000)
    assert answer.status_code == 404
    client.app.state.parts.trail.flush()  # type: ignore[attr-defined]
    assert len(client.get("/audit").json()["data"][0]["path"]) == 200
