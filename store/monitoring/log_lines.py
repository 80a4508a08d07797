"""Log lines of the API and the workers: text for people, JSON for collectors, with the ids of what they are about.

Code logs through the standard library. What a line is about (`job_id`, `attempt`, `request_id`, `key_id`) comes from
`about`, which everything that is done inside of it inherits, or from `extra=` of the one line.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import structlog
from structlog.contextvars import bound_contextvars
from structlog.stdlib import ProcessorFormatter

from store.settings import Settings

__all__ = ["about", "configure"]

about = bound_contextvars
"""`with about(job_id=..., attempt=...):` gives these ids to every line that is written inside of it."""
OURS: Final = ("api", "store", "worker", "uvicorn", "celery")
_IDS: Final = ("job_id", "attempt", "request_id", "key_id", "trace_id")
"""What a line of text ends with, where its message does not hold it; JSON has every field."""
_NOISE: Final = ("color_message", "data")
"""What uvicorn and Celery say again beside the message: escape codes, and the whole message of the queue."""
_PASSWORD: Final = re.compile(r"(\b\w+://[^\s:/@]*:)[^\s/@]+(?=@)")
_KEY: Final = re.compile(r"(\btid_[0-9a-f]{12}_)[0-9a-f]{16,}")
_BEARER: Final = re.compile(r"(?i)(\bbearer\s+)[^\s'\",]+")


def configure(settings: Settings, stream: TextIO = sys.stderr) -> None:
    """Write the lines of this process to `stream`, as TID_LOG_FORMAT and TID_LOG_LEVEL ask. Libraries only warn."""
    render = _as_json if settings.log_format == "json" else _as_text
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.contextvars.merge_contextvars, structlog.stdlib.ExtraAdder()],
            processors=[_head, ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)


def _head(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Time, level, logger and message first; traceback and secrets where they belong."""
    record: logging.LogRecord = fields["_record"]
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    line = {"time": when.replace("+00:00", "Z"), "level": record.levelname.lower(), "logger": record.name}
    line["message"] = without_secrets(str(fields.pop("event")))
    raised = fields.pop("exc_info", None)
    if raised and raised[0] is not None:
        line["exception"] = without_secrets(logging.Formatter().formatException(raised))
    kept = {name: value for name, value in fields.items() if name not in _NOISE}
    told = {name: without_secrets(value) if isinstance(value, str) else value for name, value in kept.items()}
    return {**line, **told}


def without_secrets(text: str) -> str:
    """The text with passwords of URLs, API keys and tokens of Authorization headers taken out."""
    for secret in (_PASSWORD, _KEY, _BEARER):
        text = secret.sub(r"\1***", text)
    return text


def _as_json(_logger: Any, _method: str, fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, default=str, ensure_ascii=False)


def _as_text(_logger: Any, _method: str, fields: Mapping[str, Any]) -> str:
    message = _printable(fields["message"])
    told = [f"{name}={fields[name]}" for name in _IDS if name in fields and str(fields[name]) not in message]
    when = fields["time"].replace("T", " ")
    line = " ".join([when, fields["level"].upper(), fields["logger"], message, *told])
    return f"{line}\n{fields['exception']}" if "exception" in fields else line


def _printable(message: str) -> str:
    """The message without what could forge a line or colour a terminal: what follows its first line is indented."""
    lines = ("".join(char if char.isprintable() else "?" for char in line) for line in message.splitlines())
    return "\n    ".join(lines)
