"""Hosts of a test: network namespaces with addresses of their own, joined by a bridge in a namespace of the test's own.

    with network("service", "a", "b") as (service, a, b):
        server = service.popen([sys.executable, "-m", "http.server", "80"])
        a.run(["curl", f"http://{service.address}/"])
        a.cut()  # its packets vanish, without a word to either side
        a.heal()

Files, unix sockets and process ids are the machine's, shared by all. Nothing of the machine's own network is touched.
The names hold the process id of the test, so that the next test finds what one left that was killed.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_PROGRAMS = ("ip", "nsenter", "setpriv")
_FOLDER = Path("/run/netns")
_NAME = re.compile(r"tid-(\d+)-.+")
_CLONE_NEWNET = 0x40000000
_BRIDGE = "bridge"
_NUMBERS = count(1)
_IF_WANTED = ("sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')  # who started it may have died before it could tell
Hosts = tuple["Host", ...]


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    namespace: str
    _switch: str
    """The namespace of the bridge, in which the other end of the host's cable has the host's name."""

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs this on the host, as one process that dies with the thread that starts it."""
        return ["nsenter", f"--net={_FOLDER / self.namespace}", "setpriv", "--pdeathsig", "KILL", "--", *arguments]

    def popen(self, arguments: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        return subprocess.Popen(self.command([*_IF_WANTED, str(os.getpid()), *arguments]), **options)

    def run(self, arguments: Sequence[str], **options: Any) -> str:
        """What a command says that ends well.

        Raises:
            subprocess.CalledProcessError: it does not.
        """
        return subprocess.run(self.command(arguments), check=True, capture_output=True, text=True, **options).stdout

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on the host: sockets that it makes in the block are the host's, for as long as they live."""
        with Path("/proc/thread-self/ns/net").open("rb") as home:
            with (_FOLDER / self.namespace).open("rb") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def cut(self) -> None:
        """Pull the cable, at the far end: what is sent, either way, vanishes, and nothing is told of it."""
        _ip("-n", self._switch, "link", "set", "dev", self.name, "nomaster")

    def heal(self) -> None:
        _ip("-n", self._switch, "link", "set", "dev", self.name, "master", _BRIDGE)


@contextmanager
def network(*names: str) -> Iterator[Hosts]:
    """A host for each name (at most 15 letters), at 10.77.0.1, 10.77.0.2, ...; skips the test where it cannot be."""
    _skip_unless_possible()
    _remove_stale()
    prefix = f"tid-{os.getpid()}-{next(_NUMBERS)}"
    with ExitStack() as stack:
        switch = _namespace(f"{prefix}-switch", stack)
        _ip("-n", switch, "link", "add", _BRIDGE, "up", "type", "bridge")
        yield tuple(_host(name, number, prefix, switch, stack) for number, name in enumerate(names, start=1))


@pytest.fixture
def hosts() -> Iterator[Callable[..., Hosts]]:
    """`network` for one test: `service, a, b = hosts("service", "a", "b")`."""
    with ExitStack() as stack:
        yield lambda *names: stack.enter_context(network(*names))


def _host(name: str, number: int, prefix: str, switch: str, stack: ExitStack) -> Host:
    host = Host(name, f"10.77.0.{number}", _namespace(f"{prefix}-{name}", stack), switch)
    there = ("netns", host.namespace, "name", "eth0")
    _ip("-n", switch, "link", "add", "name", name, "type", "veth", "peer", *there)
    _ip("-n", switch, "link", "set", "dev", name, "up", "master", _BRIDGE)
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.namespace, "link", "set", device, "up")
    return host


def _namespace(name: str, stack: ExitStack) -> str:
    _ip("netns", "add", name)
    stack.callback(_remove, name)
    return name


def _remove(name: str) -> None:
    """The namespace and every process in it."""
    for pid in _ip("netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", name)


def _remove_stale() -> None:
    for path in _FOLDER.glob("tid-*"):
        match = _NAME.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            with suppress(subprocess.CalledProcessError):  # another test was quicker
                _remove(path.name)


def _skip_unless_possible() -> None:
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"hosts need {', '.join(missing)}, of iproute2 and util-linux")
    with ExitStack() as stack:
        try:
            name = _namespace(f"tid-{os.getpid()}-0-probe", stack)
            _ip("-n", name, "link", "add", _BRIDGE, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"hosts cannot be made here (they need the rights of root): {error.stderr.strip()}")


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
