"""All tables. No relationships: what is needed is asked for, so nothing is ever loaded behind one's back."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.db import UTCTime, db_now
from store.ids import ID_LENGTH, new_id
from store.states import Outcome, State

Json = dict[str, Any]
DatasetState = Literal["uploading", "validating", "ready", "invalid"]
DatasetSource = Literal["folder", "archive"]
SweepRole = Literal["baseline", "point"]
KeyScope = Literal["read", "write", "admin"]
Draining = Literal["now", "wait"]
"""`now`: hand the present job back; `wait`: finish it first."""
# none_as_null: a missing value is NULL, not the JSON text "null".
_json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# JSONB sorts the keys of an object; what is shown in the order in which it was given is kept as text.
_ordered_json = JSON(none_as_null=True)


def _values(enum: type[State] | type[Outcome], name: str) -> Enum:
    """Stored as the value, held by a CHECK."""
    return Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda e: [m.value for m in e],
    )


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # Values that the database computes come back with the statement, so that objects are complete when it is done.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012
    type_annotation_map = {  # noqa: RUF012
        str: Text(),
        float: Double(),
        datetime: UTCTime(),
        Json: _json,
        list[Json]: _json,
        list[str]: _json,
        State: _values(State, "state"),
        Outcome: _values(Outcome, "outcome"),
    }


def _job_id(*, primary_key: bool = True) -> Mapped[str]:
    """The job that a row belongs to, and goes with."""
    return mapped_column(String(ID_LENGTH), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=primary_key)


def _link(target: str) -> Mapped[str | None]:
    return mapped_column(String(ID_LENGTH), ForeignKey(target, ondelete="SET NULL"), index=True)


def _created_by() -> Mapped[str | None]:
    """Id of the API key that asked for the row; null before there were keys. No foreign key: keys are never deleted."""
    return mapped_column(String(ID_LENGTH))


def _number(default: int) -> Mapped[int]:
    """A column that processes of the version before, which know nothing of it, leave to the database."""
    return mapped_column(default=default, server_default=str(default))


class Dataset(Base):
    """Data to train on. Once it is ready nothing about it changes; until then root, facts and index are unknown."""

    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint("state IN ('uploading', 'validating', 'ready', 'invalid')", name="state"),
        CheckConstraint("source IN ('folder', 'archive')", name="source"),
        CheckConstraint(
            "state <> 'ready' OR (root IS NOT NULL AND facts IS NOT NULL AND index_prefix IS NOT NULL)", name="ready"
        ),
        Index("ix_datasets_list", "created_at", "id", "state"),
    )

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(120), unique=True)
    source: Mapped[DatasetSource] = mapped_column(String(16))
    root: Mapped[str | None]  # its folder, or the key of its archive among the artifacts
    options: Mapped[Json] = mapped_column(default=dict)
    state: Mapped[DatasetState] = mapped_column(String(16))
    progress: Mapped[Json | None]  # phase, done, total
    report: Mapped[list[Json]] = mapped_column(default=list)  # code, detail; why it is invalid
    facts: Mapped[Json | None]
    classes: Mapped[list[str]] = mapped_column(default=list)
    format: Mapped[str | None] = mapped_column(String(16))
    sha256: Mapped[str | None] = mapped_column(String(64))
    bytes: Mapped[int | None] = mapped_column(BigInteger)  # of the archive
    index_prefix: Mapped[str | None]  # key of the folder of train.json, val.json, ... among the artifacts
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    created_by: Mapped[str | None] = _created_by()


class Sweep(Base):
    """Jobs that were submitted together, to be compared. What it has reached is read off them."""

    __tablename__ = "sweeps"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(60))
    spec: Mapped[Json] = mapped_column(_ordered_json)  # as submitted
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    created_by: Mapped[str | None] = _created_by()
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_hash: Mapped[str | None] = mapped_column(String(64))


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name="lease"),
        CheckConstraint("sweep_role IN ('baseline', 'point')", name="sweep_role"),
        CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
        Index("ix_jobs_waiting", "state", "queue", "priority", "created_at", "id"),
        Index("ix_jobs_list", "created_at", "id", "state", "method", "queue", "sweep_id", "name"),
        Index(None, "created_by", "state"),
        Index("ix_jobs_several", "state", "queue", sqlite_where=text("nodes > 1"), postgresql_where=text("nodes > 1")),
        # Not on what each renewal of a lease changes: PostgreSQL would write into every index of the table.
        Index("ix_jobs_owned", "worker_id", sqlite_where=text("lease_token IS NOT NULL"),
              postgresql_where=text("lease_token IS NOT NULL")),
    )  # fmt: skip

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(160))
    state: Mapped[State] = mapped_column(default=State.QUEUED)
    status_reason: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None]
    spec: Mapped[Json]
    method: Mapped[str] = mapped_column(String(32))
    queue: Mapped[str] = mapped_column(String(64))
    priority: Mapped[int] = mapped_column(default=5)  # 0 first, as the broker has it
    gpus_wanted: Mapped[int] = _number(0)  # without which no worker may take it; 0 = any worker may
    min_gpu_memory_mib: Mapped[int] = _number(0)  # of each of them
    nodes: Mapped[int] = _number(1)  # workers that train it together

    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int]
    forgiven: Mapped[int] = mapped_column(default=0)  # attempts up to this one do not count against max_attempts
    worker_id: Mapped[str | None]
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    last_rung_at: Mapped[datetime | None]

    created_by: Mapped[str | None] = _created_by()
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(default=db_now())

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    epoch: Mapped[int] = mapped_column(default=0)
    epochs: Mapped[int]
    eta_seconds: Mapped[float | None]
    progress: Mapped[Json | None]
    run_facts: Mapped[Json | None]
    best_ap: Mapped[float | None]
    warnings: Mapped[list[Json]] = mapped_column(default=list)

    dataset_id: Mapped[str] = mapped_column(String(ID_LENGTH), ForeignKey("datasets.id"), index=True)
    teacher_job_id: Mapped[str | None] = _link("jobs.id")
    baseline_job_id: Mapped[str | None] = _link("jobs.id")
    twin_of: Mapped[str | None] = _link("jobs.id")  # null for a baseline that several jobs share
    sweep_id: Mapped[str | None] = _link("sweeps.id")
    sweep_role: Mapped[SweepRole | None] = mapped_column(String(16))
    sweep_label: Mapped[str | None] = mapped_column(String(120))  # the same for every seed
    sweep_point: Mapped[Json | None] = mapped_column(_ordered_json)  # axis to value
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_hash: Mapped[str | None] = mapped_column(String(64))
    traceparent: Mapped[str | None] = mapped_column(String(55))  # W3C, of the request that made it, where it is traced


class Attempt(Base):
    __tablename__ = "attempts"
    __table_args__ = (Index(None, "outcome", "reason"),)

    job_id: Mapped[str] = _job_id()
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[str]
    lease_token: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime] = mapped_column(default=db_now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[Outcome | None]
    reason: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None]
    resumed_from_step: Mapped[int | None]
    last_step: Mapped[int | None]


class Seat(Base):
    """A place beside the owner of an attempt, for one of the further workers that its job wants (`nodes`)."""

    __tablename__ = "seats"
    __table_args__ = (
        CheckConstraint("(token IS NULL) = (lease_expires_at IS NULL)", name="lease"),
        Index(None, "worker_id"),
    )

    job_id: Mapped[str] = _job_id()
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    node: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # from 1; node 0 is the owner
    host: Mapped[str | None] = mapped_column(String(64))  # where the owner waits: its address and port
    port: Mapped[int | None]
    worker_id: Mapped[str | None]  # null: nobody has taken it
    token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    last_rung_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(String(64))  # why it was left before the attempt was over
    detail: Mapped[str | None]


class Metric(Base):
    """One point of a series. A later attempt that writes the same step takes the row over: a curve cannot double."""

    __tablename__ = "metrics"
    # The primary key is the order in which series are read; SQLite then keeps the points of a series side by side.
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    job_id: Mapped[str] = _job_id()
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    value: Mapped[float]
    epoch: Mapped[int]
    attempt: Mapped[int]
    at: Mapped[datetime] = mapped_column(default=db_now())
    superseded: Mapped[bool] = mapped_column(default=False)


class MetricLatest(Base):
    """The newest point of each series, so that lists never read series."""

    __tablename__ = "metric_latest"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    job_id: Mapped[str] = _job_id()
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float]
    epoch: Mapped[int]
    at: Mapped[datetime] = mapped_column(default=db_now())


class Checkpoint(Base):
    __tablename__ = "checkpoints"

    job_id: Mapped[str] = _job_id()
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    format: Mapped[str] = mapped_column(String(16), primary_key=True)
    key: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int] = mapped_column(BigInteger)
    epoch: Mapped[int]
    ap: Mapped[float | None]
    attempt: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=db_now())


class ResumeState(Base):
    __tablename__ = "resume_states"

    job_id: Mapped[str] = _job_id()
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    key: Mapped[str]
    attempt: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=db_now())


class Artifact(Base):
    """A file of a job that is not a checkpoint: a map, the detections, a report."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = _job_id()
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=db_now())


