"""What one worker process is told besides the settings of the service."""

import re
import socket
from typing import Annotated, Final

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from store.ids import new_id
from store.settings import Bytes, Settings

LONGEST_ID: Final = 120


class WorkerSettings(Settings):
    """The `TID_*` variables that only workers read, beside those of `Settings`."""

    gpus: str = Field(
        "all",
        description="For `python -m worker.crew`: GPUs that get a worker each, by number or identifier, separated by "
        "commas; GPUs of one worker, for jobs with `resources.gpus` > 1, are joined by +. all = every visible one, or "
        "the CPU where there is none.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of a training that names no number; 0 = all cores.")
    queues: Annotated[str, NoDecode] = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9_-]*(,[a-z0-9][a-z0-9_-]*)*$",
        description="Queues this worker takes jobs from, separated by commas.",
    )
    worker_id: str = Field(
        default_factory=lambda: f"{socket.gethostname()[:100]}-{new_id()}",
        max_length=LONGEST_ID,
        description="Name of this worker, unlike any other's; in a crew, what the names begin with. Empty = host name "
        "and a random part; in a crew, host name and GPU.",
    )
    cache_bytes: Bytes = Field(
        100 << 30,
        description="Room for copies of uploaded datasets, which the workers of a machine keep under TID_HOME where "
        "artifacts are in S3. The longest unused ones go first, none in use.",
    )
    node_address: str = Field(
        "",
        max_length=253,
        description="Address under which workers of other hosts reach this one, for jobs with `resources.nodes` > 1; "
        "in a private network, since whoever reaches it can interfere. Empty = that of the route to the database, or "
        "127.0.0.1.",
    )
    node_ports: str = Field(
        "",
        description="Ports, such as 29500-29599, one of which such a job listens at on its first host; its processes "
        "use further ones of the system's choice. Empty = any free one.",
    )
    nodes_seconds: float = Field(
        120.0, gt=0, description="How long the first worker of such a job waits for the others."
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

    @field_validator("gpus", mode="after")
    @classmethod
    def _gpu_names(cls, value: str) -> str:
        value = re.sub(r"\s*([,+])\s*", r"\1", value.strip())
        if not re.fullmatch(r"[\w/-]+([,+][\w/-]+)*", value) or ("all" in re.split(r"[,+]", value) and value != "all"):
            raise ValueError("write `all`, or numbers or identifiers of GPUs, such as 0,1 or, for one worker, 0+1")
        return value

    @field_validator("node_ports", mode="after")
    @classmethod
    def _port_numbers(cls, value: str) -> str:
        found = re.fullmatch(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*", value)
        if value.strip() and not (found and 0 < int(found[1]) <= int(found[2]) < 1 << 16):
            raise ValueError("write the first and the last port, such as 29500-29599")
        return value.strip()

    @property
    def port_range(self) -> range | None:
        """Of `node_ports`; None = any."""
        first, _, last = self.node_ports.partition("-")
        return range(int(first), int(last) + 1) if first else None
