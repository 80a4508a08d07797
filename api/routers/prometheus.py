"""Figures for Prometheus."""

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from api.monitoring.scraping import Scraper

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    name="metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The text format."}},
)
async def metrics(request: Request) -> Response:
    """Figures of this process and of the whole service in the text format of Prometheus.

    Those of the service are at most a second old. While the database does not answer, only `tid_database_up 0` is left
    of them.
    """
    scraper: Scraper = request.app.state.scraper
    return Response(await scraper.text(), media_type=CONTENT_TYPE_LATEST)
