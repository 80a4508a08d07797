"""A thread in every API process that looks through new datasets; a lease in the database gives each to one of them."""

import logging
import time
from threading import Event, Thread

from api.deps import Parts
from api.ingest import upload_folder
from api.ingest.index_run import IndexRun
from api.ingest.upload_folder import Place
from store import datasets
from store.models import Dataset

log = logging.getLogger("api.indexing")


class Indexer:
    """Runs until it is stopped, whatever happens to the database, the disk or a dataset meanwhile."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._stopping = Event()
        self._swept = -float("inf")
        self._thread = Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and its child; what it worked on is taken up by another process, or at the next start."""
        self._stopping.set()
        self.parts.dataset_came.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.parts.dataset_came.clear()
            settings = self.parts.settings
            pause = settings.reaper_seconds
            for work in (self._round, self._sweep):
                try:
                    work()
                except Exception as error:
                    log.warning("datasets could not be looked after, it is tried again: %s", error)
                    pause = max(pause, settings.lease_seconds)  # work that is lost again and again is not cheap
            self.parts.dataset_came.wait(pause)

    def _round(self) -> None:
        with self.parts.database.read() as session:
            ids = datasets.waiting(session=session)
        for dataset_id in ids:
            if self._stopping.is_set():
                return
            seconds = self.parts.settings.lease_seconds
            with self.parts.database.write() as session:
                hold = datasets.hold(dataset_id, "validating", seconds=seconds, session=session)
            if hold is not None:
                IndexRun(hold, self.parts, self._stopping).run()

    def _sweep(self) -> None:
        """Delete what killed processes left, once their leases are over."""
        settings = self.parts.settings
        if time.monotonic() - self._swept < settings.lease_seconds:
            return
        self._swept = time.monotonic()
        for dataset_id in upload_folder.half_deleted(settings):
            upload_folder.delete_files(dataset_id, settings, self.parts.artifacts)
        with self.parts.database.read() as session:
            places = upload_folder.find_leftovers(settings, session)
        for place in places:
            self._clear(place)

    def _clear(self, place: Place) -> None:
        dataset_id, hold = place.folder.name, None
        with self.parts.database.write() as session:
            row = session.get(Dataset, dataset_id)
            state = None if row is None else row.state
            if state == "uploading":  # nobody may begin to send while its folder is cleared
                hold = datasets.hold(dataset_id, state, seconds=self.parts.settings.lease_seconds, session=session)
        if row is None or state == "validating" or (state == "uploading" and hold is None):
            return
        log.info("leftovers of dataset %s (%s) are deleted", dataset_id, state)
        place.clear(but=upload_folder.kept(place, row))
        if hold is not None:
            with self.parts.database.write() as session:
                datasets.forget_progress(dataset_id, session=session)
                datasets.let_go(hold, session=session)
