"""The workers beside the owner of an attempt, as it sees them: who is there, who fell silent, who left and why."""

import time
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from store import seats
from store.fencing import Claim
from store.models import Seat
from tid_core.plan import NodePlan
from worker.addresses import own_address, reserve_port
from worker.endings import CRASHES, RANK_LOST
from worker.settings import WorkerSettings

LOOK_SECONDS: Final = 0.5
LINGER_SECONDS: Final = 5.0
"""How long the owner's ranks have to end by themselves once another node is gone."""


class NodesMissing(Exception):
    """Not all came in time."""


@dataclass(frozen=True)
class Trouble:
    """Why the attempt cannot go on with one of its nodes."""

    reason: str
    detail: str

    @property
    def weight(self) -> int:
        """Of several the heaviest is the cause: that a rank is lost is what the others say of it."""
        if self.reason in seats.LEFT:
            return 2
        if self.reason in CRASHES:
            return 1 if self.reason != RANK_LOST else 0
        return 3


class Others:
    """Of an attempt that has no other nodes. `look` is for the transactions of its owner."""

    look_seconds = float("inf")
    """How often to look at the least."""
    word_seconds = 0.0
    """How long to wait to hear why another node is gone, once the ranks of this one have missed it."""
    descriptors: tuple[int, ...] = ()
    """Which the training inherits."""
    missing = 0
    trouble: Trouble | None = None

    @property
    def cause_is_known(self) -> bool:
        return self.trouble is not None and self.trouble.reason != RANK_LOST

    @property
    def is_over(self) -> bool:
        """Whether the ranks of this node wait in vain."""
        return False

    def look(self, session: Session) -> None:
        """Say where this owner waits, and see what became of the others."""

    def check_patience(self) -> None:
        """
        Raises:
            NodesMissing: seats have been open for too long.
        """

    def close(self) -> None:
        """The training has the port now, or there is none."""


class OtherNodes(Others):
    """Use it in the thread of the supervisor."""

    look_seconds = LOOK_SECONDS
    word_seconds = 10.0

    def __init__(self, claim: Claim, settings: WorkerSettings, nodes: int) -> None:
        """
        Raises:
            NoAddress: the others could not reach this worker.
        """
        self._claim, self._nodes = claim, nodes
        self._patience = settings.nodes_seconds
        self._grace = 2 * settings.heartbeat_seconds
        self._address = own_address(settings)
        self._reserved = reserve_port(self._address, settings.port_range)
        self._port = int(self._reserved.getsockname()[1])
        self._announced = False
        self._opened_at = time.monotonic()
        self._silent_since: dict[int, float] = {}
        self._trouble_at: float | None = None
        self.descriptors = (self._reserved.fileno(),)
        self.missing = nodes - 1

    def plan(self) -> NodePlan:
        return NodePlan(
            number=0,
            count=self._nodes,
            host=self._address,
            port=self._port,
            address=self._address,
            listen_fd=self._reserved.fileno(),
        )

    def close(self) -> None:
        self._reserved.close()

    def look(self, session: Session) -> None:
        if not self._announced:
            seats.announce(self._claim, self._address, self._port, session=session)
        found = seats.look(self._claim, session=session)
        self._announced = all(one.seat.port == self._port for one in found)
        self.missing = sum(one.seat.worker_id is None for one in found)
        troubles = [trouble for one in found if (trouble := self._judge(one)) is not None]
        if troubles:
            self.trouble = max(troubles, key=lambda trouble: trouble.weight)
            self._trouble_at = self._trouble_at or time.monotonic()

    def check_patience(self) -> None:
        if self.missing and time.monotonic() - self._opened_at > self._patience:
            told = f"{self._nodes - self.missing} of {self._nodes} workers were there after {self._patience:g} s"
            raise NodesMissing(f"{told} (TID_NODES_SECONDS)")

    @property
    def is_over(self) -> bool:
        return self._trouble_at is not None and time.monotonic() - self._trouble_at > LINGER_SECONDS

    def _judge(self, found: seats.Look) -> Trouble | None:
        seat = found.seat
        if seat.reason is not None:
            return Trouble(seat.reason, f"{_who(seat)}: {seat.detail or seat.reason}")
        if not found.is_silent:
            self._silent_since.pop(seat.node, None)
            return None
        # After an absence of the database both find it again, and this one may be the quicker to look.
        since = self._silent_since.setdefault(seat.node, time.monotonic())
        if time.monotonic() - since < self._grace:
            return None
        return Trouble(RANK_LOST, f"{_who(seat)} was silent for longer than its lease")


def _who(seat: Seat) -> str:
    return f"node {seat.node} ({seat.worker_id})"
