"""What only a bucket can do: parts, signatures, refusals, and a server that dies in the middle."""

import errno
import hashlib
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest

from store.artifacts import ArtifactDamaged, open_artifacts
from store.ids import new_id
from store.s3 import S3Artifacts
from tests.s3 import BUCKET, READER, SECRET, S3Server

PART = 5 << 20
"""The least that S3 takes for any part but the last."""


@pytest.fixture
def prefix() -> str:
    return f"s3-{new_id()}"


@pytest.fixture
def artifacts(s3_server: S3Server, tmp_path: Path, prefix: str) -> S3Artifacts:
    settings = s3_server.settings(tmp_path, prefix)
    return S3Artifacts.of(settings, settings.artifacts, part_bytes=PART)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.pt"
    path.write_bytes(b"".join(hashlib.sha256(bytes([i])).digest() * (PART // 32) for i in range(3)) + b"end")
    return path


def test_a_large_file_goes_in_parts_and_comes_back(
    artifacts: S3Artifacts, big: Path, tmp_path: Path, s3_server: S3Server
) -> None:
    stored = artifacts.put("jobs/a/big.pt", big)
    assert (stored.num_bytes, artifacts.size(stored.key)) == (3 * PART + 3, 3 * PART + 3)
    assert obstore.head(artifacts._store, stored.key)["e_tag"].endswith('-4"'), "of four parts"
    assert artifacts.fetch(stored.key, tmp_path / "copy").read_bytes() == big.read_bytes()
    across = b"".join(artifacts.stream(stored.key, 2 * PART - 5, 2 * PART + 5))
    assert across == big.read_bytes()[2 * PART - 5 : 2 * PART + 5]
    assert s3_server.unfinished() == []


class Halting:
    """A file; before its third part is read, something happens."""

    def __init__(self, file: Any, happens: Callable[[], None]) -> None:
        self.file, self.happens = file, happens

    def read(self, size: int = -1) -> bytes:
        if self.file.tell() > 2 * PART:
            self.happens()
        return bytes(self.file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def halt(monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Artifacts, Callable[[], None]], None]:
    """Let something happen in the middle of a put."""

    def halt(artifacts: S3Artifacts, happens: Callable[[], None]) -> None:
        send: Callable[..., Any] = artifacts._send
        monkeypatch.setattr(artifacts, "_send", lambda key, file, *rest: send(key, Halting(file, happens), *rest))

    return halt


def test_a_put_that_breaks_off_leaves_neither_a_file_nor_parts(
    artifacts: S3Artifacts, big: Path, halt: Callable[..., None], s3_server: S3Server
) -> None:
    def fail() -> None:
        while not s3_server.unfinished():
            pass
        raise OSError(errno.EIO, "the disk gives no more")

    halt(artifacts, fail)
    with pytest.raises(OSError, match="the disk gives no more"):
        artifacts.put("jobs/a/big.pt", big)
    assert artifacts.size("jobs/a/big.pt") is None
    assert list(artifacts.listing()) == []
    assert s3_server.unfinished() == []


def test_what_rotted_or_was_swapped_is_not_fetched(artifacts: S3Artifacts, big: Path, tmp_path: Path) -> None:
    artifacts.put("jobs/a/one.pt", big)
    (tmp_path / "here").mkdir()
    with pytest.raises(ArtifactDamaged, match=r"jobs/a/one\.pt"):
        artifacts.fetch("jobs/a/one.pt", tmp_path / "here" / "one", sha256="0" * 64)
    # As another program might write it: the metadata of the one, the content of the other.
    obstore.put(artifacts._store, "jobs/a/two.pt", b"rot", attributes={"sha256": "0" * 64})
    with pytest.raises(ArtifactDamaged):
        artifacts.fetch("jobs/a", tmp_path / "here" / "all")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_presigned_url_is_good_for_one_file_and_names_it(
    s3_server: S3Server, tmp_path: Path, prefix: str, big: Path
) -> None:
    settings = s3_server.settings(tmp_path, prefix, s3_redirect=True)
    artifacts = open_artifacts(settings)
    artifacts.put("jobs/0a/best.safetensors", big)
    url = artifacts.url("jobs/0a/best.safetensors")
    got = httpx.get(url, headers={"Range": "bytes=5-9"})
    assert (got.status_code, got.content) == (206, big.read_bytes()[5:10])
    assert got.headers["Content-Disposition"] == 'attachment; filename="0a-best.safetensors"'
    assert SECRET not in urllib.parse.unquote(url)
    assert httpx.get(url.replace("best.safetensors", "last.safetensors")).status_code == 403
    public = settings.model_copy(update={"s3_public_endpoint": "https://files.example.org"})
    assert (
        open_artifacts(public)
        .url("jobs/0a/best.safetensors")
        .startswith(f"https://files.example.org/{BUCKET}/{prefix}/jobs/0a/best.safetensors?")
    )


REFUSALS = {
    "secret": ({"s3_secret_access_key": "wr0ng"}, "403 SignatureDoesNotMatch", "TID_S3_SECRET_ACCESS_KEY must be"),
    "key": ({"s3_access_key_id": "nobody"}, "403 InvalidAccessKeyId", "TID_S3_ACCESS_KEY_ID must be a key"),
    "bucket": (
        {"artifacts": "s3://no-such-bucket/x"},
        "404 NoSuchBucket",
        "make the bucket no-such-bucket, or set TID_A",
    ),
    "rights": ({"s3_access_key_id": READER}, "403 AccessDenied", "may list, read, write and delete in the bucket"),
    "away": ({"s3_endpoint": "http://127.0.0.1:1"}, "does not answer", "TID_S3_ENDPOINT must be the URL"),
}


@pytest.mark.parametrize("wrong", list(REFUSALS))
def test_a_refusal_says_what_is_wrong_and_how_to_mend_it_without_the_secret(
    s3_server: S3Server, tmp_path: Path, big: Path, wrong: str
) -> None:
    changes, problem, remedy = REFUSALS[wrong]
    settings = s3_server.settings(tmp_path, "x", **changes)
    artifacts = open_artifacts(settings)
    for action in (artifacts.check, lambda: artifacts.put("jobs/a/b.pt", big)):
        with pytest.raises(OSError, match="s3://") as caught:
            action()
        error = caught.value
        assert problem in error.strerror
        assert remedy in error.strerror
        assert settings.s3_endpoint in error.strerror
        assert error.filename.startswith(f"s3://{settings.artifacts.bucket}/")
        assert error.errno == (errno.EACCES if "403" in problem else errno.EIO)
        assert error.may_pass is (wrong == "away")
        told = f"{error!r} {error} {error.__cause__!r} {error.__context__!r} {settings!r} {artifacts!r}"
        assert not [secret for secret in (SECRET, "wr0ng") if secret in told]
    with pytest.raises(OSError, match="s3://"):
        list(artifacts.listing("jobs")) or artifacts.delete("jobs/a") or artifacts.check()


@pytest.fixture
def full() -> Iterator[str]:
    """What a server says whose bucket has a quota that is used up."""

    class Full(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b"<Error><Code>QuotaExceeded</Code><Message>no more</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_bucket_that_is_full_is_told_as_a_disk_that_is(s3_server: S3Server, tmp_path: Path, full: str) -> None:
    (tmp_path / "small").write_bytes(b"x")
    with pytest.raises(OSError, match=r"make room, or raise the quota of the bucket artifacts") as caught:
        open_artifacts(s3_server.settings(tmp_path, "x", s3_endpoint=full)).put("a", tmp_path / "small")
    assert caught.value.errno == errno.ENOSPC


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of one's own, to be killed."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.remove()


def test_a_server_that_is_killed_in_the_middle_has_nothing_half_and_takes_it_the_next_time(
    mortal: S3Server, tmp_path: Path, big: Path, halt: Callable[..., None]
) -> None:
    settings = mortal.settings(tmp_path, "x")
    artifacts = S3Artifacts.of(settings, settings.artifacts, part_bytes=PART)
    artifacts.put("jobs/a/before.pt", big)
    half_way, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        while not half_way.is_set() and not mortal.unfinished():
            pass
        half_way.set()
        go_on.wait()

    halt(artifacts, wait)
    failures: list[OSError] = []

    def put() -> None:
        try:
            artifacts.put("jobs/a/big.pt", big)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    half_way.wait()
    mortal.kill()
    go_on.set()
    thread.join()
    assert "does not answer" in failures[0].strerror
    mortal.start()
    assert [one.name for one in artifacts.listing()] == ["jobs/a/before.pt"]
    artifacts.put("jobs/a/big.pt", big)
    for key in ("jobs/a/before.pt", "jobs/a/big.pt"):
        assert artifacts.fetch(key, tmp_path / key).read_bytes() == big.read_bytes()
