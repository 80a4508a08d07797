"""`python -m worker`: one worker with the options this service needs. Everything else comes from `TID_*`."""

import argparse
import logging
import os
import sys

from store.settings import SettingsError
from tid_core.lifetime import ParentGone, die_with_parent


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m worker", description="One worker; its settings are TID_* variables."
    )
    parser.add_argument("--parent-pid", type=int, help="process with which this one is to end")
    parent = parser.parse_args().parent_pid
    try:
        if parent is not None:
            die_with_parent(parent)
    except ParentGone:
        return 1
    try:
        from store.monitoring import log_lines
        from store.upkeep.misspelt import misspelt
        from worker import preflight
        from worker.app import SETTINGS, app
    except SettingsError as error:
        print(f"the settings of this worker cannot be used: {error}", file=sys.stderr)  # noqa: T201
        return 2
    log_lines.configure(SETTINGS)
    for line in misspelt(os.environ):
        logging.getLogger("worker").warning(line)
    if (refusal := preflight.refusal(SETTINGS, app)) is not None:
        print(f"this worker cannot start: {refusal}", file=sys.stderr)  # noqa: T201
        return 3
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    # Celery prints its banner past the log, where it would not be JSON.
    quiet = ["--quiet"] if SETTINGS.log_format == "json" else []
    app.worker_main([*quiet, "worker", "--hostname", f"tid@{SETTINGS.worker_id}", *options])
    return 0


if __name__ == "__main__":
    sys.exit(main())
