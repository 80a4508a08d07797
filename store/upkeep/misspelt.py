"""`TID_*` variables that nobody reads, and which one was probably meant. `python -m store.upkeep.misspelt`."""

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from store.settings import PREFIX, Settings

OF_OTHERS: Final = frozenset(
    {
        "API_KEY", "API_KEY_FILE", "URL",  # the client
        "API_PORT",  # docker-compose.yml
        "CACHE_BYTES", "DEAF_SECONDS", "FULL_SECONDS", "GPUS", "NODES_SECONDS", "NODE_ADDRESS", "NODE_PORTS",
        "OFFLINE_SECONDS", "QUEUES", "STORAGE_SECONDS", "THREADS", "WORKER_ID",
    }
)  # fmt: skip
"""What the client and the workers read beside the settings of the service, which knows neither."""


def misspelt(names: Iterable[str]) -> list[str]:
    """A line for each name that is close to a setting and is none. Strange names are somebody else's business."""
    known = {PREFIX + name for name in OF_OTHERS | {field.upper() for field in Settings.model_fields}}
    lines = []
    for name in sorted(set(names)):
        if name.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.8)
            lines += [f"{name} is set, and is no setting; {near[0]} is one" for _ in near]
    return lines


if __name__ == "__main__":
    sys.stderr.write("".join(f"warning: {line}\n" for line in misspelt(os.environ)))
