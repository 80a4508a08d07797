"""One dataset, from `validating` to `ready` or `invalid`, by the process that holds it.

What is slow or dangerous runs in child processes: an archive is unpacked (tid_core.data.archives), the folder is read
and its images are checked (tid_core.data.index). A process that dies takes its child along; when its lease is over,
another one starts again.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api.deps import Parts
from api.ingest.upload_folder import clear_if_gone, place_of
from store import datasets
from store.artifacts import ArtifactDamaged
from store.datasets import Hold
from store.errors import HoldLost, OutsideRoots
from store.ids import new_id
from store.models import Dataset, Json
from store.uploads import archives, children
from store.uploads.archives import folder_key
from tid_core.data.problems import DataProblem
from tid_core.facts import DatasetFacts

log = logging.getLogger("api.indexing")

TRANSIENT = (OperationalError, InterfaceError, PoolTimeout, OSError)
"""The database is away, the disk is full: another try may go well."""
_REASONS = 20
"""Reasons that are kept of a report: a dataset with more of them has to be looked at anyway."""
_TELL_SECONDS = 0.5


class Invalid(Exception):
    """The dataset cannot be used; the report has {code, detail} for each reason."""

    def __init__(self, *report: Json) -> None:
        super().__init__(report[0]["detail"])
        self.report = list(report[:_REASONS])


class _Stopping(Exception):
    """This process ends; the work is left to another."""


class IndexRun:
    def __init__(self, hold: Hold, parts: Parts, stopping: Event) -> None:
        self._hold, self._parts, self._stopping = hold, parts, stopping
        self._place = place_of(hold.dataset_id, parts.settings)
        self._renewed = time.monotonic()
        self._progress: Json | None = None

    def run(self) -> None:
        """Nothing is raised for a dataset that is invalid, was deleted, or is left to another process."""
        begun = time.monotonic()
        try:
            self._validate(self._row())
            log.info("dataset %s is ready after %.1f s", self._hold.dataset_id, time.monotonic() - begun)
        except Invalid as invalid:
            self._refuse(invalid)
        except HoldLost:
            self._leave()
        except _Stopping:
            self._let_go()
        except TRANSIENT:
            self._let_go()
            raise
        except Exception:  # it would fail again, and again
            log.exception("dataset %s", self._hold.dataset_id)
            detail = "the server failed over it; its log says how"
            self._refuse(Invalid({"code": "validation_failed", "detail": detail}))

    def _row(self) -> Dataset:
        with self._parts.database.read() as session:
            row = session.get(Dataset, self._hold.dataset_id)
        if row is None:
            raise HoldLost(self._hold.dataset_id)
        return row

    def _validate(self, row: Dataset) -> None:
        self._place.clear(but=self._what_is_there())  # what a process left that was killed
        index = self._place.new_index(self._hold.token)
        try:
            root = self._root(row)
            facts = self._index(row, root, index)
            self._store(row, root, index, facts)
            if datasets.stored_archive(row):
                self._place.clear()
        finally:
            shutil.rmtree(index, ignore_errors=True)
            self._place.remove_if_empty()

    def _what_is_there(self) -> Path | None:
        """Of the archive and its content; each is there in full or not at all."""
        return self._place.data if self._place.data.is_dir() else self._place.archive

    def _root(self, row: Dataset) -> Path:
        """The real folder of the dataset."""
        if row.source == "archive":
            return self._unpacked(row)
        try:
            return datasets.allowed_path(Path(str(row.root)), self._parts.settings.data_roots)
        except OutsideRoots as error:
            raise Invalid({"code": error.code, "detail": str(error)}) from error

    def _unpacked(self, row: Dataset) -> Path:
        """The content of the archive, which is then no longer needed here."""
        data, mine = self._place.data, self._place.unpacked(self._hold.token)
        if not data.is_dir():
            archive, limit = self._archive(row), str(self._parts.settings.unpacked_bytes)
            try:
                self._child("tid_core.data.archives", [str(archive), str(mine), "--max-bytes", limit], "unpacking")
                self._renew({"phase": "checking", "done": 0, "total": None})  # only now is it sure that it is ours
                mine.replace(data)
            finally:
                shutil.rmtree(mine, ignore_errors=True)
        self._place.archive.unlink(missing_ok=True)
        return data

    def _archive(self, row: Dataset) -> Path:
        """Where this process received it, or out of the artifacts, where another one put it."""
        if self._place.archive.is_file():
            return self._place.archive
        key = datasets.stored_archive(row)
        if key is None:
            raise Invalid({"code": "archive_gone", "detail": "the uploaded archive is gone from the server"})
        try:
            return archives.bring(key, self._place.archive, self._parts.artifacts, self._watch("fetching"))
        except (FileNotFoundError, ArtifactDamaged) as error:
            detail = f"the uploaded archive is not in the artifact store as it was put there: {error.strerror}"
            raise Invalid({"code": "archive_gone", "detail": detail}) from error

    def _index(self, row: Dataset, root: Path, index: Path) -> DatasetFacts:
        arguments = [str(root), str(index), "--name", row.name, "--options", json.dumps(row.options)]
        try:
            self._child("tid_core.data.index", arguments, "checking")
        except Invalid as invalid:
            raise Invalid(*(_without_path(problem, root, row) for problem in invalid.report)) from None
        facts = DatasetFacts.model_validate_json((index / "facts.json").read_bytes())
        if row.classes and row.classes != facts.classes:
            detail = (
                f"its classes were {row.classes} when it was registered and are {facts.classes} now; jobs rely on the "
                "former: register the folder as it is now under another name"
            )
            raise Invalid({"code": "classes_changed", "detail": detail})
        return facts

    def _store(self, row: Dataset, root: Path, index: Path, facts: DatasetFacts) -> None:
        artifacts, prefix = self._parts.artifacts, f"{folder_key(row.id)}/{new_id()}"
        stored = datasets.stored_archive(row)
        # Of processes that died before they could say that their index is there. They go once it is sure that this one
        # holds the dataset: had it lost it, they might be what its successor has stored.
        with self._kept():
            outdated = [one.name for one in artifacts.listing(folder_key(row.id)) if one.name != stored]
        found: dict[str, Any] = {
            "facts": facts.model_dump(mode="json"),
            "classes": facts.classes,
            "index_prefix": prefix,
        }
        try:
            with self._kept():
                for file in sorted(index.iterdir()):
                    artifacts.put(f"{prefix}/{file.name}", file)
            with self._parts.database.write() as session:
                datasets.finish_ready(self._hold, root=stored or root, **found, session=session)
        except HoldLost:
            artifacts.delete(prefix)
            raise
        artifacts.discard(outdated)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Renews the lease beside what does not come back to say how far it is: a bucket may be slow."""
        done = Event()

        def renew_always() -> None:
            while not done.wait(self._parts.settings.heartbeat_seconds):
                try:
                    self._renew(self._progress)
                except Exception as error:  # whoever writes next learns it, too
                    log.warning("dataset %s could not be kept: %s", self._hold.dataset_id, error)
                    return

        thread = Thread(target=renew_always, name="index-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _child(self, module: str, arguments: list[str], phase: str) -> None:
        """Raises:
        Invalid: the child refuses the dataset, or cannot cope with it.
        """
        try:
            answer = children.run(module, [*arguments, "--progress"], self._watch(phase))
        except children.ChildFailed as error:
            log.error("dataset %s: %s", self._hold.dataset_id, error)
            detail = f"{phase} it failed on the server, whose log says more: {str(error).splitlines()[-1]:.300}"
            raise Invalid({"code": "validation_failed", "detail": detail}) from error
        if answer.refusal is not None:
            raise Invalid(*_report(answer.refusal))

    def _watch(self, phase: str) -> Callable[[int | None, int | None], None]:
        told: Json | None = None

        def watch(done: int | None, total: int | None) -> None:
            nonlocal told
            if self._stopping.is_set():
                raise _Stopping
            progress = {"phase": phase, "done": done or 0, "total": total}
            since = time.monotonic() - self._renewed
            if since > (self._parts.settings.heartbeat_seconds if progress == told else _TELL_SECONDS):
                told = progress
                self._renew(progress)

        return watch

    def _renew(self, progress: Json | None) -> None:
        """A database that is away for less than the lease is waited for."""
        self._progress = progress
        seconds = self._parts.settings.lease_seconds
        try:
            with self._parts.database.write() as session:
                datasets.keep(self._hold, progress, seconds=seconds, session=session)
        except HoldLost:
            raise
        except Exception as error:
            if time.monotonic() - self._renewed > seconds:
                raise
            log.warning("dataset %s: its progress could not be written: %s", self._hold.dataset_id, error)
        else:
            self._renewed = time.monotonic()

    def _refuse(self, invalid: Invalid) -> None:
        """Nothing stays but the report."""
        log.info("dataset %s is invalid: %s", self._hold.dataset_id, invalid)
        try:
            with self._parts.database.write() as session:
                datasets.finish_invalid(self._hold, invalid.report, session=session)
        except HoldLost:
            self._leave()
        else:
            self._place.clear()
            self._parts.artifacts.delete(folder_key(self._hold.dataset_id))

    def _leave(self) -> None:
        """The dataset has another owner, or was deleted: then so is what was written meanwhile."""
        log.info("dataset %s was deleted or taken over while it was looked through", self._hold.dataset_id)
        clear_if_gone(self._hold.dataset_id, self._parts)

    def _let_go(self) -> None:
        try:
            with self._parts.database.write() as session:
                datasets.let_go(self._hold, session=session)
        except Exception as error:
            log.warning("dataset %s could not be let go, its lease runs out: %s", self._hold.dataset_id, error)


def _report(refusal: dict[str, Any]) -> list[Json]:
    """One reason for each kind of problem in each split, or the only one there is."""
    found = [
        {"code": problem.code, "detail": f"{split}: {problem}"}
        for split, problems in (refusal.get("problems") or {}).items()
        for problem in map(DataProblem.model_validate, problems)
    ]
    return found or [{"code": refusal["code"], "detail": refusal["detail"]}]


def _without_path(problem: Json, root: Path, row: Dataset) -> Json:
    """An uploaded dataset is not told in paths of the server."""
    if row.source == "folder":
        return problem
    detail = str(problem["detail"]).replace(f"{root}: ", "the archive ").replace(f"{root}/", "")
    detail = detail.replace(str(root), "the archive")
    return {**problem, "detail": detail}
