"""Work that is kept out of the service's processes: Python modules as children that end with it, however it ends."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

from store.secret_files import without_credentials

# The child is killed when the thread that started it ends, however that ends (Linux; elsewhere it merely runs on).
# 1 = PR_SET_PDEATHSIG, 9 = SIGKILL; both outlive the exec. The check of the parent closes the gap before the call.
_LAUNCH = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that started this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
REFUSED = 3
"""Exit code of a child that says, as one JSON object on stdout, what is wrong with what it was given."""
_READ_BYTES = 1 << 16
_KEPT_BYTES = 1 << 20
_LOOK_SECONDS = 0.2
_TAIL = 2000


class Answer(NamedTuple):
    """What came of a child that ended by itself."""

    refusal: dict[str, Any] | None
    """What is wrong, for REFUSED; None where all went well."""


class ChildFailed(RuntimeError):
    """The child ended in a way that it was not made for; the text has how, and its last words."""


Watch = Callable[[int | None, int | None], None]
"""Called several times a second with how much is done, of how much; what it raises ends the child."""


def run(module: str, arguments: Sequence[str], watch: Watch) -> Answer:
    """Run `python -m module` to its end; its stderr holds lines `done total`, and whatever else it has to say.

    Call it in the thread that may be trusted to live as long as the child.

    Raises:
        ChildFailed: it crashed or was killed.
    """
    command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=without_credentials(os.environ),
    )
    try:
        said, told = _listen(process, watch)
        code = process.wait()
    finally:
        _end(process)
    if code == REFUSED:
        return Answer(_refusal(said))
    if code != 0:
        tail = "\n".join(line for line in told.splitlines() if _progress(line) is None)[-_TAIL:]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise ChildFailed(f"{module} {how}: {tail or 'no last words'}")
    return Answer(None)


def _listen(process: "subprocess.Popen[bytes]", watch: Watch) -> tuple[str, str]:
    """Everything on stdout, and the end of stderr."""
    assert process.stdout is not None  # noqa: S101 (both are pipes)
    assert process.stderr is not None  # noqa: S101
    heard: dict[IO[bytes], bytes] = {process.stdout: b"", process.stderr: b""}
    done: tuple[int | None, int | None] = (None, None)
    watched = 0.0
    with selectors.DefaultSelector() as selector:
        for pipe in heard:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(_LOOK_SECONDS):
                source: Any = key.fileobj
                chunk = os.read(key.fd, _READ_BYTES)
                if not chunk:
                    selector.unregister(source)
                heard[source] = (heard[source] + chunk)[-_KEPT_BYTES:]
            if time.monotonic() - watched >= _LOOK_SECONDS:
                watched = time.monotonic()
                done = _latest(heard[process.stderr]) or done
                watch(*done)
    return (heard[process.stdout].decode(errors="replace"), heard[process.stderr].decode(errors="replace"))


def _latest(told: bytes) -> tuple[int, int] | None:
    """The newest whole line of progress."""
    for line in reversed(told[-4 * _TAIL :].split(b"\n")[:-1]):
        if (found := _progress(line.decode(errors="replace"))) is not None:
            return found
    return None


def _progress(line: str) -> tuple[int, int] | None:
    match line.split():
        case [done, total] if done.isdecimal() and total.isdecimal():
            return int(done), int(total)
    return None


def _refusal(said: str) -> dict[str, Any]:
    try:
        told = json.loads(said)
        return {**told, "code": str(told["code"]), "detail": str(told["detail"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ChildFailed(f"a refusal that is no JSON: {said[-_TAIL:]!r}") from error


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Nothing of its session is left, and its pipes are closed."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
