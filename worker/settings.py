"""What one worker process is told besides the settings of the service."""

import re
import socket
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from store.ids import new_id
from store.settings import Bytes, Settings


class WorkerSettings(Settings):
    """The `TID_*` variables that only workers read, beside those of `Settings`."""

    threads: int = Field(0, ge=0, description="CPU threads of a training that names no number; 0 = all cores.")
    queues: Annotated[str, NoDecode] = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9_-]*(,[a-z0-9][a-z0-9_-]*)*$",
        description="Queues this worker takes jobs from, separated by commas.",
    )
    worker_id: str = Field(
        default_factory=lambda: f"{socket.gethostname()[:100]}-{new_id()}",
        max_length=120,
        description="Name of this worker, unlike any other's. Empty = host name and a random part.",
    )
    cache_bytes: Bytes = Field(
        200 << 30,
        description="Room for copies of uploaded datasets, which the workers of a machine keep under TID_HOME where "
        "artifacts are in S3. The longest unused ones go first, none in use.",
    )
    deaf_seconds: float = Field(
        60.0, gt=0, description="An idle worker that lets messages lie for this long ends, to be started again."
    )
    offline_seconds: float = Field(
        600.0, gt=0, description="How long a training goes on while its worker cannot reach the database."
    )
    storage_seconds: float = Field(
        60.0, gt=0, description="How long a file is offered to an artifact store that cannot take it."
    )
    full_seconds: float = Field(
        86_400.0, gt=0, description="How long a file waits for room in an artifact store that is full."
    )


class CrewSettings(WorkerSettings):
    """What `python -m worker.crew` reads beside the settings of its workers."""

    gpus: str = Field(
        "all",
        description="GPUs that get a worker each, by number or identifier, separated by commas; those of one worker, "
        "for jobs with `resources.gpus` > 1, are joined by +. all = every visible one, or the CPU where there is none.",
    )

    @field_validator("gpus", mode="after")
    @classmethod
    def _names(cls, value: str) -> str:
        value = "".join(value.split())
        if not re.fullmatch(r"[\w/-]+([,+][\w/-]+)*", value) or ("all" in re.split(r"[,+]", value) and value != "all"):
            raise ValueError("write `all`, or numbers or identifiers of GPUs, such as 0,1 or, for one worker, 0+1")
        return value
