"""The folder of uploaded datasets: `<id>/` holds what is there of each.

`<token>.part` while an archive is received, `archive` when it is whole, `data-<token>` while it is unpacked, `data`
when that is done, `index-<token>` while the index is made. For a folder of the server there is nothing but the last.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from store import datasets, models
from store.settings import Settings

_ID = re.compile(r"[0-9a-f]{12}")


class Place(NamedTuple):
    """Of one dataset."""

    folder: Path

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def part(self, token: str) -> Path:
        return self.folder / f"{token}.part"

    def new_index(self, token: str) -> Path:
        return self.folder / f"index-{token}"

    def unpacked(self, token: str) -> Path:
        return self.folder / f"data-{token}"

    def clear(self, *, but: Path | None = None) -> None:
        """Delete everything, or everything but one entry."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path == but:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        with suppress(OSError):
            self.folder.rmdir()


def place_of(dataset_id: str, settings: Settings) -> Place:
    return Place(settings.uploads / dataset_id)


def index_key(dataset_id: str) -> str:
    """Key of everything among the artifacts that belongs to the dataset."""
    return f"datasets/{dataset_id}"


def find_leftovers(settings: Settings, index_root: Path, session: Session) -> tuple[list[Place], list[str]]:
    """What processes left that were killed: places with more in them than their datasets need, and stray indices.

    A dataset that some process works on now is none of them.

    Returns:
        The places, and the ids of datasets that are gone but have an index under `index_root`.
    """
    ids = _ids(settings.uploads)
    indexed = _ids(index_root)
    if not ids and not indexed:
        return [], []
    busy = datasets.held_ids(session=session)
    rows = session.execute(select(models.Dataset.id, models.Dataset.state)).all()
    states: dict[str, models.DatasetState] = {row.id: row.state for row in rows}
    stale = [Place(settings.uploads / one) for one in sorted(ids - busy) if states.get(one) != "validating"]
    return [place for place in stale if _has_more(place, states)], sorted(indexed - busy - states.keys())


def kept(place: Place, state: str | None) -> Path | None:
    """What of a place belongs to a dataset in this state that nobody works on."""
    return place.data if state == "ready" and place.data.is_dir() else None


def _has_more(place: Place, states: dict[str, models.DatasetState]) -> bool:
    return any(path != kept(place, states.get(place.folder.name)) for path in place.folder.iterdir())


def _ids(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if _ID.fullmatch(path.name)} if folder.is_dir() else set()
