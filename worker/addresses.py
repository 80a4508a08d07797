"""Where this worker is reached by those that train a job with it."""

import ipaddress
import socket

from sqlalchemy import make_url

from worker.settings import WorkerSettings

LOOPBACK = "127.0.0.1"
_ANY_PORT = 9
"""Nothing is sent there: a datagram socket that is connected only looks up the route."""


class NoAddress(Exception):
    """TID_NODE_ADDRESS or TID_NODE_PORTS cannot be used here; the text says why."""


def own_address(settings: WorkerSettings, towards: str | None = None) -> str:
    """TID_NODE_ADDRESS, else the address of the interface that leads to `towards` (None: the host of the database).

    Raises:
        NoAddress: it is unknown to this host.
    """
    if settings.node_address:
        return _resolved(settings.node_address, "TID_NODE_ADDRESS")
    other = towards or _database_host(settings.database_url)
    if other is None:
        return LOOPBACK
    family = socket.AF_INET6 if ":" in (there := _resolved(other, "the host to reach")) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((there, _ANY_PORT))
        except OSError as error:
            raise NoAddress(f"no route leads to {there}: {error.strerror}; set TID_NODE_ADDRESS") from error
        return str(probe.getsockname()[0])


def reserve_port(address: str, ports: range | None) -> socket.socket:
    """A socket bound to a free port, which is nobody else's as long as it is open; nothing listens there yet.

    Raises:
        NoAddress: the address is not one of this host, or no port of TID_NODE_PORTS is free.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in ports if ports is not None else (0,):
        reserved = socket.socket(family)
        try:
            reserved.bind((address, port))
        except OSError as error:
            reserved.close()
            why = error.strerror
        else:
            return reserved
    which = f"a port of TID_NODE_PORTS {ports[0]}-{ports[-1]}" if ports is not None else "a port"
    raise NoAddress(f"{which} cannot be had at {address} (TID_NODE_ADDRESS): {why}")


def is_loopback(address: str) -> bool:
    return bool(address) and ipaddress.ip_address(address).is_loopback


def _resolved(name: str, what: str) -> str:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise NoAddress(f"{what}: {name!r} is no host that is known here ({error.strerror})") from error


def _database_host(url: str) -> str | None:
    """None where it is this machine: a file, or a unix socket."""
    parsed = make_url(url)
    host = parsed.host or parsed.query.get("host")
    host = host[0] if isinstance(host, tuple) else host
    return None if not host or host.startswith("/") else host.split(",")[0]
