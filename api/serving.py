"""The server process: uvicorn, which is warm when it begins, and lets go of streams when it is told to stop."""

import gc
from socket import socket

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Streams end at once: uvicorn alone would wait for them in vain, and then cut them off without a last word."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """The first who asks would have to wait for the description of the API, for Alembic and for Celery."""
        self._app.openapi()
        await super().startup(sockets)
        await self._app.state.readiness.look()
        # What is there now stays: looking through all of it for garbage would hold everybody up, again and again.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._app.state.parts.hub.close()
        await super().shutdown(sockets)
