"""Queries that mean what they say.

The framework takes a query as it comes: of a name that it does not know nothing is said, of one that is given twice the
last counts. A misspelt `?dry_run` would make a job, a misspelt filter list everything.
"""

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from fastapi import Request

from api.gate.allowed import operations_at
from api.problems import ProblemError
from api.schemas import FieldProblem

_SHOWN = 100


async def check_query(request: Request) -> None:
    """
    Raises:
        ProblemError: 422 where the query has a parameter that the operation does not have, or one of a single value
            more than once.
    """
    if not request.url.query:
        return
    known = _query_parameters(request)
    if known is None:
        return
    given = Counter(name for name, _ in request.query_params.multi_items())
    found = [problem for name, count in given.items() if (problem := _problem(name, count, known))]
    if found:
        detail = f"the query has {'1 problem' if len(found) == 1 else f'{len(found)} problems'}: {found[0].detail}"
        raise ProblemError(422, "request_invalid", detail, errors=found)


def _problem(name: str, count: int, known: Mapping[str, bool]) -> FieldProblem | None:
    field = name[:_SHOWN]
    if name not in known:
        close = get_close_matches(field, known, n=1)
        expected = f"{close[0]}?" if close else f"one of: {', '.join(known)}" if known else "no query"
        return FieldProblem(
            code="query_unknown", field=field, detail=f"there is no parameter {field!r}", expected=expected
        )
    if count > 1 and not known[name]:
        return FieldProblem(
            code="query_repeated", field=field, detail=f"{field} is given {count} times", expected="once"
        )
    return None


def _query_parameters(request: Request) -> dict[str, bool] | None:
    """Name to whether it may be repeated; None for an operation that is not described."""
    method = request.method.lower()
    found = [operations[method] for operations in operations_at(request.app, request.url.path) if method in operations]
    if not found:
        return None
    parameters = [one for operation in found for one in operation.get("parameters", ()) if one["in"] == "query"]
    return {one["name"]: _is_list(one["schema"]) for one in parameters}


def _is_list(schema: Mapping[str, Any]) -> bool:
    return any(one.get("type") == "array" for one in (schema, *schema.get("anyOf", ())))
