"""Routes that do their work, the database's transaction and the answer's text included, in one go in one thread."""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from store.db import WRITES


class Router(APIRouter):
    """Sessions that a route asks for begin and end with it, in its thread.

    A dependency with `yield` would end them in another one, when the event loop comes to it: under load, connections
    would be held by requests that wait for nothing but their turn. An answer is a model already, so it is written as
    JSON here, and not checked and written a second time, partly on the event loop.
    """

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not inspect.iscoroutinefunction(endpoint) and not inspect.isasyncgenfunction(endpoint):
            endpoint = _in_one_go(endpoint, options.get("status_code") or 200)
        super().add_api_route(path, endpoint, **options)


def _in_one_go(endpoint: Callable[..., Any], status: int) -> Callable[..., Any]:
    @wraps(endpoint)
    def run(**values: Any) -> Any:
        with ExitStack() as stack:
            for session in [value for value in values.values() if isinstance(value, Session)]:
                stack.enter_context(session)
                if WRITES in session.info:
                    stack.enter_context(session.begin())
            answer = endpoint(**values)
        return _written(answer, status, values) if isinstance(answer, BaseModel) else answer

    return run


def _written(answer: BaseModel, status: int, values: dict[str, Any]) -> Response:
    """The answer with what the route set on the `Response` that it asked for."""
    written = Response(answer.model_dump_json(), status_code=status, media_type="application/json")
    for asked in [value for value in values.values() if isinstance(value, Response)]:
        written.status_code = asked.status_code or status
        written.headers.update({name: value for name, value in asked.headers.items() if name != "content-length"})
    return written
