"""What the API and the workers wait for before they start: the tables of their version and, for the API, a key.

Both would refuse to start without, and be started again and again. `python wait.py api|worker`, in the image of each.
"""

import sys
import time

from sqlalchemy.exc import SQLAlchemyError

from store.errors import DatabaseUnfit
from store.settings import Settings, load_settings
from store.upkeep.preparing import NotMigrated, prepare_database

_SECONDS = 3.0


def complaint(settings: Settings, part: str) -> str | None:
    """What is missing, if anything."""
    try:
        prepare_database(settings)
    except (NotMigrated, DatabaseUnfit, SQLAlchemyError) as error:
        return str(error).splitlines()[0]
    if part == "api":
        from api.gate.binding import refusal

        return refusal(settings)
    return None


if __name__ == "__main__":
    settings, told = load_settings(), ""
    while why := complaint(settings, sys.argv[1]):
        if why != told:
            print(f"waiting: {why}", flush=True)  # noqa: T201
            told = why
        time.sleep(_SECONDS)
