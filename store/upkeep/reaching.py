"""Whether files can be put where TID_ARTIFACTS says, before anything is promised. `python -m store.upkeep.reaching`.

As a program it is for those who fork later, which what speaks with S3 does not survive.
"""

import logging
import sys

from store.artifacts import open_artifacts
from store.settings import Settings, SettingsError, load_settings

log = logging.getLogger("store.reaching")


def reach_artifacts(settings: Settings) -> None:
    """A store that may answer in a moment is only warned of.

    Raises:
        OSError: it refuses for a reason that time does not mend; its text says how to.
    """
    try:
        open_artifacts(settings).check()
    except OSError as error:
        if not getattr(error, "may_pass", False):
            raise
        log.warning("the artifact store is away for now: %s", error)


def main() -> int:
    try:
        reach_artifacts(load_settings())
    except (SettingsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
