"""Downloads over a wire that breaks, and of files that are not what they should be."""

import hashlib
import os
import random
from pathlib import Path

import pytest

from client.client import Client
from client.errors import ApiError, DownloadError
from store.models import Checkpoint

SIZE = 1_000_000


@pytest.fixture
def job_id(server, client, database, spec) -> str:
    """A job whose best checkpoint is a megabyte of noise."""
    job_id = client.submit(spec).id
    content = random.Random(job_id).randbytes(SIZE)
    key = f"jobs/{job_id}/best.safetensors"
    path = server.home / "artifacts" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with database.write() as session:
        row = {"name": "best", "format": "safetensors", "key": key, "step": 1, "epoch": 1, "ap": 0.5, "attempt": 1}
        session.add(Checkpoint(job_id=job_id, sha256=hashlib.sha256(content).hexdigest(), bytes=SIZE, **row))
    return job_id


def content_of(job_id: str) -> bytes:
    return random.Random(job_id).randbytes(SIZE)


def part_of(target: Path, job_id: str) -> Path:
    return target.with_name(f"{target.name}.{hashlib.sha256(content_of(job_id)).hexdigest()[:12]}.part")


def test_a_whole_download(client, job_id, tmp_path) -> None:
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "student.safetensors"
    sha256 = client.download(job_id, path=target, on_bytes=lambda have, total: seen.append((have, total)))
    assert target.read_bytes() == content_of(job_id)
    assert sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert seen[-1] == (SIZE, SIZE)
    assert list(target.parent.iterdir()) == [target]


def test_what_is_not_there_is_told_although_it_was_asked_for_by_head(client, job_id, tmp_path) -> None:
    with pytest.raises(ApiError, match=r"'epoch-7' as safetensors .* it has: best") as refused:
        client.download(job_id, "epoch-7", path=tmp_path / "x")
    assert refused.value.code == "checkpoint_not_found"
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_no_file_is_not_replaced(client, job_id, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DownloadError, match="not a file"):
        client.download(job_id, path=tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_broken_download_is_continued_and_not_begun_again(cut_wire, job_id, tmp_path) -> None:
    target = tmp_path / "student.safetensors"
    with cut_wire(*[300_000] * 4) as wire, Client(wire.url, backoff=0.01) as client:
        client.download(job_id, path=target)
        assert wire.connections >= 4
        assert wire.answered < SIZE * 1.05, "every byte came once, headers aside"
    assert target.read_bytes() == content_of(job_id)


def test_a_later_call_continues_too(client, job_id, tmp_path) -> None:
    target = tmp_path / "student.safetensors"
    part_of(target, job_id).write_bytes(content_of(job_id)[:700_000])
    seen: list[int] = []
    client.download(job_id, path=target, on_bytes=lambda have, _total: seen.append(have))
    assert min(seen) > 700_000
    assert target.read_bytes() == content_of(job_id)


def test_a_part_that_lacks_only_its_name(client, job_id, tmp_path) -> None:
    target = tmp_path / "student.safetensors"
    part_of(target, job_id).write_bytes(content_of(job_id))
    client.download(job_id, path=target)
    assert target.read_bytes() == content_of(job_id)


def test_a_part_that_was_damaged_is_thrown_away(client, job_id, tmp_path) -> None:
    target = tmp_path / "student.safetensors"
    part_of(target, job_id).write_bytes(b"\0" * 700_000)
    with pytest.raises(DownloadError, match="sha256"):
        client.download(job_id, path=target)
    assert list(tmp_path.iterdir()) == []
    client.download(job_id, path=target)
    assert target.read_bytes() == content_of(job_id)


def test_the_part_of_an_older_file_is_not_continued(client, job_id, tmp_path) -> None:
    target = tmp_path / "student.safetensors"
    old = target.with_name(f"{target.name}.{'0' * 12}.part")
    old.write_bytes(b"\0" * 700_000)
    client.download(job_id, path=target)
    assert target.read_bytes() == content_of(job_id)
    assert not old.exists()


def test_bytes_that_rotted_on_the_server_are_refused(server, client, job_id, tmp_path) -> None:
    kept = server.home / "artifacts" / "jobs" / job_id / "best.safetensors"
    kept.write_bytes(b"\0" + content_of(job_id)[1:])
    with pytest.raises(DownloadError, match="sha256"):
        client.download(job_id, path=tmp_path / "student.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_went_away_is_given_up(cut_wire, job_id, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("client.download.PATIENCE", 2)
    target = tmp_path / "student.safetensors"
    gives_up = pytest.raises(DownloadError, match="same command again")
    with cut_wire(300_000, *[0] * 50) as wire, Client(wire.url, backoff=0.01, retries=0) as client, gives_up:
        client.download(job_id, path=target)
    kept = part_of(target, job_id).read_bytes()
    assert len(kept) > 200_000, "what had arrived is kept"
    assert content_of(job_id).startswith(kept)


def test_a_folder_that_cannot_be_written(client, job_id, tmp_path) -> None:
    target = tmp_path / "student.safetensors"
    part_of(target, job_id).mkdir()
    with pytest.raises(DownloadError, match="cannot write"):
        client.download(job_id, path=target)


def test_a_checkpoint_that_does_not_exist(client, job_id, tmp_path) -> None:
    with pytest.raises(ApiError) as caught:
        client.download(job_id, "epoch-7", path=tmp_path / "student.safetensors")
    assert caught.value.status == 404
