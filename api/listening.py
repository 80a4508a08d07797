"""Whether the port is free, asked before anything else is done."""

import errno
import os
import socket
from typing import Final

_REMEDIES: Final = {
    errno.EADDRINUSE: "stop what listens there (`ss -ltnp` tells what), or set TID_PORT to another port",
    errno.EACCES: "ports below 1024 are for root: set TID_PORT to another port",
    errno.EADDRNOTAVAIL: "set TID_HOST to an address of this machine, or to 0.0.0.0 for all of them",
}


class CannotListen(RuntimeError):
    """Says where and why not, and what to do."""


def refuse_taken(host: str, port: int) -> None:
    """Raises:
    CannotListen: nobody can listen there now.
    """
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"TID_HOST={host} is no address of this machine: {error.strerror}") from None
    for family, kind, protocol, _, address in places:
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as asyncio does; elsewhere it would take the port from its owner
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                remedy = _REMEDIES.get(error.errno or 0, "set TID_HOST and TID_PORT to where this machine can listen")
                raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}; {remedy}") from None
