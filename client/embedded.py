"""Everything on one machine: Valkey on a unix socket, the API and the workers as processes under one keeper.

Only processes and HTTP: nothing of the service is imported here.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

import httpx

from client.errors import EmbeddedError
from client.machine import free_port, lock_home, make_home, require_torch, valkey_binary, worker_environments
from client.parts import Part

__all__ = ["Embedded", "EmbeddedError"]

log = logging.getLogger("client")

_SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux, 104 on macOS
_READY_SECONDS = 120.0
_SILENT_SECONDS = 3.0  # longer than anything takes on this machine; a bucket may be elsewhere
_KEEP_SECONDS = 0.2
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SAVING_SECONDS = 120.0  # the default of TID_TERMINATE_GRACE_SECONDS, in which a training saves its state
_SETTLING_SECONDS = 30.0  # what a worker needs after that, and the API to let go of what it does


class _Interrupted(EmbeddedError):
    """Somebody wanted it to stop before it was up."""


class Embedded:
    """The whole service on this machine, as a context manager, or until a signal with `run_forever`.

    Args:
        home: everything the service keeps: database, artifacts, logs. Created when missing.
        host: address the API listens on.
        port: its port; 0 = any free one.
        workers: number of workers; None = one for each GPU, or one for the CPU.
        environment: further variables for the parts, e.g. TID_DATA_ROOTS; they win over the process's own.
    """

    def __init__(
        self,
        home: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        workers: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home.expanduser().resolve()
        self.host, self.port = host, port
        self.parts: dict[str, Part] = {}
        self._num_workers = workers
        self._extra = dict(environment or {})
        self._lock: IO[str] | None = None
        self._socket_dir: Path | None = None
        self._keeper: threading.Thread | None = None
        self._stopping = threading.Event()
        self._hurry = threading.Event()

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def start(self) -> None:
        """Start every part and wait until the API answers that it is ready.

        Raises:
            EmbeddedError: the home is in use, the port is taken, or a part ends before it is ready.
        """
        self._lock = lock_home(make_home(self.home))
        try:
            self.port = free_port(self.host, self.port)
            self._lock.write(f"pid {os.getpid()}, {self.url}\n")
            self._lock.flush()
            if self._num_workers != 0:
                require_torch()
            self._make_parts()
            self._start_keeper()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the workers (each saves its job's state and hands it back), the API, then Valkey."""
        self._stopping.set()
        if self._keeper is not None and self._keeper.is_alive():
            self._keeper.join()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def run_forever(
        self, on_ready: Callable[[Self], None] | None = None, on_stop: Callable[[Self], None] | None = None
    ) -> bool:
        """Run until SIGINT, SIGTERM or SIGHUP; a second one no longer waits for anything. For the main thread.

        Returns:
            Whether everything was stopped in order.
        """

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            (self._hurry if self._stopping.is_set() else self._stopping).set()

        # One that is ignored, as SIGHUP is under nohup, stays so.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, on_signal) for number in heard}
        try:
            self._run(on_ready, on_stop)
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        return not self._hurry.is_set()

    def _run(self, on_ready: Callable[[Self], None] | None, on_stop: Callable[[Self], None] | None) -> None:
        try:
            self.start()
        except _Interrupted:
            return
        if on_ready is not None:
            on_ready(self)
        self._stopping.wait()
        if on_stop is not None:
            on_stop(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what runs in the keeper's thread: parts live as long as the thread that starts them

    def _start_keeper(self) -> None:
        ready = threading.Event()
        failure: list[BaseException] = []
        self._keeper = threading.Thread(target=self._keep, args=(ready, failure), name="keeper", daemon=False)
        self._keeper.start()
        ready.wait()
        if failure:
            raise failure[0]

    def _keep(self, ready: threading.Event, failure: list[BaseException]) -> None:
        try:
            self._start_parts()
            ready.set()
            while not self._stopping.wait(_KEEP_SECONDS):
                for part in self.parts.values():
                    part.keep()
        except BaseException as error:
            failure.append(error)
        finally:
            self._stop_parts()
            ready.set()

    def _start_parts(self) -> None:
        """Valkey, then the API (which brings the database up to date), then the workers."""
        for name in ("valkey", "api"):
            self.parts[name].start()
        self._wait_until_ready()
        for part in self._workers():
            part.start()

    def _stop_parts(self) -> None:
        workers = self._workers()
        for part in workers:
            part.terminate()
        for part in [*workers, self.parts["api"], self.parts["valkey"]]:
            part.stop(self._hurry)

    def _wait_until_ready(self) -> None:
        begun = time.monotonic()
        answer = told = "no answer"
        while time.monotonic() < begun + _READY_SECONDS:
            if self._stopping.is_set():
                raise _Interrupted("stopped while starting")
            self._refuse_dead_parts()
            try:
                response = httpx.get(f"{self.url}/readyz", timeout=5.0)
            except httpx.TransportError as error:
                answer = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return
                answer = _missing(response)
                if answer != told and time.monotonic() > begun + _SILENT_SECONDS:
                    log.warning("waiting up to %.0f s for %s", _READY_SECONDS, answer)
                    told = answer
            time.sleep(0.1)
        raise EmbeddedError(f"the API was not ready after {_READY_SECONDS:.0f} s: {answer}; see {self.home / 'logs'}")

    def _refuse_dead_parts(self) -> None:
        for part in self.parts.values():
            code = part.exit_code()
            if code is not None:
                raise EmbeddedError(f"{part.name} ended with code {code} while starting:\n{part.log_tail()}")

    # -- what the parts are

    def _workers(self) -> list[Part]:
        return [part for name, part in self.parts.items() if name.startswith("worker")]

    def _make_parts(self) -> None:
        socket_path = self._socket_path()
        base = {**os.environ, **self._extra}
        for name in ("TID_API_KEY", "TID_API_KEY_FILE"):  # of a client, which the parts are not
            base.pop(name, None)
        base["TID_HOME"] = str(self.home)
        base["TID_BROKER_URL"] = f"redis+socket://{socket_path}"
        base["TID_HOST"], base["TID_PORT"] = self.host, str(self.port)
        base.setdefault("TID_START_SECONDS", "0")  # somebody sits before it, and wants to hear at once
        base["PYTHONSAFEPATH"] = "1"  # a folder `api` or `worker` where `tid up` is called is not this service's
        valkey = [valkey_binary(), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"]
        valkey += ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(self.home / "run")]
        python = [sys.executable, "-m"]
        self._add("valkey", valkey, base, 10.0)
        self._add("api", [*python, "api"], base, _SETTLING_SECONDS)
        patience = _saving_seconds(base) + _SETTLING_SECONDS
        for name, variables in worker_environments(self._num_workers, self.home, base):
            self._add(name, [*python, "worker"], {**base, **variables}, patience)

    def _add(self, name: str, command: list[str], environment: Mapping[str, str], stop_seconds: float) -> None:
        self.parts[name] = Part(name, command, environment, self.home / "logs" / f"{name}.log", stop_seconds)

    def _socket_path(self) -> Path:
        path = self.home / "run" / "valkey.sock"
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="tid-", dir="/tmp"))
            path = self._socket_dir / "valkey.sock"
        return path


def _missing(response: httpx.Response) -> str:
    """What a server that is not ready waits for."""
    try:
        found = [one for one in response.json()["dependencies"] if one["required"] and not one["ok"]]
        return "; ".join("; ".join(filter(None, [f"{one['name']}: {one['detail']}", one["remedy"]])) for one in found)
    except (ValueError, LookupError, TypeError):  # something else listens there by now
        return f"{response.status_code} {response.text[:500]}"


def _saving_seconds(environment: Mapping[str, str]) -> float:
    try:
        return float(environment.get("TID_TERMINATE_GRACE_SECONDS") or _SAVING_SECONDS)
    except ValueError:  # the parts say what is wrong with it
        return _SAVING_SECONDS
