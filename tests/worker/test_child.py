"""The pipes, signals and group of a training process, with small programs that speak its protocol."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tid_core.events import Metrics
from worker.child import Child, Heard, child_environment
from worker.endings import explain

HEADER = """
import os, signal, subprocess, sys, time
from pathlib import Path
fd, parent = int(sys.argv[3]), int(sys.argv[5])
def event(step, values):
    import json
    os.write(fd, json.dumps({"type": "metrics", "step": step, "epoch": 0, "values": values}).encode() + b"\\n")
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], Child]:
    def make(body: str) -> Child:
        script = tmp_path / "program.py"
        script.write_text(HEADER + body)
        return Child(tmp_path / "plan.json", program=(str(script),))

    return make


def listen_until_exit(child: Child) -> Heard:
    events, log = [], ""
    while not child.exited():
        heard = child.listen(0.1)
        events += heard.events
        log += heard.log
    rest = child.drain()
    return Heard(events + rest.events, log + rest.log)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():  # the timeout of the test ends it
        time.sleep(0.02)


def test_every_event_and_every_character_arrives(start: Callable[[str], Child]) -> None:
    """More than a pipe holds, with lines and characters torn by reads, from a process that ends at once."""
    child = start(
        """
values = {f"val/class/{i}/AP": 0.5 for i in range(4000)}
for step in range(5):
    print("schön" * 5000)
    event(step, values)
os.write(fd, b"not json\\n")
os.write(fd, b'{"type": "metrics", "step": 9')
"""
    )
    heard = listen_until_exit(child)
    assert child.close() == 0
    assert [event.step for event in heard.events if isinstance(event, Metrics)] == [0, 1, 2, 3, 4]
    assert heard.log.count("schön") == 25_000
    assert "�" not in heard.log
    assert "not an event: not json" in heard.log


def test_a_killed_process_takes_its_helpers_with_it(start: Callable[[str], Child]) -> None:
    """Loader processes hold the pipes open; they must neither hide the end nor survive it."""
    child = start(
        """
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=(fd,))
print(helper.pid, flush=True)
event(1, {})
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    heard = listen_until_exit(child)
    assert child.close() == -signal.SIGKILL
    helper = int(heard.log)
    wait_for(lambda: not alive(helper))


def test_terminate_asks_and_kill_insists(start: Callable[[str], Child]) -> None:
    child = start(
        """
signal.signal(signal.SIGTERM, lambda *_: event(7, {}))
event(0, {})
while True:
    time.sleep(0.01)
"""
    )
    events = []
    while len(events) < 1:
        events += child.listen(0.1).events
    child.terminate()
    while len(events) < 2:
        events += child.listen(0.1).events
    assert not child.exited()
    child.kill()
    wait_for(child.exited)
    assert child.close() == -signal.SIGKILL


def test_the_process_starts_in_its_own_session_and_learns_its_parent(start: Callable[[str], Child]) -> None:
    child = start("print(parent, os.getsid(0) == os.getpid())")
    heard = listen_until_exit(child)
    child.close()
    assert heard.log == f"{os.getpid()} True\n"


def test_the_services_credentials_do_not_reach_the_training() -> None:
    given = {"TID_DATABASE_URL": "postgresql://user:secret@host/db", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"}
    given |= dict.fromkeys(("PGPASSWORD", "PGPASSFILE", "AWS_SESSION_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS"), "secret")
    kept = child_environment(given)
    assert "secret" not in str(kept)
    assert "TID_DATABASE_URL" not in kept
    assert kept["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("code", "reason", "part"),
    [
        (-9, "child_killed", "out-of-memory"),
        (-11, "child_crashed", "SIGSEGV"),
        (3, "child_crashed", "code 3 and no result; its last words: boom"),
    ],
)
def test_an_end_without_a_word_is_explained(code: int, reason: str, part: str) -> None:
    ending = explain(code, "first\nboom\n\n")
    assert ending.reason == reason
    assert part in ending.detail


def test_the_worker_never_loads_torch() -> None:
    code = "import sys, worker.app, worker.supervisor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
