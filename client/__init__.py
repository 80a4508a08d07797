"""Who asks: the Python client (`from client import Client`) and the `tid` command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.client import Client
    from client.errors import ApiError, ClientError

__all__ = ["ApiError", "Client", "ClientError"]


def __getattr__(name: str) -> Any:
    """Load on first use, so that `tid --help` does not wait for an HTTP library."""
    if name == "Client":
        from client.client import Client

        return Client
    if name in ("ApiError", "ClientError"):
        from client import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'client' has no attribute {name!r}")
