"""Every route asks for a scope; browsers cannot be tricked; what is not let in is told why."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from api.app import create_app
from api.gate import keyring
from api.gate.access import SCOPES, is_loopback
from store import keys
from store.settings import Settings

LOOPBACK = "http://127.0.0.1:8000"
Make = Callable[..., dict[str, str]]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"rate_per_minute": 0, "failed_per_minute": 10_000, "allowed_hosts": ()})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url=LOOPBACK, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def key(client: TestClient) -> Make:
    """Makes a key as `tid keys create` does; gives the header that sends it."""

    def make(scope: str = "admin", **limits: Any) -> dict[str, str]:
        with client.app.state.parts.database.write() as session:  # type: ignore[attr-defined]
            issued = keys.create("somebody", scope, session=session, **limits)  # type: ignore[arg-type]
        client.app.state.parts.keys.forget()  # type: ignore[attr-defined]
        return {"Authorization": f"Bearer {issued.key}"}

    return make


def routes(app: FastAPI) -> list[tuple[str, str]]:
    found = [(method, one.path) for one in iter_route_contexts(app.routes) for method in sorted(one.methods or ())]
    assert len(found) > 40
    return found  # type: ignore[return-value]


def declared(method: str, path: str) -> str:
    return SCOPES[path]["GET" if method == "HEAD" else method]


def test_every_route_is_declared_and_every_declaration_is_a_route(settings: Settings) -> None:
    found = {("GET" if method == "HEAD" else method, path) for method, path in routes(create_app(settings))}
    assert found == {(method, path) for path, scopes in SCOPES.items() for method in scopes}


@pytest.mark.parametrize("scope", ["nobody", "read", "write", "admin"])
def test_every_route_lets_in_whom_it_should(client: TestClient, key: Make, scope: str) -> None:
    has = key("admin" if scope == "nobody" else scope)
    has = {} if scope == "nobody" else has
    ranks = ["open", "read", "write", "admin"]
    rank = 0 if scope == "nobody" else ranks.index(scope)
    for method, path in routes(client.app):  # type: ignore[arg-type]
        answer = client.request(method, re.sub(r"\{\w+(:path)?\}", "nope", path), headers=has)
        needed = declared(method, path)
        if rank >= ranks.index(needed):
            assert answer.status_code not in (401, 403), (method, path, answer.text)
            continue
        assert answer.status_code == (401 if scope == "nobody" else 403), (method, path)
        told = answer.headers["WWW-Authenticate"]
        assert told == (
            'Bearer realm="tid"'
            if scope == "nobody"
            else f'{told.split(",")[0]}, error="insufficient_scope", scope="{needed}"'
        )
        if method != "HEAD" and scope != "nobody":
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "scope_missing"
            assert f"`{needed}`" in answer.json()["detail"]


def test_a_route_that_is_not_declared_is_there_for_administrators_alone(settings: Settings, key: Make) -> None:
    app = create_app(settings)

    @app.get("/forgotten", tags=["x"])
    def forgotten() -> str:
        return "secret"

    @app.delete("/jobs", tags=["x"])
    def forgotten_method() -> str:
        return "secret"

    admin, writer = key("admin"), key("write")
    with TestClient(app, base_url=LOOPBACK) as client:
        assert client.get("/forgotten", headers=admin).text == '"secret"'
        assert client.get("/forgotten", headers=writer).json()["code"] == "not_found"
        assert client.get("/forgotten").status_code == 401
        refused = client.delete("/jobs", headers=writer)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, POST, HEAD")


def test_with_the_first_key_an_open_server_closes_and_stays_closed(client: TestClient) -> None:
    assert client.get("/jobs").status_code == 200
    made = client.post("/keys", json={"name": "first", "scope": "admin"})
    assert (made.status_code, made.headers["Cache-Control"]) == (201, "no-store")
    has = {"Authorization": f"Bearer {made.json()['key']}"}
    refused = client.get("/jobs").json()
    assert refused["code"] == "key_missing"
    assert "***" not in refused["detail"], "what takes secrets out leaves the advice whole"
    assert client.get("/jobs", headers=has).status_code == 200
    listed = client.get("/keys", headers=has).json()["data"]
    assert [one["id"] for one in listed] == [made.json()["id"]]
    assert "key" not in listed[0]
    assert "hash" not in listed[0]
    assert client.delete(f"/keys/{made.json()['id']}", headers=has).json()["revoked_at"] is not None
    assert client.get("/jobs", headers=has).json()["code"] == "key_invalid"
    assert client.get("/jobs").status_code == 401
    assert client.get("/healthz").status_code == 200


NO_KEYS = (
    "Bearer",
    "Bearer ",
    "Basic dGlkOnRpZA==",
    "Bearer tid_0123456789ab_" + "0" * 64,
    "Bearer tid_0123456789ab",
    "Bearer {key}0",
    "Bearer {other}",
    "{key}",
    "Bearer {key}, Bearer {key}",
    "Bearer \ufdd0",
)


def test_what_is_no_key_is_not_let_in(client: TestClient, key: Make) -> None:
    good = key()["Authorization"].removeprefix("Bearer ")
    other = good[:-1] + ("0" if good[-1] != "0" else "1")
    for sent in NO_KEYS:
        header = sent.format(key=good, other=other).encode()
        answer = client.get("/jobs", headers={"Authorization": header})  # type: ignore[dict-item]
        assert (answer.status_code, answer.json()["code"]) == (401, "key_invalid"), sent
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="tid", error="invalid_token"'
        assert good not in answer.text
    twice = [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")]
    assert client.get("/jobs", headers=twice).status_code == 401  # type: ignore[arg-type]
    assert client.get("/jobs", headers={"Authorization": f"bearer  {good}"}).status_code == 200


def test_hashes_are_compared_in_constant_time_also_for_a_key_that_is_not_known(
    client: TestClient, key: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: (compared.append((len(a), len(b))), real(a, b))[1])
    for has in (key(), {"Authorization": f"Bearer tid_0123456789ab_{'0' * 64}"}, {"Authorization": "Bearer x"}):
        compared.clear()
        client.get("/jobs", headers=has)
        assert compared == [(64, 64)]


def test_a_key_that_was_made_or_revoked_elsewhere_counts_within_seconds(
    client: TestClient, key: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the ring's own clock: the test does not wait."""
    has = key()
    parts = client.app.state.parts  # type: ignore[attr-defined]
    now = [time.monotonic()]
    ring = parts.keys
    monkeypatch.setattr(ring, "clock", lambda: now[0])
    ring.forget()
    assert client.get("/jobs", headers=has).status_code == 200
    key_id = keys.id_of(has["Authorization"].removeprefix("Bearer ")) or ""
    with parts.database.write() as session:
        keys.revoke(key_id, session=session)
        new = keys.create("new", "read", session=session).key
    assert client.get("/jobs", headers=has).status_code == 200  # as last known
    now[0] += 0.5
    assert client.get("/jobs", headers={"Authorization": f"Bearer {new}"}).status_code == 200
    now[0] += keyring.FRESH_SECONDS + 0.1
    assert client.get("/jobs", headers=has).status_code == 401


