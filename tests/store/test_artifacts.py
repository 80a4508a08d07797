"""Files are kept whole or not at all, and only below the root."""

import hashlib
import subprocess
import sys

import pytest

from store.artifacts import FolderArtifacts


@pytest.mark.parametrize("link", [True, False])
def test_a_file_comes_back_as_it_went_in(tmp_path, link):
    source = tmp_path / "student.safetensors"
    source.write_bytes(b"weights" * 1000)
    artifacts = FolderArtifacts(tmp_path / "artifacts", link=link)
    stored = artifacts.put("jobs/abc/best.safetensors", source)
    assert stored == ("jobs/abc/best.safetensors", hashlib.sha256(b"weights" * 1000).hexdigest(), 7000)
    assert (artifacts.path(stored.key).stat().st_ino == source.stat().st_ino) is link
    source.unlink()
    with artifacts.open(stored.key) as file:
        assert file.read() == b"weights" * 1000
    assert artifacts.size(stored.key) == 7000


def test_a_reader_of_the_old_file_is_not_disturbed_by_the_new_one(tmp_path):
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    for content in (b"old", b"new"):
        (tmp_path / f"{content!r}").write_bytes(content)
    artifacts.put("best.pt", tmp_path / "b'old'")
    with artifacts.open("best.pt") as reading:
        artifacts.put("best.pt", tmp_path / "b'new'")
        assert reading.read() == b"old"
    with artifacts.open("best.pt") as reading:
        assert reading.read() == b"new"


def test_deleting_takes_a_file_or_all_below_a_key_and_forgives_twice(tmp_path):
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    (tmp_path / "f").write_bytes(b"x")
    for key in ("jobs/a/one", "jobs/a/two", "jobs/b/one"):
        artifacts.put(key, tmp_path / "f")
    artifacts.delete("jobs/b/one")
    artifacts.delete("jobs/a")
    artifacts.delete("jobs/a")
    assert [artifacts.size(key) for key in ("jobs/a/one", "jobs/a/two", "jobs/b/one")] == [None] * 3


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", ".hidden", "a/.tmp-1", "a\0b", "a b", "a\n", "x" * 600],
)
def test_keys_cannot_leave_the_root_or_hide(tmp_path, key):
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    (tmp_path / "f").write_bytes(b"x")
    for action in (artifacts.path, artifacts.delete, artifacts.open, lambda key: artifacts.put(key, tmp_path / "f")):
        with pytest.raises(ValueError, match="is not a key"):
            action(key)


FULL_DISK = """
import resource, sys
from pathlib import Path
from store.artifacts import FolderArtifacts
root, source = map(Path, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    FolderArtifacts(root, link=False).put("jobs/a/best.pt", source)
except OSError as error:
    print("refused", type(error).__name__)
"""


def test_a_write_that_finds_no_room_leaves_the_old_file_and_nothing_else(tmp_path):
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    (tmp_path / "old").write_bytes(b"old")
    artifacts.put("jobs/a/best.pt", tmp_path / "old")
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    command = [sys.executable, "-c", FULL_DISK, str(artifacts.root), str(tmp_path / "big")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("refused")
    assert artifacts.path("jobs/a/best.pt").read_bytes() == b"old"
    assert [path.name for path in artifacts.root.rglob("*")] == ["jobs", "a", "best.pt"]


def test_a_source_that_is_not_there_leaves_nothing(tmp_path):
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    with pytest.raises(FileNotFoundError):
        artifacts.put("best.pt", tmp_path / "gone")
    assert list(artifacts.root.iterdir()) == []
