"""Jobs in the states that tests begin with."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from store import claims, jobs
from store.db import Database
from store.fencing import Claim
from store.models import Dataset, Job
from store.reaper import expire_leases
from store.states import State
from tid_core.spec import JobSpec

LEASE_SECONDS = 20.0


class World:
    """A database with one dataset, and short ways to get jobs into it and along."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.write() as session:
            dataset = Dataset(name="digits", source="folder", state="ready", root="/data/digits", index_prefix="i")
            dataset.facts, dataset.classes = {}, ["zero", "one"]
            session.add(dataset)
        self.dataset_id = dataset.id

    def spec(self, **fields: object) -> JobSpec:
        plain = {"student": {"detector": "fcos_resnet18_small"}, "dataset": "digits"}
        return JobSpec.model_validate({**plain, **fields})

    def distillation(self, **fields: object) -> JobSpec:
        return self.spec(teacher={"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}, **fields)

    def submit(self, spec: JobSpec | None = None, **options: object) -> Job:
        with self.database.write() as session:
            created = jobs.create(spec or self.spec(), dataset_id=self.dataset_id, session=session, **options)
        return created.job

    def claim(self, job_id: str, worker_id: str = "worker-1") -> Claim | None:
        with self.database.write() as session:
            return claims.claim(job_id, worker_id, lease_seconds=LEASE_SECONDS, session=session)

    def start(self, job_id: str, *, resumed_from_step: int = 0, worker_id: str = "worker-1") -> Claim:
        """Claim a job and report its training as started."""
        claim = self.claim(job_id, worker_id)
        assert claim is not None
        with self.database.write() as session:
            claims.mark_started(claim, resumed_from_step=resumed_from_step, total_steps=100, epochs=2, session=session)
        return claim

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return jobs.get(job_id, session=session)

    def state(self, job_id: str) -> State:
        return self.job(job_id).state

    def silence(self, job_id: str) -> None:
        """Let the lease be over, as if its worker had not been heard of for ages."""
        with self.database.write() as session:
            session.execute(
                update(Job).where(Job.id == job_id).values(lease_expires_at=datetime(2020, 1, 1, tzinfo=UTC))
            )

    def expire(self, job_id: str) -> State:
        self.silence(job_id)
        with self.database.write() as session:
            (expired,) = expire_leases(session=session)
        assert expired.job_id == job_id
        return expired.state


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


@pytest.fixture
def running(world: World) -> Claim:
    """A job whose training runs."""
    return world.start(world.submit().id)
