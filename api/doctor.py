"""`python -m api.doctor`: what an API would find here, a JSON object a line; for `tid doctor`. Nothing is changed."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Literal

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from api.deps import Parts
from api.doorbell import Doorbell
from api.gate import binding
from api.gate.keyring import KeyRing
from api.gate.trail import Trail
from api.listening import CannotListen, refuse_taken
from api.monitoring.readiness import Readiness
from api.schemas import Dependency
from api.streams.hub import Hub
from store.artifacts import open_artifacts
from store.db import Database
from store.monitoring.log_lines import without_secrets
from store.places import S3Place
from store.settings import Settings, SettingsError, load_settings
from store.upkeep.misspelt import misspelt
from store.upkeep.starting import await_database, told

State = Literal["ok", "warn", "fail"]
_UNTRIED = "sqlite://"
"""A database in memory, for the checks that need none, where there is none to ask."""


def tell(what: str, state: State, found: str, remedy: str = "") -> None:
    sys.stdout.write(json.dumps({"what": what, "state": state, "found": found, "remedy": remedy}) + "\n")


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        tell("settings", "fail", str(error))
        return 0
    lines = misspelt(os.environ)
    for line in lines:
        tell("settings", "warn", line)
    if not lines:
        tell("settings", "ok", f"TID_HOME is {settings.home}")
    there = _database(settings)
    for one in asyncio.run(_dependencies(settings, settings.database_url if there else _UNTRIED)):
        if there or one.name in ("broker", "artifacts", "uploads"):
            _dependency(one, settings)
    _port(settings, is_known=there)
    for folder in settings.data_roots:
        if not folder.is_dir():
            tell("data", "warn", f"{folder} is not there", "make it, or let TID_DATA_ROOTS name where datasets lie")
    return 0


def _database(settings: Settings) -> bool:
    """Whether there is one that answers."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        tell("database", "ok", f"{url.database} is not there yet; the first start makes it")
        return False
    try:
        await_database(settings.model_copy(update={"start_seconds": 0.0}))
    except SQLAlchemyError as error:
        found, _, remedy = told(error, settings).rpartition("; ")
        tell("database", "fail", found, remedy)
        return False
    return True


async def _dependencies(settings: Settings, url: str) -> list[Dependency]:
    """As GET /readyz of a server with these settings would tell them."""
    database = Database(url)
    has_bucket = isinstance(settings.artifacts, S3Place)
    # A folder is looked at by its path; to open it would be to make it.
    artifacts = open_artifacts(settings if has_bucket else settings.model_copy(update={"artifacts": Path("/")}))
    ring, doorbell = KeyRing(database), Doorbell(settings.broker_url)
    trail, hub = Trail(database, ring, settings.audit_days), Hub(database)
    parts = Parts(
        settings=settings, database=database, artifacts=artifacts, doorbell=doorbell, keys=ring, trail=trail, hub=hub
    )
    try:
        readiness = Readiness(parts)
        await readiness.look()  # its time is too short to load Celery and Alembic as well
        found = await readiness.look()
    finally:
        doorbell.close()
        database.close()
    return [one for one in found if one.name != "reaper"]  # which is a matter of a server that runs


def _dependency(one: Dependency, settings: Settings) -> None:
    state: State = "ok" if one.ok else "fail" if one.required else "warn"
    where = _where(one.name, settings)
    if one.name == "broker" and not one.ok and settings.broker_url == Settings.model_fields["broker_url"].default:
        remedy = "none is needed for `tid up`, which starts its own; else set TID_BROKER_URL"
        tell("broker", "warn", f"{where}: {one.detail}", remedy)
    elif one.ok:
        tell(one.name, state, where or one.detail)
    else:  # what is wrong with a folder or a bucket begins with its name
        tell(one.name, state, f"{where}: {one.detail}" if one.name == "broker" else one.detail, one.remedy or "")


def _where(name: str, settings: Settings) -> str:
    """What the settings name, without passwords; empty of what has no setting of its own."""
    bucket = f"{settings.artifacts} at {settings.s3_endpoint or 'what AWS_* variables say, or AWS'}"
    places = {
        "database": make_url(settings.database_url).render_as_string(),
        "broker": without_secrets(settings.broker_url),
        "artifacts": bucket if isinstance(settings.artifacts, S3Place) else str(settings.artifacts),
        "uploads": str(settings.uploads),
    }
    return places.get(name, "")


def _port(settings: Settings, *, is_known: bool) -> None:
    try:
        refuse_taken(settings.host, settings.port)
    except CannotListen as error:
        found, _, remedy = str(error).rpartition("; ")
        tell("port", "warn", found, f"all is well if that is this service; else {remedy}")
    else:
        tell("port", "ok", f"{settings.host}:{settings.port} is free")
    if is_known and (refusal := binding.refusal(settings)) is not None:
        tell("API keys", "fail", refusal)


if __name__ == "__main__":
    sys.exit(main())
