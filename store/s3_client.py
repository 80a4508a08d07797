"""A client of one bucket and prefix, as the settings say; AWS's own variables and roles where they say nothing."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from obstore.store import S3Store

from store.places import S3Place
from store.settings import Settings

if TYPE_CHECKING:  # the library has them for checkers alone
    from obstore.store import RetryConfig, S3Config, S3Credential

_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 60
"""For an answer to a part that is sent, and between two pieces of one that is read."""
_LONGEST: Final = timedelta(days=1)
_PATIENT: "Final[RetryConfig]" = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
_HASTY: "Final[RetryConfig]" = {"max_retries": 1, "retry_timeout": timedelta(seconds=_CONNECT_SECONDS)}


def endpoint_of(settings: Settings) -> str:
    """The URL of the server; empty = AWS."""
    return settings.s3_endpoint or next(filter(None, map(os.environ.get, _ENDPOINTS)), "")


def connect(settings: Settings, place: S3Place, endpoint: str, *, patient: bool = True) -> S3Store:
    """Nothing is asked of the server yet.

    Args:
        patient: try again, and wait long; otherwise give up after a few seconds.
    """
    # AWS wants the bucket before the host, whose certificate is for names without dots; others need no such name.
    config: S3Config = {"virtual_hosted_style_request": not endpoint and "." not in place.bucket}
    if endpoint:
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint
    if settings.s3_region:
        config["region"] = settings.s3_region
    if settings.s3_checksums:
        config["checksum_algorithm"] = "SHA256"
    return S3Store(
        place.bucket,
        prefix=place.prefix or None,
        config=config,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=_READ_SECONDS if patient else _CONNECT_SECONDS),
            "timeout": _LONGEST,  # of a whole file: it takes as long as it takes
        },
        retry_config=_PATIENT if patient else _HASTY,
        credential_provider=_Key(settings) if settings.s3_access_key_id else None,
    )


class _Key:
    """Of the settings alone: a session token in AWS_SESSION_TOKEN belongs to another key."""

    def __init__(self, settings: Settings) -> None:
        self._credential: S3Credential = {
            "access_key_id": settings.s3_access_key_id,
            "secret_access_key": settings.s3_secret_access_key.get_secret_value(),
            "token": None,
            "expires_at": None,
        }

    def __call__(self) -> "S3Credential":
        return self._credential
