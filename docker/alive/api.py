"""The health check of the API's container: exit code 0 where `GET /healthz` answers.

Run as `python -IS`, and by plain sockets: a look every few seconds should cost hardly anything.
"""

import os
import socket
import sys

_SECONDS = 4.0


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return connection.recv(64).startswith(b"HTTP/1.1 200 ")


if __name__ == "__main__":
    port = int(os.environ.get("TID_PORT") or 8000)
    try:
        why = None if answers(port) else "GET /healthz is not answered with 200"
    except OSError as error:
        why = str(error)
    sys.exit(why and f"port {port}: {why}")
