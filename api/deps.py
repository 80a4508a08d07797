"""What a route may ask for. One request = one transaction, committed before the answer is sent."""

from dataclasses import dataclass, field
from threading import Event
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.doorbell import Doorbell
from api.gate.keyring import KeyRing
from api.gate.trail import Trail
from api.idempotency import InFlight
from api.streams.hub import Hub
from store.artifacts import ArtifactStore
from store.db import Database
from store.settings import Settings


@dataclass(frozen=True)
class Parts:
    """What the application holds while it runs."""

    settings: Settings
    database: Database
    artifacts: ArtifactStore
    doorbell: Doorbell
    keys: KeyRing
    trail: Trail
    hub: Hub
    dataset_came: Event = field(default_factory=Event)
    """Set when there is a dataset to look through, so that the thread for it need not wait for its next round."""
    in_flight: InFlight = field(default_factory=InFlight)


async def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(parts_of)]


# Both only make the session; `api.routing.Router` opens it, in the thread in which the route runs.
async def _read(parts: PartsDep) -> Session:
    return parts.database.reader()


async def _write(parts: PartsDep) -> Session:
    return parts.database.writer()


ReadSession = Annotated[Session, Depends(_read)]
WriteSession = Annotated[Session, Depends(_write)]