class Worker(Base):
    __tablename__ = "workers"
    __table_args__ = (CheckConstraint("draining IN ('now', 'wait')", name="draining"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    queues: Mapped[list[str]]
    device: Mapped[Json]
    gpus: Mapped[int] = _number(0)  # that a training can use
    gpu_memory_mib: Mapped[int] = _number(0)  # the least among them; 0 where it is not known
    telemetry: Mapped[Json | None]
    current_job: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    draining: Mapped[Draining | None] = mapped_column(String(16))  # takes no jobs; survives a new start
    started_at: Mapped[datetime] = mapped_column(default=db_now())
    heartbeat_at: Mapped[datetime] = mapped_column(default=db_now())
    stopped_at: Mapped[datetime | None]


class LogChunk(Base):
    __tablename__ = "log_chunks"

    job_id: Mapped[str] = _job_id()
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    offset: Mapped[int] = mapped_column(BigInteger)  # bytes of UTF-8 of this job's log before this chunk
    bytes: Mapped[int]
    text: Mapped[str]
    at: Mapped[datetime] = mapped_column(default=db_now())


class Lease(Base):
    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    token: Mapped[str] = mapped_column(String(32))
    expires_at: Mapped[datetime]


class ApiKey(Base):
    """Who may ask. Revoked, never deleted: what a key has made goes on naming it."""

    __tablename__ = "api_keys"
    __table_args__ = (CheckConstraint("scope IN ('read', 'write', 'admin')", name="scope"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(120))
    scope: Mapped[KeyScope] = mapped_column(String(8))
    hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=db_now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the minute
    rate_per_minute: Mapped[int | None]  # these three: null = as the settings say, 0 = no limit
    max_jobs: Mapped[int | None]
    max_gpus: Mapped[int | None]


class AuditEntry(Base):
    """What somebody wrote, or tried to: who, when, where, with what outcome. Never what they sent."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "at", "id"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    at: Mapped[datetime] = mapped_column(default=db_now())
    key_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    peer: Mapped[str | None] = mapped_column(String(64))
    method: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(String(200))
    target: Mapped[str | None] = mapped_column(String(64))  # what was made, e.g. jobs/0123456789ab
    status: Mapped[int]
    code: Mapped[str | None] = mapped_column(String(64))  # of the problem
    request_id: Mapped[str] = mapped_column(String(64))  # of the first, where `count` is more than 1
    count: Mapped[int] = mapped_column(default=1)  # refusals that are alike, within a minute
