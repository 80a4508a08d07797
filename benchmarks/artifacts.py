"""Artifacts on S3: a file is put and fetched through this service's store and through boto3, in turns, to one server.

The server is SeaweedFS from its wheel, in one process on this machine; all pay for the same server. `boto3` is its
`upload_file` and `download_file` as they come; `boto3 + sha256` does what the store does: the digest is put beside the
object, sent as S3's checksum, and looked at when the file comes back.

PYTHONPATH=. uv run --with boto3 python benchmarks/artifacts.py [--mib N] [--rounds R]
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.fire.s3 import BUCKET, KEY_ID, SECRET, S3Server
from store.artifacts import open_artifacts

KEY = "jobs/0123456789ab/attempt-1/state.pt"


class Contender(Protocol):
    def put(self, source: Path) -> None: ...

    def fetch(self, target: Path) -> None: ...

    def delete(self) -> None: ...


class Ours:
    def __init__(self, server: S3Server, home: Path) -> None:
        self._store = open_artifacts(server.settings(home, "ours"))

    def put(self, source: Path) -> None:
        self._store.put(KEY, source)

    def fetch(self, target: Path) -> None:
        self._store.fetch(KEY, target)

    def delete(self) -> None:
        self._store.delete(KEY)


class Boto3:
    def __init__(self, server: S3Server, *, with_sha256: bool) -> None:
        import boto3  # type: ignore[import-not-found,unused-ignore]

        keys = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        self._client: Any = boto3.client("s3", endpoint_url=server.endpoint, **keys)
        self._with_sha256 = with_sha256
        self._key = f"boto3-{with_sha256}"

    def put(self, source: Path) -> None:
        extra: dict[str, Any] = {}
        if self._with_sha256:
            extra = {"Metadata": {"sha256": _digest(source)}, "ChecksumAlgorithm": "SHA256"}
        self._client.upload_file(str(source), BUCKET, self._key, ExtraArgs=extra)

    def fetch(self, target: Path) -> None:
        self._client.download_file(BUCKET, self._key, str(target))
        if self._with_sha256:
            stated = self._client.head_object(Bucket=BUCKET, Key=self._key)["Metadata"]["sha256"]
            if _digest(target) != stated:
                raise RuntimeError("what came back is not what was put")

    def delete(self) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=self._key)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def race(contenders: dict[str, Contender], source: Path, folder: Path, rounds: int) -> dict[str, list[list[float]]]:
    """Of each contender the seconds of every put and of every fetch; another one begins each round."""
    times: dict[str, list[list[float]]] = {name: [[], []] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            contender, target = contenders[name], folder / "copy"
            times[name][0].append(_seconds(contender.put, source))
            times[name][1].append(_seconds(contender.fetch, target))
            if _digest(target) != _digest(source):
                raise RuntimeError(f"{name}: what came back is not what was put")
            target.unlink()
            contender.delete()
    return times


def _seconds(action: Callable[[Path], None], path: Path) -> float:
    began = time.perf_counter()
    action(path)
    return time.perf_counter() - began


@contextmanager
def _served(folder: Path, num_bytes: int, rounds: int) -> Iterator[S3Server]:
    server = S3Server(folder, volumes=16 + 4 * rounds * (num_bytes >> 26) + 4 * rounds)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    num_bytes = arguments.mib << 20
    with tempfile.TemporaryDirectory(prefix="tid-bench-") as name:
        folder, source = Path(name), Path(name) / "source"
        (folder / "s3").mkdir()
        with source.open("wb") as file:
            for _ in range(arguments.mib):
                file.write(os.urandom(1 << 20))
        with _served(folder / "s3", num_bytes, arguments.rounds) as server:
            contenders: dict[str, Contender] = {
                "ours": Ours(server, folder),
                "boto3": Boto3(server, with_sha256=False),
                "boto3 + sha256": Boto3(server, with_sha256=True),
            }
            show(race(contenders, source, folder, arguments.rounds), arguments.mib)


def show(times: dict[str, list[list[float]]], mib: int) -> None:
    ours = [statistics.median(seconds) for seconds in times["ours"]]
    for name, both in times.items():
        for what, seconds, own in zip(("put", "fetch"), both, ours, strict=True):
            median = statistics.median(seconds)
            print(
                f"{name:>15} {what:>5}: median {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
                f"{mib / median:.0f} MiB/s, {median / own:.2f} times ours"
            )


if __name__ == "__main__":
    main()
