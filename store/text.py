"""Text from outside, made fit to store."""

import json
import math
from typing import Any


def storable(text: str) -> str:
    """The text without what a database refuses: NUL (PostgreSQL) and lone surrogates (both)."""
    return text.replace("\0", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")


def storable_json(value: Any) -> Any:
    """The same for every text in a JSON value, and null for numbers that JSON has not: NaN and the infinities."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {storable_json(key): storable_json(one) for key, one in value.items()}
    return [storable_json(one) for one in value] if isinstance(value, list | tuple) else value


def json_text(value: Any) -> str:
    """As every JSON column is written: PostgreSQL refuses what SQLite would keep, and could not give back as JSON."""
    return json.dumps(storable_json(value), allow_nan=False)
