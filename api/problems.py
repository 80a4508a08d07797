"""Errors as RFC 9457 problem details, for everything that goes wrong behind the door."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.gate.allowed import allowed_methods
from api.gate.callers import CALLER
from api.schemas import FieldProblem, ProblemDetails
from api.validation import field_problems
from store.errors import (
    IdempotencyConflict,
    IdempotencyInFlight,
    NameTaken,
    NotFound,
    OutsideRoots,
    QuotaExceeded,
    StoreError,
    TeacherNotReady,
)
from store.monitoring.log_lines import without_secrets
from store.states import IllegalTransition

log = logging.getLogger("api")

MEDIA_TYPE = "application/problem+json"
_MAX_READ, _MAX_TOLD = 1000, 100
"""Problems of a request that are looked into, and that are told."""
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 400: "bad_request"}


class ProblemError(Exception):
    """Raised anywhere in a request; becomes a problem+json answer."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


_STORE_STATUS = {
    NotFound: 404,
    TeacherNotReady: 409,
    NameTaken: 409,
    IdempotencyConflict: 422,
    OutsideRoots: 422,
    QuotaExceeded: 403,
}


def of_store(error: StoreError) -> ProblemError:
    """What the store refused, as the answer to a request."""
    code = f"{error.kind}_not_found" if isinstance(error, NotFound) else error.code
    headers = {"Retry-After": "1"} if isinstance(error, IdempotencyInFlight) else None
    return ProblemError(_STORE_STATUS.get(type(error), 409), code, str(error), headers=headers)


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def problem_response(request_id: str, problem: ProblemError) -> JSONResponse:
    if (caller := CALLER.get()) is not None:
        caller.problem = problem.code
    body = ProblemDetails(
        type=f"urn:tid:problem:{problem.code}",
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=without_secrets(problem.detail),  # which may repeat what was sent to the wrong place
        code=problem.code,
        errors=[one.model_copy(update={"detail": without_secrets(one.detail)}) for one in problem.errors],
        request_id=request_id,
    )
    return JSONResponse(body.model_dump(), status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def internal_problem() -> ProblemError:
    return ProblemError(500, "internal_error", "the server failed; its log has the details under this request_id")


def _on_problem(request: Request, error: ProblemError) -> JSONResponse:
    return problem_response(request_id_of(request), error)


def _on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    # A body of one MiB can hold a hundred thousand of them.
    errors = field_problems(error.errors()[:_MAX_READ], error.body)
    count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
    if len(errors) > _MAX_TOLD:
        errors, count = errors[:_MAX_TOLD], f"more than {_MAX_TOLD} problems"
    first = f": {errors[0].field or 'body'}: {errors[0].detail}" if errors else ""
    problem = ProblemError(422, "request_invalid", f"the request has {count}{first}", errors=errors)
    return problem_response(request_id_of(request), problem)


def _on_store(request: Request, error: StoreError) -> JSONResponse:
    return problem_response(request_id_of(request), of_store(error))


def _on_illegal(request: Request, error: IllegalTransition) -> JSONResponse:
    return problem_response(request_id_of(request), ProblemError(409, "illegal_transition", str(error)))


def _on_http(request: Request, error: HTTPException) -> JSONResponse:
    code = _HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
    detail, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == 404:
        detail = f"nothing is at {request.url.path}"
    elif error.status_code == 400:  # of FastAPI, which says no more than that it could not parse
        detail = "the body cannot be read as JSON: not UTF-8, nested too deeply, or a number of thousands of digits"
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {request.url.path}"
        if allowed := allowed_methods(request.app, request.url.path):
            headers["Allow"] = ", ".join(allowed)
    problem = ProblemError(error.status_code, code, detail, headers=headers)
    return problem_response(request_id_of(request), problem)


def _on_database_down(request: Request, error: Exception) -> JSONResponse:
    log.error("database unavailable, request %s: %s", request_id_of(request), error)
    problem = ProblemError(
        503, "database_unavailable", "the database does not answer; try again", headers={"Retry-After": "5"}
    )
    return problem_response(request_id_of(request), problem)


def install(app: FastAPI) -> None:
    app.exception_handler(ProblemError)(_on_problem)
    app.exception_handler(StoreError)(_on_store)
    app.exception_handler(IllegalTransition)(_on_illegal)
    app.exception_handler(RequestValidationError)(_on_invalid)
    app.exception_handler(HTTPException)(_on_http)
    for error in (OperationalError, InterfaceError, PoolTimeout):
        app.exception_handler(error)(_on_database_down)
