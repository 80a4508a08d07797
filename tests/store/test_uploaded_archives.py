"""An uploaded archive out of a bucket: all of what was sent, or nothing."""

import hashlib
from pathlib import Path

import pytest

from store.artifacts import ArtifactDamaged, ArtifactStore, open_artifacts
from store.ids import new_id
from store.uploads.archives import archive_key, bring
from store.uploads.packing import pack
from tests.s3 import S3Server

CONTENT = hashlib.sha256(b"archive").digest() * 40_000


@pytest.fixture
def artifacts(s3_server: S3Server, tmp_path: Path) -> ArtifactStore:
    return open_artifacts(s3_server.settings(tmp_path, f"archives-{new_id()}"))


@pytest.fixture
def key(artifacts: ArtifactStore, tmp_path: Path) -> str:
    (tmp_path / "sent").write_bytes(CONTENT)
    return artifacts.put(archive_key(new_id(), hashlib.sha256(CONTENT).hexdigest()), tmp_path / "sent").key


def test_it_comes_piece_by_piece(artifacts: ArtifactStore, key: str, tmp_path: Path) -> None:
    told: list[tuple[int | None, int | None]] = []
    copy = bring(key, tmp_path / "here" / "copy", artifacts, lambda *progress: told.append(progress))
    assert copy.read_bytes() == CONTENT
    assert len(told) > 1
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_who_is_not_waited_for_leaves_nothing(artifacts: ArtifactStore, key: str, tmp_path: Path) -> None:
    def watch(*_progress: int | None) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        bring(key, tmp_path / "here" / "copy", artifacts, watch)
    assert list((tmp_path / "here").iterdir()) == []


def test_other_bytes_than_those_that_were_sent_are_not_taken(
    artifacts: ArtifactStore, key: str, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(CONTENT[:-1])
    artifacts.put(key, tmp_path / "other")
    with pytest.raises(ArtifactDamaged):
        bring(key, tmp_path / "here" / "copy", artifacts, lambda *_: None)
    assert list((tmp_path / "here").iterdir()) == []


def test_what_is_packed_again_is_the_same_to_the_last_byte(tmp_path: Path) -> None:
    for name, first in (("one", "b.png"), ("other", "a.png")):
        (tmp_path / name / "images").mkdir(parents=True)
        for file in sorted(["a.png", "b.png"], key=lambda file: file != first):
            (tmp_path / name / "images" / file).write_bytes(file.encode())
        pack(tmp_path / name, tmp_path / f"{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "other.tar").read_bytes()
