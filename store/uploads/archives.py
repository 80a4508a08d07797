"""An uploaded archive on its way between this machine and the artifacts. Its key names its sha256."""

import errno
import hashlib
import os
from pathlib import Path

from store.artifacts import ArtifactDamaged, ArtifactStore, partial_name
from store.uploads import children
from store.uploads.children import Answer, Watch

_NAME = "archive-"


def folder_key(dataset_id: str) -> str:
    """Key of everything among the artifacts that belongs to the dataset."""
    return f"datasets/{dataset_id}"


def archive_key(dataset_id: str, sha256: str) -> str:
    """Of two senders of one dataset, of whom one is refused in the end, neither replaces what the other sent."""
    return f"{folder_key(dataset_id)}/{_NAME}{sha256}"


def digest_in(key: str) -> str:
    """The sha256 that the archive under this key has."""
    return key.rpartition(_NAME)[2]


def is_shared(artifacts: ArtifactStore) -> bool:
    """Whether hosts share the artifacts and nothing else, so that archives have to be among them."""
    return artifacts.local("datasets") is None


def bring(key: str, target: Path, artifacts: ArtifactStore, watch: Watch) -> Path:
    """A path of the archive: where it lies, or else a copy at `target`, which appears in full or not at all.

    Args:
        watch: called with bytes done and in all; what it raises ends the work.

    Raises:
        FileNotFoundError: it is not among the artifacts.
        ArtifactDamaged: what came is not what was put.
        OSError: the store does not answer, or there is no room here.
    """
    there = artifacts.local(key)
    if there is not None:
        there.stat()
        return there
    target.parent.mkdir(parents=True, exist_ok=True)
    total, digest, done = artifacts.size(key), hashlib.sha256(), 0
    pieces = artifacts.stream(key)
    with partial_name(target) as partial, partial.open("xb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
            done += len(piece)
            watch(done, total)
        if digest.hexdigest() != digest_in(key):
            raise ArtifactDamaged(errno.EIO, f"what arrived has sha256 {digest.hexdigest()[:12]}...", key)
        file.flush()
        os.fsync(file.fileno())
        partial.replace(target)
    return target


def unpack(archive: Path, out: Path, max_bytes: int, watch: Watch) -> Answer:
    """The content as a new folder, made by a child process; where it is refused, there is none.

    Raises:
        ChildFailed: the child failed over it.
    """
    arguments = [str(archive), str(out), "--max-bytes", str(max_bytes), "--progress"]
    return children.run("tid_core.data.archives", arguments, watch)
