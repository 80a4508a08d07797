"""The methods of a path. Two routes may share one, and the framework's 405 knows those of the first alone."""

import re
from collections.abc import Iterator
from functools import cache

from fastapi import FastAPI
from starlette.routing import compile_path


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """In alphabetical order; none for a path that the description of the API does not have."""
    return sorted(set(_methods(app, path)))


def _methods(app: FastAPI, path: str) -> Iterator[str]:
    for template, operations in app.openapi()["paths"].items():
        if _pattern(template).fullmatch(path):
            yield from (name.upper() for name in operations)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return compile_path(template)[0]
