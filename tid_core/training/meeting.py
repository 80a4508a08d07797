"""The folder where the launcher and its ranks meet. Free of torch.

    plan.json            what to do
    events               a named pipe: what the first rank says, for the launcher to pass on
    stop                 there as soon as somebody asked the run to stop
    store                where the ranks find each other
    rendezvous           where torchrun does
    torchrun/            for its own files
    finished-R.json      how rank R ended, by its own account

It belongs to one attempt at a run.
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from tid_core.events import Finished
from tid_core.training.files import replace_file

PLAN, EVENTS, STOP, STORE, RENDEZVOUS, TORCHRUN = "plan.json", "events", "stop", "store", "rendezvous", "torchrun"
RANK_LOST = "rank_lost"
"""The reason of a rank that found another one gone: never the cause of a failure."""


def leave_word(folder: Path, rank: int, finished: Finished) -> None:
    """Say how `rank` ended, if there is still somebody to read it."""
    if folder.is_dir():
        replace_file(folder / f"finished-{rank}.json", finished.model_dump_json().encode())


def read_words(folder: Path, ranks: Iterable[int]) -> dict[int, Finished]:
    """By rank; one that was killed has left none."""
    words = {}
    for rank in ranks:
        try:
            words[rank] = Finished.model_validate_json((folder / f"finished-{rank}.json").read_bytes())
        except (OSError, ValidationError):
            continue
    return words
