"""`python -m api`: serve on the host and port of the settings."""

import ipaddress
import sys

import uvicorn

from store import log_lines
from store.settings import SettingsError, load_settings


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refusal(host: str) -> str:
    return (
        f"refusing to listen on {host!r}: this server has no API keys, so anyone who reaches it could run jobs. "
        "Listen on 127.0.0.1 (TID_HOST=127.0.0.1) and put a reverse proxy that authenticates in front of it."
    )


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not is_loopback(settings.host):
        sys.stderr.write(f"{refusal(settings.host)}\n")
        return 2
    log_lines.configure(settings)
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        access_log=False,
        timeout_graceful_shutdown=5,
        log_config=None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
