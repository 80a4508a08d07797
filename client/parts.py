"""One part of the single-machine mode (Valkey, the API, a worker) as a process that is kept running."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("client")

# The part gets SIGTERM when the process that started it dies, however it dies (Linux; elsewhere it merely runs on).
# 1 = PR_SET_PDEATHSIG, 15 = SIGTERM. The check of the parent closes the gap before the call.
_LAUNCH = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that starts this part is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_KEPT_LOG_BYTES = 10 * 1024 * 1024
_LONGEST_PAUSE = 30.0
_HEALTHY_AFTER = 60.0


@dataclass
class Part:
    """A command, its log and how often it had to be started again.

    `start`, `stop` and `keep` belong to one thread: on Linux the process gets SIGTERM when that thread ends.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    stop_seconds: float
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _started_at: float = 0.0
    _log_begins: int = 0
    _failures: int = field(default=0, repr=False)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        rotate(self.log)
        with self.log.open("ab") as output:
            self._log_begins = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,  # Ctrl-C in the terminal reaches `tid up` alone, which stops its parts in order
            )
        self._started_at = time.monotonic()

    def exit_code(self) -> int | None:
        """None while it runs; negative = ended by that signal."""
        return None if self._process is None else self._process.poll()

    def keep(self) -> bool:
        """Start the part again if it ended, after a pause that doubles with each failure in a row.

        Returns:
            Whether it was started.
        """
        code = self.exit_code()
        if code is None:
            rotate(self.log)
            return False
        now = time.monotonic()
        if self._failures and now - self._started_at > _HEALTHY_AFTER:
            self._failures = 0
        pause = min(2.0**self._failures - 1.0, _LONGEST_PAUSE)  # none the first time
        if now - self._started_at < pause:
            return False
        log.warning("%s ended with code %d and is started again; its log is %s", self.name, code, self.log)
        self._failures += 1
        self.restarts += 1
        self.start()
        return True

    def terminate(self) -> None:
        """Ask it to stop; `stop` waits for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, hurry: threading.Event) -> None:
        """SIGTERM, `stop_seconds` of patience (none once `hurry` is set), then SIGKILL to everything in its session."""
        self.terminate()
        deadline = time.monotonic() + self.stop_seconds
        while self._process is not None and self._process.poll() is None:
            if hurry.wait(0.05) or time.monotonic() > deadline:
                self.kill()
        self._process = None

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines since it was started."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(self._log_begins, self.log.stat().st_size - 20_000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def rotate(log: Path) -> None:
    """Keep one older log once it has grown large, so that a service that runs for ever cannot fill the disk.

    The file is copied and cut, not renamed: a running part goes on writing to the one it was given.
    """
    if log.exists() and log.stat().st_size > _KEPT_LOG_BYTES:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)
