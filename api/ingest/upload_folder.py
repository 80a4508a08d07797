"""The folder of uploaded datasets: `<id>/` holds what is there of each.

`<token>.part` while an archive is received, `archive` when it is whole, `data-<token>` while it is unpacked, `data`
when that is done, `index-<token>` while the index is made. For a folder of the server there is nothing but the last.
What is to be deleted is renamed to `<id>.deleted` first, so that it can be told from what another database knows of.
With artifacts in S3 the folder is this host's alone, and empty while nothing is received or looked through: archives
are among the artifacts.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Parts
from store import datasets, models
from store.artifacts import ArtifactStore
from store.settings import Settings
from store.uploads.archives import folder_key

_ID = re.compile(r"[0-9a-f]{12}")
_DELETED = ".deleted"


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


def delete_files(dataset_id: str, settings: Settings, artifacts: ArtifactStore) -> None:
    """Everything of a dataset that the database no longer knows."""
    place = place_of(dataset_id, settings)
    doomed = place.folder.with_name(f"{dataset_id}{_DELETED}")
    if place.folder.is_dir() and not doomed.exists():
        place.folder.rename(doomed)
    doomed.mkdir(parents=True, exist_ok=True)  # a process that is killed now leaves word of what it was at
    artifacts.delete(folder_key(dataset_id))
    shutil.rmtree(doomed, ignore_errors=True)
    place.clear()  # of a process that wrote on


def clear_if_gone(dataset_id: str, parts: Parts) -> None:
    """A dataset that was deleted while somebody worked on it leaves what was written meanwhile."""
    with parts.database.read() as session:
        gone = session.get(models.Dataset, dataset_id) is None
    if gone:
        delete_files(dataset_id, parts.settings, parts.artifacts)


def half_deleted(settings: Settings) -> list[str]:
    """Ids of the datasets whose files a process was deleting when it was killed."""
    found = settings.uploads.glob(f"*{_DELETED}")
    return [path.stem for path in found if _ID.fullmatch(path.stem)]


def find_leftovers(settings: Settings, session: Session) -> list[Place]:
    """Places with more in them than their datasets need: processes were killed that worked on them.

    A dataset that some process works on now is none of them, nor is one that this database does not know.
    """
    folders = settings.uploads.iterdir() if settings.uploads.is_dir() else ()
    ids = {path.name for path in folders if _ID.fullmatch(path.name)}
    if not ids:
        return []
    busy = datasets.held_ids(session=session)
    rows = session.scalars(select(models.Dataset).where(models.Dataset.state != "validating")).all()
    known = {row.id: row for row in rows}
    stale = {one: Place(settings.uploads / one) for one in sorted(ids - busy) if one in known}
    return [place for one, place in stale.items() if _has_more(place, known[one])]


def kept(place: Place, dataset: models.Dataset) -> Path | None:
    """What of a place belongs to a dataset that nobody works on, and that is not to be validated."""
    is_here = dataset.state == "ready" and datasets.stored_archive(dataset) is None
    return place.data if is_here and place.data.is_dir() else None


def _has_more(place: Place, dataset: models.Dataset) -> bool:
    return any(path != kept(place, dataset) for path in place.folder.iterdir())
