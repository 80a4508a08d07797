"""What an operation of the API is called: in its description, in metrics, in logs and in traces."""

from fastapi.routing import APIRoute
from starlette.types import Scope


def operation_id(route: APIRoute) -> str:
    """Such as `jobs-create`."""
    return f"{route.tags[0]}-{route.name}".replace("_", "-")


def operation_of(scope: Scope) -> str:
    """The operation that a request was routed to; `none` where nothing is at its path, or no operation of the API."""
    route = scope.get("route")
    return operation_id(route) if isinstance(route, APIRoute) and route.tags else "none"
