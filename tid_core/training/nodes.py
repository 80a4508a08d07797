"""Where the machines that train a job together meet, before their ranks do.

    node 0        hosts a TCP store at its address alone; torchrun's agents and the ranks of all nodes use it, too
    every node    says there what it has, and then knows as all others do: how many ranks each node gets, on what device

Whoever reaches the address can reach the store, and the ports of the ranks: a network of one's own is needed.
"""

import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, NamedTuple

import psutil
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not exported in so many words

from tid_core.events import TrainingFailure, Warned
from tid_core.plan import NodePlan
from tid_core.ranks import PATIENCE
from tid_core.spec import JobSpec
from tid_core.training.meeting import RANK_LOST

UNREACHABLE_SECONDS: Final = 60.0
"""How long an address that does not answer at all is tried. One that refuses is there, and its store will be."""
_LOOK_SECONDS = 0.1
_CONNECT_SECONDS = 5.0
_REFUSED = (errno.ECONNREFUSED, errno.ECONNRESET)


class Agreed(NamedTuple):
    """The same on every node."""

    ranks: int
    """Of each node."""
    on_cpu: bool
    gpus: list[int]
    """What each node has; where GPUs are not wanted, 0."""

    def fewer(self, spec: JobSpec) -> Warned | None:
        """Than are asked for."""
        wanted = spec.resources.gpus
        if not wanted or spec.training.device == "cpu" or (self.ranks == wanted and not self.on_cpu):
            return None
        uses = "the CPUs" if self.on_cpu else f"{self.ranks} of each"
        told = f"resources.gpus is {wanted} for each node, the nodes have {self.gpus}, and the run uses {uses}"
        return Warned(code="fewer_gpus", detail=f"{told}; training.batch_size stays {spec.training.batch_size}")


class Stopped(Exception):
    """Somebody asked this node to stop before all had met."""


@contextmanager
def met(node: NodePlan, spec: JobSpec, should_stop: Callable[[], bool]) -> Iterator[Agreed]:
    """All nodes are there, and have agreed; the store stays for as long as the block lasts.

    Raises:
        Stopped: `should_stop()` said so before.
        TrainingFailure: `rank_lost`: the store cannot be reached, or is gone, or a node does not come.
    """
    _use_the_interface_of(node.address)
    store = _store(node, should_stop)
    own = {"gpus": 0 if spec.training.device == "cpu" else torch.cuda.device_count()}
    store.set(_key(node.number), json.dumps(own))
    names = [_key(number) for number in range(node.count)]
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while not store.check(names):
        if should_stop():
            raise Stopped
        if time.monotonic() > deadline:
            raise TrainingFailure(RANK_LOST, f"not all of {node.count} nodes came to {node.host}:{node.port}")
        time.sleep(_LOOK_SECONDS)
    yield agree(spec, [json.loads(store.get(name))["gpus"] for name in names])


def agree(spec: JobSpec, gpus: list[int]) -> Agreed:
    """A rank for each GPU that is asked for and that the poorest node has, but only as many as share a batch evenly."""
    training, wanted = spec.training, max(1, spec.resources.gpus)
    fewest = min(gpus)
    on_cpu = training.device == "cpu" or (training.device == "auto" and (not fewest or not spec.resources.gpus))
    available = wanted if training.device == "cpu" else max(1, fewest)
    micro_batch = training.batch_size // training.accumulate
    even = [n for n in range(1, min(wanted, available) + 1) if micro_batch % (n * len(gpus)) == 0]
    return Agreed(max(even, default=1), on_cpu, gpus)


def _key(number: int) -> str:
    return f"tid/node/{number}"


def _store(node: NodePlan, should_stop: Callable[[], bool]) -> TCPStore:
    """Node 0 makes it; the others wait until it is there."""
    is_host = node.number == 0
    if not is_host:
        _await_store(node, should_stop)
    # Of this process torchrun's agent, too, asks for a store at this port: `multi_tenant` hands it this one.
    return TCPStore(
        node.host,
        node.port,
        None,
        is_host,
        timedelta(seconds=UNREACHABLE_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=node.listen_fd if is_host else None,
    )


def _await_store(node: NodePlan, should_stop: Callable[[], bool]) -> None:
    """Until something listens there. The store's own client would try, too, but cannot be stopped meanwhile."""
    answered, deadline = time.monotonic(), time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < deadline:
        if should_stop():
            raise Stopped
        try:
            socket.create_connection((node.host, node.port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            if error.errno in _REFUSED:
                answered = time.monotonic()
            elif time.monotonic() - answered > UNREACHABLE_SECONDS:
                raise TrainingFailure(RANK_LOST, f"{_unreachable(node)} ({error})") from error
            time.sleep(_LOOK_SECONDS)
        else:
            return
    raise TrainingFailure(RANK_LOST, f"node 0 has not begun at {node.host}:{node.port}")


def _unreachable(node: NodePlan) -> str:
    return (
        f"{node.address} cannot reach node 0 at {node.host}:{node.port}: let the hosts' addresses (TID_NODE_ADDRESS) "
        "and all ports between them through"
    )


def _use_the_interface_of(address: str) -> None:
    """Ranks listen at, and are told to others by, the address of the interface that this address is of.

    Raises:
        TrainingFailure: `rank_lost`: no interface has it.
    """
    name = interface_of(address)
    if name is None:
        raise TrainingFailure(RANK_LOST, f"no interface of this host has the address {address} (TID_NODE_ADDRESS)")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def interface_of(address: str) -> str | None:
    """The network interface with this address; every address of loopback is that of its interface."""
    wanted = ipaddress.ip_address(address)
    for name, known in psutil.net_if_addrs().items():
        for one in known:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(one.address.partition("%")[0])
            if wanted == own or (wanted.is_loopback and own.is_loopback and wanted.version == own.version):
                return name
    return None
