"""Sessions of PostgreSQL whose client fell silent: its host was cut off, or its process was frozen, in a transaction.

By itself the server notices the former after hours and the latter never, and until then it keeps what they locked: the
reaper would pass over a job for as long.
"""

from typing import Any, Final

from psycopg.errors import IdleInTransactionSessionTimeout
from sqlalchemy import Engine, ExceptionContext, event
from sqlalchemy.exc import OperationalError

_LIMITS: Final = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "idle_in_transaction_session_timeout": 60_000,
}
"""Seconds, a number, and milliseconds, as the server takes them. It ignores those that its system cannot do."""


def end_sessions_of(engine: Engine) -> None:
    """Let the server end a session of this engine soon after its client fell silent.

    What `options` in the URL sets stays as it is. To the client an ended session looks like a server that went away.
    """
    chosen = str(engine.url.query.get("options", ""))
    limits = "; ".join(f"SET {name} = {value}" for name, value in _LIMITS.items() if name not in chosen)

    @event.listens_for(engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        connection.autocommit = True  # set for the session, not for a transaction that may be rolled back
        connection.execute(limits)
        connection.autocommit = False

    @event.listens_for(engine, "handle_error", retval=True)
    def _as_absence(context: ExceptionContext) -> BaseException | None:
        error = context.original_exception
        if not isinstance(error, IdleInTransactionSessionTimeout):
            return None
        context.is_disconnect = True
        return OperationalError(context.statement, None, error, hide_parameters=True, connection_invalidated=True)
