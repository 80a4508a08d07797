"""The health check of a worker's container: exit code 0 where each worker in it hears messages.

A worker renews TID_HOME/run/NAME.pulse with each heartbeat, from the loop that takes messages (worker/pulse.py); a look
at the age of the files starts nothing and asks nobody. A worker that waits for its broker has no pulse: it can take no
job, so it is not ready, but a training that it has goes on. So do not kill it for that.
"""

import os
import sys
import time
from pathlib import Path

_PATIENCE = 60.0
_MISSED = 4


def complaint(folder: Path, *, born: float, now: float, patience: float) -> str | None:
    """What is wrong, if anything; files that are older than this container, which began at `born`, do not count."""
    ages = {path.stem: now - path.stat().st_mtime for path in folder.glob("*.pulse") if path.stat().st_mtime >= born}
    if not ages:
        return f"no worker has reported in {folder}"
    silent = [f"{name} for {age:.0f} s" for name, age in sorted(ages.items()) if age > patience]
    return f"silent: {', '.join(silent)}" if silent else None


if __name__ == "__main__":
    run = Path(os.environ["TID_HOME"]) / "run"
    longest = max(_PATIENCE, _MISSED * float(os.environ.get("TID_HEARTBEAT_SECONDS") or 5))
    sys.exit(complaint(run, born=Path("/proc/1").stat().st_ctime, now=time.time(), patience=longest))
