"""Where the server may listen: beyond this machine only once there is a key to get in with."""

from pathlib import Path

from sqlalchemy import inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from api.gate.access import is_loopback
from store import keys
from store.db import Database
from store.settings import Settings


def refusal(settings: Settings) -> str | None:
    """Why the server may not listen on its host; None where it may. Nothing is changed by asking."""
    if is_loopback(settings.host):
        return None
    try:
        if _has_usable_key(settings.database_url):
            return None
    except SQLAlchemyError as error:
        why = f"whether there are API keys cannot be read from the database ({type(error).__name__})"
        return f"refusing to listen on {settings.host!r}: {why}; start again once it answers"
    return (
        f"refusing to listen on {settings.host!r}: this server has no API keys that can be used, so anyone who reaches "
        "it could run jobs. Make one first, with the same TID_HOME and TID_DATABASE_URL: "
        "`tid keys create --name NAME --scope admin`. Or listen on 127.0.0.1 (TID_HOST=127.0.0.1)."
    )


def _has_usable_key(url: str) -> bool:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return False
    database = Database(url)
    try:
        if not inspect(database.engine).has_table("api_keys"):
            return False
        with database.read() as session:
            return bool(keys.usable(session=session))
    finally:
        database.close()
