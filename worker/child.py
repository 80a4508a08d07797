"""The training process: in a session of its own, heard through two pipes, killed as a group."""

import codecs
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from store.secret_files import without_credentials
from tid_core.events import EVENT, Event

PROGRAM = ("-m", "tid_core.run")
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Heard:
    """What came through the pipes since the last look."""

    events: list[Event] = field(default_factory=list)
    log: str = ""


class Child:
    """One training process.

    The process dies with the *thread* that made this object (it sets PR_SET_PDEATHSIG itself), so make it in the
    thread that will watch it.
    """

    def __init__(
        self,
        plan: Path,
        *,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
        inherited: Sequence[int] = (),
    ) -> None:
        """`inherited`: descriptors that it gets, under the same numbers."""
        self._events_fd, events_write = os.pipe()
        self._log_fd, log_write = os.pipe()
        command = [sys.executable, *program, str(plan), "--events-fd", str(events_write)]
        try:
            self._process = subprocess.Popen(
                [*command, "--parent-pid", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log_write,
                stderr=subprocess.STDOUT,
                pass_fds=(events_write, *inherited),
                start_new_session=True,
                env=child_environment(os.environ if environment is None else environment),
            )
        finally:
            os.close(events_write)
            os.close(log_write)
        self._selector = selectors.DefaultSelector()
        for fd in (self._events_fd, self._log_fd):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)
        self._partial = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def exited(self) -> bool:
        """Whether the process has ended; it stays a zombie, so that its group's number cannot be taken by another."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def listen(self, timeout: float) -> Heard:
        """Wait up to `timeout` seconds for output and return it.

        A malformed line on the event pipe ends up in the log: it is a defect to be seen, not a reason to stop.
        """
        events: list[Event] = []
        log = ""
        if not self._selector.get_map():
            return Heard()
        for key, _ in self._selector.select(timeout):
            chunk = self._read(key.fd)
            if key.fd == self._log_fd:
                log += self._decoder.decode(chunk)
            else:
                found, wrong = self._parse(chunk)
                events += found
                log += wrong
        return Heard(events, log)

    def drain(self) -> Heard:
        """Everything left in the pipes of a process that has ended, after killing what it left running."""
        self.kill()
        events: list[Event] = []
        log = ""
        while self._selector.get_map() and self._selector.select(0):
            heard = self.listen(0)
            events += heard.events
            log += heard.log
        return Heard(events, log)

    def terminate(self) -> None:
        """Ask the process to save its state and stop (SIGTERM, to the process alone: its helpers end with it)."""
        if not self.exited():
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and everything it started in its session, now."""
        if self._process.returncode is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()

    def close(self) -> int:
        """Kill what is left of the group, collect the process and free the pipes.

        Returns:
            The exit code; negative = ended by that signal.
        """
        self.kill()
        code = self._process.wait()
        self._selector.close()
        for fd in (self._events_fd, self._log_fd):
            if fd >= 0:
                os.close(fd)
        self._events_fd = self._log_fd = -1
        return code

    def _read(self, fd: int) -> bytes:
        try:
            chunk = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return b""
        if not chunk:  # end of file: a closed pipe would be "readable" for ever
            self._selector.unregister(fd)
        return chunk

    def _parse(self, chunk: bytes) -> tuple[list[Event], str]:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        events: list[Event] = []
        wrong = ""
        for line in lines:
            try:
                events.append(EVENT.validate_json(line))
            except ValidationError:
                wrong += f"[worker] not an event: {line[:500].decode(errors='replace')}\n"
        return events, wrong


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the training process: without the service's own settings, which hold credentials."""
    return {**without_credentials(environment), "PYTHONUNBUFFERED": "1"}
