"""The hosts that other tests use: they reach each other, can be cut off and come back, and nothing of them stays."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fire import processes
from tests.hosts import Host, Hosts, hosts, network

__all__ = ["hosts"]
QUICKLY = 0.2


def test_bytes_sent_while_a_host_was_cut_off_arrive_once_it_is_back(hosts: Callable[..., Hosts]) -> None:
    a, b = hosts("a", "b")
    with b.inside(), socket.create_server((b.address, 5000)) as server:
        with a.inside():
            sender = socket.create_connection((b.address, 5000), timeout=10)
        receiver, (told, _) = server.accept()
    with sender, receiver:
        assert told == a.address
        sender.sendall(b"before")
        assert receiver.recv(6) == b"before"
        a.cut()
        sender.sendall(b"late")
        receiver.settimeout(QUICKLY)
        with pytest.raises(TimeoutError):
            receiver.recv(4)
        a.heal()
        receiver.settimeout(10)
        assert receiver.recv(4) == b"late"


def test_a_host_that_is_cut_off_gets_no_answer_instead_of_a_refusal(hosts: Callable[..., Hosts]) -> None:
    a, b = hosts("a", "b")
    with a.inside():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((b.address, 5000), timeout=10)
        b.cut()
        with pytest.raises(TimeoutError):
            socket.create_connection((b.address, 5000), timeout=QUICKLY)


def test_a_process_on_a_host_sees_its_network_alone(hosts: Callable[..., Hosts]) -> None:
    (a,) = hosts("a")
    seen = a.run(["ip", "-oneline", "-4", "address"]).split("\n")[:-1]
    assert [line.split()[3] for line in seen] == ["127.0.0.1/8", f"{a.address}/24"]
    outside = Path("/proc/self/ns/net").readlink()
    process = a.popen(["sleep", "60"])
    while (there := Path(f"/proc/{process.pid}/ns/net").readlink()) == outside:
        pass
    with a.inside():
        assert Path("/proc/thread-self/ns/net").readlink() == there
    assert Path("/proc/thread-self/ns/net").readlink() == outside
    process.kill()
    process.wait()


def test_nothing_stays_of_a_test_that_was_killed() -> None:
    code = """
import sys
from benchmarks.fire import processes
from tests.hosts import network
with network("a") as (a,):
    process = a.popen(["sleep", "60"])
    print(a.namespace, process.pid, flush=True)
    sys.stdin.read()
"""
    with network("b") as (other,):
        killed = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert killed.stdout is not None
        name, pid = killed.stdout.readline().split()
        killed.kill()
        killed.communicate()
        assert (Path("/run/netns") / name).exists()
        with network("c"):
            assert not (Path("/run/netns") / name).exists()
            assert _exists(other)
    assert not _exists(other)
    while not processes.gone(int(pid)):
        pass


def _exists(host: Host) -> bool:
    return (Path("/run/netns") / host.namespace).exists()