def test_an_expired_key_is_not_let_in(client: TestClient, key: Make) -> None:
    from datetime import timedelta

    key()
    assert client.get("/jobs", headers=key(valid_for=timedelta(hours=1))).status_code == 200
    assert client.get("/jobs", headers=key(valid_for=timedelta(microseconds=1))).status_code == 401


def test_the_database_is_not_asked_for_every_request(
    client: TestClient, key: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = key()
    reads = []
    real = keys.usable
    monkeypatch.setattr(keys, "usable", lambda *, session: (reads.append(1), real(session=session))[1])
    monkeypatch.setattr(client.app.state.parts.keys, "clock", lambda: 1e9)  # type: ignore[attr-defined]
    for _ in range(20):
        assert client.get("/detectors", headers=has).status_code == 200
    assert len(reads) == 1


def test_while_the_database_is_away_only_what_was_just_known_counts(
    client: TestClient, key: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = key()
    ring = client.app.state.parts.keys  # type: ignore[attr-defined]
    now = [time.monotonic()]
    monkeypatch.setattr(ring, "clock", lambda: now[0])
    ring.forget()
    assert client.get("/detectors", headers=has).status_code == 200
    monkeypatch.setattr(ring, "database", _Away())
    now[0] += keyring.FRESH_SECONDS + 1
    assert client.get("/detectors", headers=has).status_code == 200
    now[0] += keyring.OLDEST_SECONDS
    refused = client.get("/detectors", headers=has)
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert client.get("/detectors").status_code == 503  # and not open
    assert client.get("/healthz").status_code == 200


class _Away:
    def read(self) -> Any:
        from sqlalchemy.exc import OperationalError

        raise OperationalError("SELECT", {}, Exception("gone"))


def test_an_open_server_answers_to_the_names_of_loopback_alone(client: TestClient) -> None:
    for name in ("127.0.0.1:8000", "localhost", "[::1]:8000", "LOCALHOST:1"):
        assert client.get("/jobs", headers={"Host": name}).status_code == 200, name
    for name in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "192.168.0.1", "[fe80::1]"):
        refused = client.get("/jobs", headers={"Host": name})
        assert (refused.status_code, refused.json()["code"]) == (421, "host_not_allowed"), name
        assert client.get("/healthz", headers={"Host": name}).status_code == 200


def test_with_keys_any_name_will_do_unless_names_are_set(client: TestClient, key: Make, settings: Settings) -> None:
    has = key()
    assert client.get("/jobs", headers={**has, "Host": "tid.example"}).status_code == 200
    named = settings.model_copy(update={"allowed_hosts": ("tid.example",)})
    with TestClient(create_app(named), base_url=LOOPBACK) as strict:
        assert strict.get("/jobs", headers={**has, "Host": "tid.example"}).status_code == 200
        assert strict.get("/jobs", headers={**has, "Host": "evil.example"}).status_code == 421
        assert strict.get("/jobs", headers=has).status_code == 200


OF_ANOTHER_SITE: tuple[dict[str, str], ...] = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9000"},
    {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://[", "Sec-Fetch-Site": "same-origin"},
    {"Origin": ""},
)


def test_a_page_of_another_site_cannot_write(client: TestClient) -> None:
    for sent in OF_ANOTHER_SITE:
        refused = client.post("/datasets", json={"name": "theirs"}, headers=sent)
        assert (refused.status_code, refused.json()["code"]) == (403, "cross_site"), sent
    assert client.get("/datasets").json()["data"] == []


def test_its_own_pages_and_programs_can_write(client: TestClient) -> None:
    for number, sent in enumerate([{}, {"Origin": LOOPBACK, "Sec-Fetch-Site": "same-origin"}, {"Origin": LOOPBACK}]):
        assert client.post("/datasets", json={"name": f"mine-{number}"}, headers=sent).status_code == 201


def test_without_keys_only_this_machine_is_served(settings: Settings) -> None:
    """Also where the application was bound elsewhere than its settings say, e.g. by a server of one's own."""
    for peer, status in (
        ("127.0.0.1", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("192.0.2.7", 401),
        ("::ffff:192.0.2.7", 401),
        ("2001:db8::1", 401),
    ):
        with TestClient(create_app(settings), base_url=LOOPBACK, client=(peer, 1)) as client:
            assert client.get("/jobs", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == status, peer


def test_beyond_loopback_it_is_never_open(settings: Settings) -> None:
    bound = settings.model_copy(update={"host": "0.0.0.0"})
    with TestClient(create_app(bound), base_url=LOOPBACK) as client:
        assert client.get("/jobs").status_code == 401
        assert client.get("/healthz").status_code == 200


def test_readiness_without_a_key_is_without_details(client: TestClient, key: Make) -> None:
    open_details = [one["detail"] for one in client.get("/readyz").json()["dependencies"] if not one["ok"]]
    assert open_details
    assert not any("a key" in detail for detail in open_details)
    has = key("read")
    hidden = [one for one in client.get("/readyz").json()["dependencies"] if not one["ok"]]
    assert {one["detail"] for one in hidden} == {"not well; a key that may read is told why"}
    assert {one["remedy"] for one in hidden} == {None}
    told = [one["detail"] for one in client.get("/readyz", headers=has).json()["dependencies"] if not one["ok"]]
    assert not any("a key" in detail for detail in told)


def test_hosts_that_only_this_machine_reaches() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))


def test_the_description_says_what_each_route_asks_for(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/jobs"]["post"]["security"] == [{"key": ["write"]}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            refusals = {"401", "403", "429"} & operation["responses"].keys()
            assert bool(refusals) == bool(operation["security"]), (method, path)


def test_the_page_of_the_description_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "default-src 'none'; script-src 'self'" in page.headers["Content-Security-Policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 4
    for link in links:
        assert link.startswith("/docs/assets/")
        asset = client.get(link)
        assert (asset.status_code, asset.headers["X-Content-Type-Options"]) == (200, "nosniff")
    assert client.get("/docs/assets/..%2fcore.py").status_code == 404
    assert client.get("/docs/assets/core.py").status_code == 404
