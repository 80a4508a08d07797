"""The description of the API: what FastAPI makes of the routes and what they have in common; a page to read it."""

from importlib import resources
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response

from api.gate.access import of_path
from api.problems import MEDIA_TYPE, ProblemError
from api.schemas import ProblemDetails

router = APIRouter(include_in_schema=False)

_REFUSALS: Final = {
    "401": "An API key is wanted, and none that is good was sent.",
    "403": "The key has not the scope for this, or its quota is used up; or a page of another site sent the request.",
    "429": "Too many requests; `Retry-After` says when to go on.",
}
_KEY: Final = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "tid_<id>_<secret>",
    "description": "An API key. A server on loopback that never had one wants none. Roles are the scopes read, write "
    "and admin.",
}
_ASSETS: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
_START: Final = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true})'
_PAGE: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>TID service</title>
<link rel="icon" href="/docs/assets/favicon.png"><link rel="stylesheet" href="/docs/assets/swagger-ui.css"></head>
<body><div id="page"></div><script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script></body></html>"""
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def describe(app: FastAPI) -> None:
    """Let the application's description have what its routes have in common."""
    described = app.openapi
    app.openapi = lambda: _completed(described())  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    problem = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}}}
    document["components"]["securitySchemes"] = {"key": _KEY}
    for path, operations in document["paths"].items():
        scopes = of_path(path) or {}
        for method, operation in operations.items():
            # FastAPI gives problems the media type of a route's good answers; they have one of their own.
            operation["responses"]["default"]["content"] = problem
            needed = scopes.get("GET" if method == "head" else method.upper(), "admin")
            operation["security"] = [] if needed == "open" else [{"key": [needed]}]
            for status, description in _REFUSALS.items() if needed != "open" else ():
                operation["responses"].setdefault(status, {"description": description, "content": problem})
    return document


@router.get("/docs", name="page", tags=["docs"])
def page() -> HTMLResponse:
    """Nothing on it comes from elsewhere: it works without the internet, and tells nobody who reads it."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


@router.get("/docs/assets/{name}", name="asset", tags=["docs"])
def asset(name: str) -> Response:
    if name == "start.js":
        return Response(_START, media_type="text/javascript")
    if name not in _ASSETS:
        raise ProblemError(404, "not_found", f"nothing is at /docs/assets/{name}")
    # The package is there for its files alone.
    content = (resources.files("fastapi_offline") / "static" / name).read_bytes()
    return Response(content, media_type=_ASSETS[name], headers={"Cache-Control": "max-age=86400"})
