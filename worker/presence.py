"""The worker's own row: who it is, what it runs on, when it was last heard of."""

import logging
import os
import socket
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from store import reaper, seats, workers
from store.db import Database
from store.models import Job
from store.upkeep.starting import told
from worker import dataset_copies, leftovers
from worker.endings import RANK_LOST
from worker.gpus import visible_gpus
from worker.settings import WorkerSettings
from worker.telemetry import device_facts, load, said_of

log = logging.getLogger("worker")


class Presence:
    """Keeps the row of one worker.

    Each beat has a connection of its own: the worker forks pool processes, which must not inherit one.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._database = Database(settings.database_url, keep_connections=False)
        self._device = device_facts()
        self._silent = False
        self._first = True
        self._outdated = True  # the row of a process before this one, which may have had other GPUs

    def beat(self) -> bool:
        """Say that the worker is there. A database that is away is noted once and tried again at the next beat.

        Returns:
            Whether it was written. Until the first one is, no job may be claimed: it would count as left over.
        """
        try:
            self._write()
        except SQLAlchemyError as error:
            if not self._silent:
                log.warning("the heartbeat cannot be written: %s", told(error, self._settings))
            self._silent = True
        else:
            self._silent = False
        return not self._silent

    def leave(self) -> None:
        """Say that the worker is gone; where that cannot be written, its silence will tell."""
        try:
            with self._database.write() as session:
                workers.sign_off(self._settings.worker_id, session=session)
        except SQLAlchemyError as error:
            log.warning("could not sign off: %s", told(error, self._settings))

    def _write(self) -> None:
        telemetry = self._telemetry()
        self._compare(telemetry)
        with self._database.write() as session:
            if self._first:
                self._begin(session)
            if self._outdated or not self._heartbeat(telemetry, session):
                self._register(session)
                self._heartbeat(telemetry, session)
        if self._first:  # gigabytes, perhaps, for which no transaction waits
            leftovers.clear(self._settings.home / "work", self._database)
            dataset_copies.forget_unknown(self._settings.home, self._database)
        self._first = self._outdated = False

    def _heartbeat(self, telemetry: dict[str, Any], session: Session) -> bool:
        worker_id = self._settings.worker_id
        owned = select(Job.id).where(Job.worker_id == worker_id, Job.lease_token.is_not(None)).limit(1)
        job_id = session.scalar(owned) or seats.job_of(worker_id, session=session)
        return workers.heartbeat(worker_id, current_job=job_id, telemetry=telemetry, session=session)

    def _begin(self, session: Session) -> None:
        """What the processes before this one left under its name: jobs, and seats."""
        for expired in reaper.expire_of(self._settings.worker_id, session=session):
            log.warning(
                "attempt %d of job %s was lost with this worker's last process", expired.attempt, expired.job_id
            )
        seats.give_up_of(self._settings.worker_id, RANK_LOST, session=session)
        self._say()

    def _compare(self, telemetry: dict[str, Any]) -> None:
        """Jobs must not be given to a worker for a GPU that it has lost since, and may be for one that is back."""
        if {gpu["uuid"] for gpu in telemetry["gpus"]} != {gpu["uuid"] for gpu in self._device["gpus"]}:
            self._device, self._outdated = device_facts(), True
            self._say()

    def _say(self) -> None:
        for level, line in said_of(self._device):
            log.log(level, "%s", line)

    def _register(self, session: Session) -> None:
        workers.register(
            self._settings.worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            queues=self._settings.queues.split(","),
            device=self._device,
            session=session,
        )

    def _telemetry(self) -> dict[str, Any]:
        return {**load(), "gpus": visible_gpus()}
