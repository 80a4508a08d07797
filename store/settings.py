"""Every setting of the service, read from `TID_*` variables. The one place where they are declared and explained."""

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from store.places import S3Place, checked_endpoint, parse_place
from store.secret_files import SecretFiles, UnreadableSecret

PREFIX = "TID_"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1024)]
Kind = TypeVar("Kind", bound="Settings")
_BROKERS = ("redis", "rediss", "redis+socket", "sentinel")
_SECRETIVE = ("url", "endpoint", "key", "key_id", "artifacts")


class SettingsError(ValueError):
    """A `TID_*` variable that cannot be used; the text names it and says what would be right."""


class Settings(BaseSettings):
    """Values come from keyword arguments, else the environment (`TID_HOME`, `TID_DATABASE_URL`, ...), else files.

    Raises:
        pydantic.ValidationError: a value is out of range; `get_settings` turns it into a `SettingsError`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, validate_default=True, env_ignore_empty=True)

    home: Path = Field(Path("~/.tid"), description="Folder of everything the service keeps on this machine.")
    secrets_dir: Path | None = Field(
        None,
        description="Folder of files that hold settings, named in small letters: tid_database_url, tid_broker_url, "
        "tid_s3_secret_access_key. A variable of that name wins. Empty = none.",
    )
    database_url: str = Field(
        "", description="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; empty = tid.db under home.", repr=False
    )
    broker_url: str = Field(
        "redis://127.0.0.1:6379/0", description="Redis or Valkey, for the doorbell alone.", repr=False
    )
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description=f"Folders that data and weights may lie in, separated by {os.pathsep!r}; empty = data under home.",
    )
    artifacts: Annotated[Path | S3Place, NoDecode] = Field(
        Path(),
        description="Folder of checkpoints, maps and resume states, or s3://BUCKET/PREFIX; empty = artifacts under "
        "home.",
    )
    uploads: Path = Field(
        Path(),
        description="Folder of uploaded datasets, which the API writes and the workers read; for this service alone. "
        "Empty = uploads under home.",
    )
    s3_endpoint: str = Field(
        "",
        description="URL of the S3 server, https://HOST or http://HOST:PORT; empty = AWS_ENDPOINT_URL, or AWS itself.",
    )
    s3_region: str = Field("", description="Region of the bucket; empty = AWS_REGION, or us-east-1.")
    s3_access_key_id: str = Field(
        "", description="Key for S3; empty = what AWS_* variables or the role of the machine say.", repr=False
    )
    s3_secret_access_key: SecretStr = Field(SecretStr(""), description="Secret of that key.")
    s3_checksums: bool = Field(
        True, description="Have S3 check a sha256 of what it is sent; false for a server that refuses it."
    )
    s3_redirect: bool = Field(
        False, description="Downloads are redirected to S3 by a presigned URL instead of going through the API."
    )
    s3_public_endpoint: str = Field(
        "", description="URL by which clients reach the S3 server, for TID_S3_REDIRECT; empty = TID_S3_ENDPOINT."
    )
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 = any free one.")

    lease_seconds: Seconds = Field(20.0, description="A worker silent for this long has lost its job.")
    heartbeat_seconds: Seconds = Field(5.0, description="How often a worker renews its lease and its own row.")
    reaper_seconds: Seconds = Field(2.0, description="How often lost jobs and unanswered doorbells are looked for.")
    ring_seconds: Seconds = Field(30.0, description="A job that still waits after this long is announced again.")
    cancel_grace_seconds: Seconds = Field(
        30.0, description="Time a cancelled training has to end after SIGTERM, before SIGKILL."
    )
    terminate_grace_seconds: Seconds = Field(
        120.0, description="Time a training has to save its state when its worker shuts down, before SIGKILL."
    )

    max_body_bytes: Bytes = Field(1 << 20, description="Largest request body that is read.")
    upload_bytes: Bytes = Field(50 << 30, description="Largest archive of a dataset that may be uploaded.")
    unpacked_bytes: Bytes = Field(200 << 30, description="Largest content of such an archive.")
    log_bytes: Bytes = Field(16 << 20, description="Newest bytes of log that are kept per job.")

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names in the Host header that the API answers to beside those of loopback, separated by commas. "
        "Empty = any once there are API keys, none before.",
    )
    rate_per_minute: int = Field(
        1200, ge=0, description="Requests a minute of each API key that has no rate of its own; 0 = no limit."
    )
    failed_per_minute: int = Field(
        30, ge=1, description="Requests without a good key that one address may make a minute; then it is told 429."
    )
    max_jobs: int = Field(0, ge=0, description="Jobs that have not ended, of each API key; 0 = no limit.")
    max_gpus: int = Field(0, ge=0, description="GPUs that such jobs of a key may ask for together; 0 = no limit.")
    audit_days: float = Field(365.0, ge=0, description="How long the audit log is kept; 0 = for ever.")

    start_seconds: float = Field(
        30.0, ge=0, description="How long the API and `tid migrate` wait at their start for a PostgreSQL that is away."
    )
    log_format: Literal["text", "json"] = Field("text", description="Lines of the API and the workers: text or json.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is logged."
    )
    ready_free_bytes: int = Field(
        1 << 30, ge=0, description="GET /readyz reports the folder of artifacts or uploads with less room than this."
    )
    gc_every_hours: float = Field(
        0.0, ge=0, description="How often the API collects garbage as `tid gc` does; 0 = only `tid gc` does."
    )
    gc_grace_hours: float = Field(
        24.0, ge=1, description="`tid gc` touches no file that was changed less than this long ago."
    )
    gc_resume_days: float = Field(
        14.0, ge=0, description="Resume states of failed and cancelled jobs go this long after the end of the job."
    )
    gc_metrics_days: float = Field(
        14.0, ge=0, description="Superseded points of curves go this long after the end of the job."
    )
    gc_worker_days: float = Field(7.0, ge=0.1, description="Rows of workers go after so long a silence.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (of a folder that is fixed in the code)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        folder = os.environ.get("TID_SECRETS_DIR")
        files = (SecretFiles(settings_cls, Path(folder)),) if folder else ()
        return init_settings, env_settings, dotenv_settings, *files

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(name.strip().lower() for name in value.split(",") if name.strip())

    @field_validator("artifacts", mode="before")
    @classmethod
    def _folder_or_bucket(cls, value: Any) -> Any:
        return parse_place(value) if isinstance(value, str) else value

    @field_validator("home", "artifacts", "uploads", mode="after")
    @classmethod
    def _absolute(cls, place: Path | S3Place) -> Path | S3Place:
        return place if isinstance(place, S3Place) else _real(place)

    @field_validator("s3_endpoint", "s3_public_endpoint", mode="after")
    @classmethod
    def _known_endpoint(cls, url: str) -> str:
        return checked_endpoint(url) if url else url

    @field_validator("data_roots", mode="after")
    @classmethod
    def _all_absolute(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(_real(path) for path in paths)

    @field_validator("database_url", mode="after")
    @classmethod
    def _known_database(cls, url: str) -> str:
        return normal_url(url) if url else url

    @field_validator("broker_url", mode="after")
    @classmethod
    def _known_broker(cls, url: str) -> str:
        if url.partition("://")[0] not in _BROKERS:
            raise ValueError(
                "write redis://:PASSWORD@HOST:PORT/0, rediss:// for TLS, or redis+socket:///FILE for a unix socket"
            )
        return url

    @model_validator(mode="before")
    @classmethod
    def _under_home(cls, data: Any) -> Any:
        """Fill what was left empty with a place under `home`."""
        try:
            home = _real(Path(data.get("home") or cls.model_fields["home"].default))
        except ValueError:  # told by the field itself
            return data
        places = {
            "artifacts": home / "artifacts",
            "uploads": home / "uploads",
            "data_roots": (home / "data",),
            "database_url": f"sqlite:///{home}/tid.db",
        }
        return {**data, **{name: place for name, place in places.items() if not data.get(name)}}

    @model_validator(mode="after")
    def _key_and_secret(self) -> Self:
        names = ("TID_S3_ACCESS_KEY_ID", "TID_S3_SECRET_ACCESS_KEY")
        given = (bool(self.s3_access_key_id), bool(self.s3_secret_access_key.get_secret_value()))
        if given[0] != given[1]:
            there, missing = names if given[0] else reversed(names)
            raise ValueError(f"{there} is set and {missing} is not; set both, or none to use what AWS_* or a role say")
        return self

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> Self:
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"TID_LEASE_SECONDS ({self.lease_seconds:g}) must be at least twice TID_HEARTBEAT_SECONDS "
                f"({self.heartbeat_seconds:g}), or one late heartbeat loses a job"
            )
        return self


def _real(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # ~name
        raise ValueError(f"{path.parts[0]} is nobody's home here; write the folder's whole path") from None


def normal_url(url: str) -> str:
    """The URL with the driver in use: `postgresql://` and `postgres://` become `postgresql+psycopg://`.

    Raises:
        ValueError: not a database URL, or neither SQLite nor PostgreSQL.
    """
    if url.startswith("postgres://"):
        url = url.replace("postgres://", "postgresql://", 1)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("not a database URL; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME") from error
    drivers = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
    backend = parsed.get_backend_name()
    if backend not in drivers:
        raise ValueError(f"{backend!r} is not a database this service knows; it knows sqlite and postgresql")
    return parsed.set(drivername=drivers[backend]).render_as_string(hide_password=False)


def load_settings() -> Settings:
    """Read the environment now.

    Raises:
        SettingsError: as in `load_as`.
    """
    return load_as(Settings)


def load_as(kind: type[Kind]) -> Kind:
    """Read the settings of one kind of process from the environment.

    Raises:
        SettingsError: names each variable that cannot be used, and never tells a password.
    """
    try:
        return kind()
    except ValidationError as error:
        raise SettingsError("; ".join(_complaint(entry) for entry in error.errors())) from None
    except UnreadableSecret as error:
        raise SettingsError(str(error)) from None


def _complaint(entry: Any) -> str:
    message = entry["msg"].removeprefix("Value error, ")
    if not entry["loc"]:
        return str(message)
    name = str(entry["loc"][0])
    # What may hold a password is never repeated.
    got = "" if name.endswith(_SECRETIVE) else f", got {entry['input']!r}"
    return f"{PREFIX}{name.upper()}: {message}{got}"


@cache
def get_settings() -> Settings:
    """The settings of this process, read once. `get_settings.cache_clear()` reads them again."""
    return load_settings()
