"""What a route may ask for. One request = one transaction, committed before the answer is sent."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.doorbell import Doorbell
from api.hub import Hub
from api.idempotency import InFlight
from api.keyring import KeyRing
from api.trail import Trail
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


def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(parts_of)]


def _read(parts: PartsDep) -> Iterator[Session]:
    with parts.database.read() as session:
        yield session


def _write(parts: PartsDep) -> Iterator[Session]:
    with parts.database.write() as session:
        yield session


# scope="function": the session ends when the route returns, before the answer (which may be a long download) goes out.
ReadSession = Annotated[Session, Depends(_read, scope="function")]
WriteSession = Annotated[Session, Depends(_write, scope="function")]
