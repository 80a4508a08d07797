"""`python -m worker`: one worker with the options this service needs. Everything else comes from `TID_*`."""

import sys

from store.settings import SettingsError


def main() -> int:
    try:
        from store.monitoring import log_lines
        from worker.app import SETTINGS, app
    except SettingsError as error:
        print(f"the settings of this worker cannot be used: {error}", file=sys.stderr)  # noqa: T201
        return 2
    log_lines.configure(SETTINGS)
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    # Celery prints its banner past the log, where it would not be JSON.
    quiet = ["--quiet"] if SETTINGS.log_format == "json" else []
    app.worker_main([*quiet, "worker", "--hostname", f"tid@{SETTINGS.worker_id}", *options])
    return 0


if __name__ == "__main__":
    sys.exit(main())
