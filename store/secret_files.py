"""Settings out of files: `FOLDER/tid_database_url` for TID_DATABASE_URL, as Docker and Kubernetes mount secrets."""

import os
from collections.abc import Mapping
from errno import EISDIR
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Final

import pydantic_settings
from pydantic_settings import BaseSettings, SecretsSettingsSource

_CREDENTIALS: Final = ("TID_", "PGPASS", "AWS_", "OTEL_")
"""What the service's own variables begin with, and those in which other libraries are told passwords and keys."""


def without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for processes that work with what users sent."""
    return {name: value for name, value in environment.items() if not name.startswith(_CREDENTIALS)}


class UnreadableSecret(ValueError):
    """TID_SECRETS_DIR, or a file in it, cannot be read. The text never tells what is in a file."""


class SecretFiles(SecretsSettingsSource):
    """What the files of one folder say. An empty file says nothing, as an empty variable does."""

    def __init__(self, settings: type[BaseSettings], folder: Path) -> None:
        self._names = {f"{settings.model_config['env_prefix']}{name}".lower() for name in settings.model_fields}
        super().__init__(settings, secrets_dir=folder)

    def __call__(self) -> dict[str, Any]:
        try:
            self._look()
            found = super().__call__()
        except pydantic_settings.SettingsError as error:
            raise UnreadableSecret(f"TID_SECRETS_DIR: {_reason(error.__cause__)}") from None
        except OSError as error:
            raise UnreadableSecret(f"TID_SECRETS_DIR: {_reason(error)}") from None
        return {name: value for name, value in found.items() if value != ""}

    def _look(self) -> None:
        """Docker makes an empty folder where a file that it should mount is missing."""
        for path in Path(str(self.secrets_dir)).iterdir():
            if path.name.lower() in self._names and S_ISDIR(path.stat().st_mode):
                raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))


def _reason(cause: BaseException | None) -> str:
    if isinstance(cause, OSError):
        return f"{cause.filename} cannot be read: {cause.strerror}"
    if isinstance(cause, UnicodeDecodeError):
        return "a file in it is not text"
    return str(cause)
