"""The single-machine mode's keeper: starts, restarts and stops processes; refuses what cannot work, in plain words."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.embedded import Embedded, EmbeddedError
from client.machine import free_port, lock_home, worker_environments
from client.parts import Part

COUNTER = "import sys, time; open(sys.argv[1], 'a').write('x'); time.sleep(float(sys.argv[2]))"


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():  # the timeout of the test ends it
        time.sleep(0.02)


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Part]:
    """A part that writes one x each time it starts."""
    command = [sys.executable, "-c", COUNTER, str(tmp_path / "starts"), "600"]
    part = Part("counter", command, dict(os.environ), tmp_path / "counter.log", stop_seconds=10.0)
    yield part
    part.kill()


def test_a_killed_part_is_started_again(counter: Part, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    counter.start()
    wait_for(starts.exists)
    assert not counter.keep()
    assert counter.pid is not None
    os.kill(counter.pid, signal.SIGKILL)
    wait_for(counter.keep)
    wait_for(lambda: starts.read_text() == "xx")
    assert counter.restarts == 1


def test_the_log_of_a_part_that_runs_on_is_cut(tmp_path: Path) -> None:
    first, more = 11 * 2**20, tmp_path / "more"
    talker = (
        f"import pathlib, time; print('x' * {first}, flush=True)\nwhile not pathlib.Path({str(more)!r}).exists():"
        " time.sleep(0.02)\nprint('and more', flush=True); time.sleep(600)"
    )
    log = tmp_path / "talker.log"
    part = Part("talker", [sys.executable, "-c", talker], dict(os.environ), log, stop_seconds=10.0)
    part.start()
    wait_for(lambda: log.stat().st_size > first)
    assert not part.keep()
    more.touch()
    wait_for(lambda: log.read_bytes() == b"and more\n")
    assert log.with_suffix(".log.1").stat().st_size == first + 1
    part.kill()


def test_a_part_that_ignores_sigterm_is_killed_when_there_is_no_time(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    stubborn = f"import signal, time; signal.signal(15, lambda *_: None); open({str(ready)!r}, 'w'); time.sleep(600)"
    part = Part("stubborn", [sys.executable, "-c", stubborn], dict(os.environ), tmp_path / "log", stop_seconds=600.0)
    part.start()
    pid = part.pid
    assert pid is not None
    wait_for(ready.exists)
    hurry = threading.Event()
    hurry.set()
    part.stop(hurry)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_parts_do_not_outlive_the_process_that_keeps_them(tmp_path: Path) -> None:
    """kill -9 of `tid up` leaves nobody behind who holds the port or trains for no one."""
    keeper = """
import os, signal, sys, time
from pathlib import Path
from client.parts import Part
starts = Path(sys.argv[2])
command = [sys.executable, "-c", sys.argv[1], str(starts), "600"]
part = Part("p", command, dict(os.environ), starts.with_name("log"), 10.0)
part.start()
while not starts.exists():
    time.sleep(0.01)
print(part.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", keeper, COUNTER, str(tmp_path / "starts")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    status = Path(f"/proc/{int(done.stdout)}/status")
    wait_for(lambda: not status.exists() or "\nState:\tZ" in status.read_text())


def test_a_home_has_one_owner(tmp_path: Path) -> None:
    with lock_home(tmp_path) as lock:
        lock.write("pid 12, http://127.0.0.1:1\n")
        lock.flush()
        with pytest.raises(EmbeddedError, match=r"already runs on .*pid 12, http://127.0.0.1:1.*--home"):
            Embedded(tmp_path).start()
    lock_home(tmp_path).close()


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        embedded = Embedded(tmp_path, port=port)
        with pytest.raises(EmbeddedError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use.*--port"):
            embedded.start()
    assert not embedded.parts
    assert free_port("127.0.0.1", port) == port


def test_what_it_waits_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.embedded._READY_SECONDS", 15.0)
    monkeypatch.setattr("client.embedded._SILENT_SECONDS", 0.0)
    closed = f"http://127.0.0.1:{free_port('127.0.0.1', 0)}"
    keys = {"TID_S3_ACCESS_KEY_ID": "a", "TID_S3_SECRET_ACCESS_KEY": "hunter2"}
    environment = {"TID_ARTIFACTS": "s3://files", "TID_S3_ENDPOINT": closed, **keys}
    said = rf"artifacts: s3://files: {closed} does not answer .*TID_S3_ENDPOINT"
    with pytest.raises(EmbeddedError, match=rf"not ready after 15 s: {said}.*logs"):
        Embedded(tmp_path, port=0, workers=0, environment=environment).start()
    assert re.search(rf"waiting up to 15 s for .*{said}", caplog.text)


def test_workers_share_the_gpus_and_the_cores(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    on_gpus = worker_environments(None, tmp_path, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"})
    assert [variables["CUDA_VISIBLE_DEVICES"] for _, variables in on_gpus] == ["GPU-a", "GPU-b"]
    assert len({variables["TID_WORKER_ID"] for _, variables in on_gpus}) == 2
    for workers, shares in ((1, ["0,1,2"]), (2, ["0,2", "1"]), (4, ["0", "1", "2", "0"])):
        of_three = worker_environments(workers, tmp_path, {"CUDA_VISIBLE_DEVICES": "0,1,2"})
        assert [variables["CUDA_VISIBLE_DEVICES"] for _, variables in of_three] == shares
    ((name, on_cpu),) = worker_environments(None, tmp_path, {"CUDA_VISIBLE_DEVICES": ""})
    assert (name, on_cpu["TID_THREADS"]) == ("worker-0", str(cores))
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu
    assert on_cpu["TID_WORKER_ID"] == on_gpus[0][1]["TID_WORKER_ID"]
    assert worker_environments(1, tmp_path / "other", {})[0][1]["TID_WORKER_ID"] != on_cpu["TID_WORKER_ID"]


def test_ctrl_c_stops_every_part_in_order(tmp_path: Path) -> None:
    """The command itself: it says where it is, and after SIGINT nothing of it runs any more."""
    home = tmp_path / "a folder whose name is too long for the path of a unix socket, which holds hardly a hundred"
    command = [sys.executable, "-m", "client.cli", "up", "--home", str(home), "--port", "0"]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert up.stdout is not None
    assert "tid is up at http://127.0.0.1:" in up.stdout.readline()
    wait_for(lambda: "ready." in (home / "logs" / "worker-0.log").read_text())
    up.send_signal(signal.SIGINT)
    assert up.wait() == 0
    assert "Warm shutdown" in (home / "logs" / "worker-0.log").read_text()
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if str(home).encode() in readable(path)]
    assert left == []


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
