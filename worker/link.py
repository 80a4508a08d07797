"""What an owner writes to the database: each write renews the lease, and a database that is away is waited for."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from store import claims, seats
from store.db import Database
from store.errors import LeaseLost
from store.fencing import Claim
from store.seats import Meeting, Seated
from store.states import State

log = logging.getLogger("worker")

Result = TypeVar("Result")
Told = TypeVar("Told")
AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
_RETRY_SECONDS = 1.0


class Away(Exception):
    """The database does not answer for now; nothing was written."""


class OwnershipUnknown(Exception):
    """The database has been silent for so long that the job may belong to another by now."""


class Tie(ABC, Generic[Told]):
    """The database as seen by who holds a lease in it.

    Args:
        holder: its proof.
        lease_seconds: how long each renewal lasts.
        patience: seconds without a renewal after which the owner gives up. Longer than a lease: a database that is away
            is away for those, too, who would take the job, and a write under a lost lease is refused anyway.
    """

    def __init__(self, database: Database, holder: Claim | Seated, lease_seconds: float, *, patience: float) -> None:
        self._holder = holder
        self._database = database
        self._lease_seconds = lease_seconds
        self._patience = patience
        self._renewed_at = time.monotonic()
        self._tried_at = 0.0
        self._away = False

    @abstractmethod
    def _renew(self, session: Session) -> Told | None:
        """What the renewal tells, or None where the lease is lost."""

    @property
    def silence(self) -> float:
        """Seconds since the lease was last renewed."""
        return time.monotonic() - self._renewed_at

    def write(self, action: Callable[[Session], Result]) -> tuple[Result, Told]:
        """Renew the lease and do `action` in one transaction.

        Returns:
            What the action returned, and what the renewal told.

        Raises:
            LeaseLost: the job (or the seat) has another owner or none.
            Away: the database does not answer, or did not a moment ago.
            OwnershipUnknown: it has not answered for as long as this owner is patient.
        """
        if self._away and time.monotonic() - self._tried_at < _RETRY_SECONDS:
            raise Away
        try:
            with self._database.write() as session:
                told = self._renew(session)
                if told is None:
                    raise LeaseLost(self._holder.job_id, self._holder.attempt)
                result = action(session)
        except AWAY as error:
            self._note_absence(error)
            raise Away from error
        self._renewed_at, self._away = time.monotonic(), False
        return result, told

    def insist(self, action: Callable[[Session], Result]) -> Result:
        """`write`, again and again while the database is away.

        Raises:
            LeaseLost, OwnershipUnknown: as in `write`.
        """
        while True:
            try:
                return self.write(action)[0]
            except Away:
                time.sleep(_RETRY_SECONDS / 4)

    def _note_absence(self, error: Exception) -> None:
        if not self._away:
            log.warning("job %s: the database does not answer, training goes on: %s", self._holder.job_id, error)
        self._away, self._tried_at = True, time.monotonic()
        if self.silence > self._patience:
            raise OwnershipUnknown(f"no renewal of the lease for {self.silence:.0f} s") from error


class Link(Tie[State]):
    """Of the owner of a job. A renewal tells its state before it: `cancelling` asks to stop."""

    def __init__(self, database: Database, claim: Claim, lease_seconds: float, *, patience: float) -> None:
        super().__init__(database, claim, lease_seconds, patience=patience)
        self._claim = claim

    def _renew(self, session: Session) -> State | None:
        return claims.renew(self._claim, lease_seconds=self._lease_seconds, session=session)


class SeatLink(Tie[Meeting]):
    """Of who sits beside the owner. A renewal tells where that waits."""

    def __init__(self, database: Database, seated: Seated, lease_seconds: float, *, patience: float) -> None:
        super().__init__(database, seated, lease_seconds, patience=patience)
        self._seated = seated

    def _renew(self, session: Session) -> Meeting | None:
        return seats.renew(self._seated, lease_seconds=self._lease_seconds, session=session)
