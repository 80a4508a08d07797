"""Files are kept whole or not at all, and only below the root; in a folder and in a bucket."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import CONDEMNED, ArtifactStore, FolderArtifacts, open_artifacts
from store.ids import new_id
from store.settings import Settings


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "folder":
        return open_artifacts(Settings(home=tmp_path))
    server: Any = request.getfixturevalue("s3_server")
    return open_artifacts(server.settings(tmp_path, f"store-{new_id()}"))


@pytest.fixture
def put(artifacts: ArtifactStore, tmp_path: Path) -> Callable[..., str]:
    def put(key: str, content: bytes = b"x") -> str:
        source = tmp_path / new_id()
        source.write_bytes(content)
        return artifacts.put(key, source).sha256

    return put


def read(artifacts: ArtifactStore, key: str, *part: int) -> bytes:
    return b"".join(artifacts.stream(key, *part))


def test_a_file_comes_back_as_it_went_in(artifacts: ArtifactStore, tmp_path: Path) -> None:
    source, content = tmp_path / "student.safetensors", b"weights" * 100_000
    source.write_bytes(content)
    stored = artifacts.put("jobs/abc/best.safetensors", source)
    assert stored == ("jobs/abc/best.safetensors", hashlib.sha256(content).hexdigest(), 700_000)
    source.unlink()
    assert read(artifacts, stored.key) == content
    assert artifacts.size(stored.key) == 700_000
    found = artifacts.fetch(stored.key, tmp_path / "here" / "best", sha256=stored.sha256)
    assert found.read_bytes() == content
    assert found == (artifacts.local(stored.key) or tmp_path / "here" / "best")


@pytest.mark.parametrize("link", [True, False])
def test_a_folder_links_or_copies(tmp_path: Path, link: bool) -> None:
    (tmp_path / "f").write_bytes(b"x")
    artifacts = FolderArtifacts(tmp_path / "artifacts", link=link)
    artifacts.put("a/f", tmp_path / "f")
    assert (artifacts.local("a/f").stat().st_ino == (tmp_path / "f").stat().st_ino) is link


@pytest.mark.parametrize(("part", "got"), [((2,), b"23456789"), ((2, 5), b"234"), ((8, 99), b"89"), ((3, 3), b"")])
def test_a_part_of_a_file(artifacts: ArtifactStore, put: Callable[..., str], part: tuple[int, ...], got: bytes) -> None:
    put("a/digits", b"0123456789")
    assert read(artifacts, "a/digits", *part) == got


def test_an_empty_file(artifacts: ArtifactStore, put: Callable[..., str], tmp_path: Path) -> None:
    put("a/empty", b"")
    assert (read(artifacts, "a/empty"), artifacts.size("a/empty")) == (b"", 0)
    assert artifacts.fetch("a/empty", tmp_path / "empty").read_bytes() == b""


def test_a_reader_of_the_old_file_is_not_disturbed_by_the_new_one(
    artifacts: ArtifactStore, put: Callable[..., str]
) -> None:
    put("best.pt", b"old" * 1_000_000)
    reading = artifacts.stream("best.pt")
    begun = next(reading)
    put("best.pt", b"new")
    assert begun + b"".join(reading) == b"old" * 1_000_000
    assert read(artifacts, "best.pt") == b"new"


def test_a_folder_of_files_comes_as_one(artifacts: ArtifactStore, put: Callable[..., str], tmp_path: Path) -> None:
    put("jobs/a/state/state.pt", b"state")
    put("jobs/a/state/more/rng", b"rng")
    put("jobs/a/state-2/state.pt", b"another")
    found = artifacts.fetch("jobs/a/state", tmp_path / "state")
    files = {path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    assert files == {"state.pt": b"state", "more/rng": b"rng"}


def test_what_is_not_there_is_told_by_its_name(
    artifacts: ArtifactStore, put: Callable[..., str], tmp_path: Path
) -> None:
    put("jobs/ab/x")
    for action in (artifacts.stream, lambda key: artifacts.fetch(key, tmp_path / "here")):
        with pytest.raises(FileNotFoundError) as caught:
            action("jobs/a")
        assert str(caught.value.filename).endswith("jobs/a")
    assert artifacts.size("jobs/a") is None
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".part", "here"))]


def test_deleting_takes_a_file_or_all_below_a_key_and_forgives_twice(
    artifacts: ArtifactStore, put: Callable[..., str]
) -> None:
    keys = ("jobs/a/one", "jobs/a/x/two", "jobs/b/one", "jobs/ab/one")
    for key in keys:
        put(key)
    artifacts.delete("jobs/b/one")
    artifacts.delete("jobs/a")
    artifacts.delete("jobs/a")
    assert [artifacts.size(key) for key in keys] == [None, None, None, 1]


def test_what_lies_there_is_listed_with_its_size_and_age_and_discarded_by_name(
    artifacts: ArtifactStore, put: Callable[..., str], tmp_path: Path
) -> None:
    for key in ("jobs/a/one", "jobs/a/x/two", "datasets/d/train.json"):
        put(key, b"12345")
    artifacts.condemn("jobs/a")
    artifacts.condemn("jobs/nothing-there")
    now = tmp_path / "now"
    now.touch()
    listed = {one.name: one for one in artifacts.listing("jobs")}
    assert {name: one.num_bytes for name, one in listed.items()} == {
        "jobs/a/one": 5,
        "jobs/a/x/two": 5,
        f"jobs/a/{CONDEMNED}": 0,
    }
    assert all(abs(one.changed - now.stat().st_mtime) < 60 for one in listed.values())
    artifacts.discard([*listed, "jobs/a/gone"])
    assert [one.name for one in artifacts.listing()] == ["datasets/d/train.json"]
    assert list(artifacts.listing("jobs")) == []


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", ".hidden", "a/.tmp-1", "a\0b", "a b", "a\n", "x" * 600],
)
def test_keys_cannot_leave_the_root_or_hide(tmp_path: Path, key: str) -> None:
    (tmp_path / "f").write_bytes(b"x")
    bucket = Settings(home=tmp_path, artifacts="s3://nobody/asked", s3_endpoint="http://127.0.0.1:1")
    for artifacts in (open_artifacts(Settings(home=tmp_path)), open_artifacts(bucket)):
        actions: list[Callable[[str], Any]] = [artifacts.local, artifacts.delete, artifacts.stream, artifacts.url]
        actions += [artifacts.size, lambda key, to=artifacts: list(to.listing(key))]
        actions += [lambda key, to=artifacts: to.put(key, tmp_path / "f")]
        actions += [lambda key, to=artifacts: to.fetch(key, tmp_path / "g"), artifacts.condemn]
        for action in actions:
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


def test_a_write_that_finds_no_room_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    (tmp_path / "old").write_bytes(b"old")
    artifacts.put("jobs/a/best.pt", tmp_path / "old")
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    command = [sys.executable, "-c", FULL_DISK, str(artifacts.root), str(tmp_path / "big")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("refused")
    assert artifacts.local("jobs/a/best.pt").read_bytes() == b"old"
    assert [path.name for path in artifacts.root.rglob("*")] == ["jobs", "a", "best.pt"]


def test_a_source_that_is_not_there_leaves_nothing(artifacts: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        artifacts.put("best.pt", tmp_path / "gone")
    assert list(artifacts.listing()) == []
