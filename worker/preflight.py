"""What a worker looks at before it takes jobs, which it would only fail otherwise."""

import subprocess
import sys
from typing import Any

from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import AuthenticationError
from sqlalchemy.exc import OperationalError

from store.places import S3Place
from store.upkeep.starting import await_database, is_away, told, why_not_writable
from worker.cuda import installed_torch
from worker.settings import WorkerSettings

_BROKER_SECONDS = 5.0


def refusal(settings: WorkerSettings, app: Any) -> str | None:
    """Why this worker cannot work, and how to mend it; None where nothing is in the way that time does not mend.

    A database or a broker that is away is waited for, and a full disk too, as during a training.
    """
    if installed_torch() is None:
        return 'trainings need torch: pip install "tid-service[worker]"'
    if (error := why_not_writable(settings.home)) is not None:
        return told(error, settings)
    return _of_database(settings) or _of_artifacts(settings) or _of_broker(app)


def _of_artifacts(settings: WorkerSettings) -> str | None:
    """A bucket is asked by another process: this one forks, which what speaks with S3 does not survive."""
    if not isinstance(settings.artifacts, S3Place):
        return None
    command = [sys.executable, "-m", "store.upkeep.reaching"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return lines[-1] if done.returncode and lines else None


def _of_database(settings: WorkerSettings) -> str | None:
    try:
        await_database(settings.model_copy(update={"start_seconds": 0.0}))
    except OperationalError as error:
        return None if is_away(error) else told(error, settings)
    return None


def _of_broker(app: Any) -> str | None:
    try:
        with app.connection_for_read(connect_timeout=_BROKER_SECONDS) as connection:
            connection.ensure_connection(max_retries=0, timeout=_BROKER_SECONDS)
    except (BrokerError, OSError) as error:
        if isinstance(error.__cause__, AuthenticationError):
            said = str(error.__cause__).rstrip(".")
            return f"broker: {said}; TID_BROKER_URL holds none, or another password than Valkey or Redis has"
    return None
