"""What the description of the API has at a path."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from starlette.routing import compile_path


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """In alphabetical order; none for a path that is not described.

    Two routes may share a path, and the framework's 405 knows the methods of the first alone.
    """
    return sorted({name.upper() for operations in operations_at(app, path) for name in operations})


def operations_at(app: FastAPI, path: str) -> Iterator[Mapping[str, Any]]:
    """Operations by method, of every template that the path fits."""
    for template, operations in app.openapi()["paths"].items():
        if _pattern(template).fullmatch(path):
            yield operations


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return compile_path(template)[0]
