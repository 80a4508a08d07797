"""The server process: uvicorn, which lets go of streams when it is told to stop."""

from socket import socket

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Streams end at once: uvicorn alone would wait for them in vain, and then cut them off without a last word."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._app.state.parts.hub.close()
        await super().shutdown(sockets)
