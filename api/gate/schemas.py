"""What the API says of keys and of the audit log."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.schemas import Out
from tid_core.fields import whole

KeyScope = Literal["read", "write", "admin"]
_Limit = Annotated[int, Field(strict=True, ge=0, le=1_000_000), BeforeValidator(whole)]


class KeyIn(BaseModel):
    """A key to be made. Limits that are null are those of the settings; 0 = no limit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$", description="Whose it is.")
    scope: KeyScope = Field(description="`admin` includes `write`, which includes `read`.")
    expires_days: float | None = Field(
        None, gt=0, le=36_500, allow_inf_nan=False, description="Days that it is good for; null = until it is revoked."
    )
    rate_per_minute: _Limit | None = Field(None, description="Requests a minute.")
    max_jobs: _Limit | None = Field(None, description="Jobs that have not ended.")
    max_gpus: _Limit | None = Field(None, description="GPUs that such jobs may ask for together.")

    @property
    def valid_for(self) -> timedelta | None:
        return timedelta(days=self.expires_days) if self.expires_days is not None else None


class Key(Out):
    """A key, without the key itself: only its hash is kept."""

    id: str = Field(description="Part of the key: tid_<id>_<secret>.")
    name: str
    scope: KeyScope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    rate_per_minute: int | None = Field(description="Null = as the settings say, 0 = no limit; so are the next two.")
    max_jobs: int | None
    max_gpus: int | None


class NewKey(Key):
    key: str = Field(description="The key itself, which is never shown again.")


class AuditEntry(Out):
    """What was written, or refused."""

    id: str
    at: datetime
    key_id: str | None = Field(description="Null where there were no keys, or none was recognised.")
    peer: str | None = Field(description="Address at the other end of the connection; that of the proxy behind one.")
    method: str
    path: str
    target: str | None = Field(description="What was made, e.g. `jobs/0123456789ab`.")
    status: int
    code: str | None = Field(description="Of the problem, where it was refused.")
    request_id: str = Field(description="Of the first request, where `count` is more than 1.")
    count: int = Field(description="Refusals within a minute that are alike share an entry.")
