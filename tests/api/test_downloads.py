"""Files over a real connection, out of a folder and out of a bucket: whole, in parts, unchanged, gone."""

import hashlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from store.artifacts import ArtifactStore, open_artifacts
from store.db import Database
from store.ids import new_id
from store.models import Artifact, Checkpoint
from store.settings import Settings

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"sha256-{SHA256}"'


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Files come from a folder: one kind of database will do."""
    return sqlite_url


@pytest.fixture(params=["folder", "s3"])
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    if request.param == "folder":
        return settings
    elsewhere = request.getfixturevalue("s3_server").settings(settings.home, f"api-{new_id()}")
    names = ("artifacts", "s3_endpoint", "s3_access_key_id", "s3_secret_access_key")
    return settings.model_copy(update={name: getattr(elsewhere, name) for name in names})


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return open_artifacts(settings, link=False)


@pytest.fixture
def job_id(submit: Callable[..., dict[str, Any]], database: Database, store: ArtifactStore, tmp_path: Path) -> str:
    """A job with a checkpoint and a map in the store."""
    job = submit(name="My student / über")
    job_id: str = job["id"]
    (tmp_path / "content").write_bytes(CONTENT)
    for name in ("best.safetensors", "best.json", "17.png"):
        store.put(f"{job_id}/{name}", tmp_path / "content")
    same = {"sha256": SHA256, "bytes": len(CONTENT), "attempt": 1}
    with database.write() as session:
        for format_, file in (("safetensors", "best.safetensors"), ("card", "best.json")):
            row = {"name": "best", "format": format_, "key": f"{job_id}/{file}", "step": 5, "epoch": 1, "ap": 0.5}
            session.add(Checkpoint(job_id=job_id, **row, **same))
        session.add(Artifact(job_id=job_id, kind="map", name="17.png", key=f"{job_id}/17.png", **same))
    return job_id


def test_a_checkpoint_comes_whole_with_its_digest_and_a_good_name(server: httpx.Client, job_id: str) -> None:
    listed = server.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [(c["name"], c["ap"], [f["format"] for f in c["files"]]) for c in listed] == [
        ("best", 0.5, ["card", "safetensors"])
    ]
    url = next(f["url"] for f in listed[0]["files"] if f["format"] == "safetensors")
    got = server.get(url)
    assert got.content == CONTENT
    assert got.headers["ETag"] == ETAG
    assert got.headers["X-Checksum-SHA256"] == SHA256
    assert got.headers["Repr-Digest"] == f"sha-256=:{b64encode(bytes.fromhex(SHA256)).decode()}:"
    assert got.headers["Content-Disposition"] == f'attachment; filename="My-student-ber-{job_id}-best.safetensors"'
    head = server.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(CONTENT))
    assert head.headers["ETag"] == ETAG
    card = server.get(url, params={"format": "card"})
    assert card.headers["content-type"] == "application/json"


def test_a_broken_download_goes_on_where_it_stopped(server: httpx.Client, job_id: str) -> None:
    url = f"/jobs/{job_id}/checkpoints/best"
    rest = server.get(url, headers={"Range": "bytes=1000-", "If-Range": ETAG})
    assert (rest.status_code, rest.content) == (206, CONTENT[1000:])
    assert rest.headers["Content-Range"] == f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"
    changed = server.get(url, headers={"Range": "bytes=1000-", "If-Range": '"sha256-other"'})
    assert (changed.status_code, changed.content) == (200, CONTENT)
    assert server.get(url, headers={"Range": "bytes=-10"}).content == CONTENT[-10:]


def test_a_range_that_is_none_is_ignored(server: httpx.Client, job_id: str) -> None:
    for header in ("bytes=5-2", "bytes=x", "lines=1-2", "bytes=0-1,4-5", "bytes=-"):
        got = server.get(f"/jobs/{job_id}/checkpoints/best", headers={"Range": header})
        assert (got.status_code, len(got.content)) == (200, len(CONTENT)), header


def test_a_range_beyond_the_end_says_how_long_the_file_is(server: httpx.Client, job_id: str) -> None:
    got = server.get(f"/jobs/{job_id}/checkpoints/best", headers={"Range": f"bytes={len(CONTENT)}-"})
    assert (got.status_code, got.json()["code"]) == (416, "range_not_satisfiable")
    assert got.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_a_range_of_another_file_is_answered_with_the_whole_one(server: httpx.Client, job_id: str) -> None:
    """Who holds more bytes of an older file than the new one has starts anew, instead of being refused."""
    headers = {"Range": f"bytes={len(CONTENT) + 5}-", "If-Range": '"sha256-of-another"'}
    got = server.get(f"/jobs/{job_id}/checkpoints/best", headers=headers)
    assert (got.status_code, got.content) == (200, CONTENT)


def test_an_unchanged_file_is_not_sent_again(server: httpx.Client, job_id: str) -> None:
    url = f"/jobs/{job_id}/checkpoints/best"
    for tags in (ETAG, f'"x", W/{ETAG}', "*"):
        got = server.get(url, headers={"If-None-Match": tags})
        assert (got.status_code, got.content, got.headers["ETag"]) == (304, b"", ETAG)
    assert server.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_maps_are_shown_and_listed(server: httpx.Client, job_id: str) -> None:
    (listed,) = server.get(f"/jobs/{job_id}/maps").json()["data"]
    assert server.get(f"/jobs/{job_id}/artifacts").json()["data"] == [listed]
    got = server.get(listed["url"])
    assert (got.content, got.headers["content-type"]) == (CONTENT, "image/png")
    assert got.headers["Content-Disposition"].startswith("inline")
    assert got.headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_not_there_is_a_problem(server: httpx.Client, job_id: str, store: ArtifactStore) -> None:
    def code(path: str) -> str:
        got = server.get(path)
        assert got.status_code == 404
        return str(got.json()["code"])

    assert code(f"/jobs/{job_id}/checkpoints/last") == "checkpoint_not_found"
    assert code(f"/jobs/{job_id}/checkpoints/best?format=pt") == "checkpoint_not_found"
    assert code(f"/jobs/{job_id}/maps/18.png") == "map_not_found"
    assert code("/jobs/000000000000/checkpoints") == "job_not_found"
    store.delete(f"{job_id}/best.safetensors")
    assert code(f"/jobs/{job_id}/checkpoints/best") == "file_gone"
    assert server.get(f"/jobs/{job_id}/checkpoints/best", params={"format": "zip"}).status_code == 422


def test_no_database_connection_is_held_while_a_file_goes_out(
    served: FastAPI, server: httpx.Client, job_id: str, store: ArtifactStore, tmp_path: Path
) -> None:
    # More than the buffers of a socket take, so that the answer is still under way.
    with (tmp_path / "content").open("r+b") as file:
        file.truncate(1 << 26)
    store.put(f"{job_id}/best.safetensors", tmp_path / "content")
    with server.stream("GET", f"/jobs/{job_id}/checkpoints/best") as response:
        next(response.iter_raw(10))
        assert served.state.parts.database.engine.pool.checkedout() == 0
