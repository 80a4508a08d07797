"""`python -m api`: serve on the host and port of the settings."""

import logging
import os
import signal
import sys
from contextlib import suppress

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from api.app import create_app
from api.gate import binding
from api.gate.access import MAX_HEAD_BYTES
from api.listening import CannotListen, refuse_taken
from api.serving import Server
from store.errors import DatabaseUnfit
from store.monitoring import log_lines
from store.settings import Settings, SettingsError, load_settings
from store.upkeep.misspelt import misspelt
from store.upkeep.preparing import NotMigrated, prepare_database
from store.upkeep.reaching import reach_artifacts
from store.upkeep.starting import await_database, told

log = logging.getLogger("api")


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    log_lines.configure(settings)
    for line in misspelt(os.environ):
        log.warning(line)
    try:
        refuse_taken(settings.host, settings.port)
        await_database(settings)
        if (refusal := binding.refusal(settings)) is not None:
            sys.stderr.write(f"{refusal}\n")
            return 2
        prepare_database(settings)
        reach_artifacts(settings)
    except (CannotListen, NotMigrated, DatabaseUnfit, SQLAlchemyError, OSError) as error:
        sys.stderr.write(f"the server cannot start: {told(error, settings)}\n")
        return 3
    except KeyboardInterrupt:  # while it waits
        return 130
    return _serve(settings)


def _serve(settings: Settings) -> int:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        timeout_graceful_shutdown=5,
        log_config=None,
        proxy_headers=False,  # X-Forwarded-For says whatever its sender likes
        http="h11",  # which bounds the head of a request
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        server_header=False,
    )
    server = Server(app, config)
    with suppress(KeyboardInterrupt):  # uvicorn has stopped by then, and tells by which signal
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        server.run()
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
