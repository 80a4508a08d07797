"""Token buckets: so many requests a minute, in this process."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

WINDOW: Final = 60.0
MAX_BUCKETS: Final = 10_000
"""Beyond these, who has been silent the longest is forgotten."""


class Allowance(NamedTuple):
    """What is left after a request has asked for its share."""

    granted: bool
    limit: int
    left: int
    seconds: int
    """Until there is one more (refused), or all again (granted)."""

    @property
    def headers(self) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers-09 has them."""
        policy = f'"key";q={self.limit};w={WINDOW:.0f}'
        told = {"RateLimit-Policy": policy, "RateLimit": f'"key";r={self.left};t={self.seconds}'}
        return told if self.granted else {**told, "Retry-After": str(self.seconds)}


@dataclass
class Buckets:
    """A bucket for each name, full at first, filled again evenly. For one thread."""

    clock: Callable[[], float] = time.monotonic
    _held: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, name: str, per_minute: int) -> Allowance:
        """Ask for one request of `per_minute`."""
        now = self.clock()
        tokens, since = self._held.get(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - since) * per_minute / WINDOW)
        granted = tokens >= 1.0
        tokens -= granted
        self._held[name] = tokens, now
        self._held.move_to_end(name)
        if len(self._held) > MAX_BUCKETS:
            self._held.popitem(last=False)
        missing = per_minute - tokens if granted else 1.0 - tokens
        return Allowance(granted, per_minute, int(tokens), math.ceil(missing * WINDOW / per_minute))
