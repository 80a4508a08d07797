"""Text from outside, made fit to store."""

from typing import Any


def storable(text: str) -> str:
    """The text without what a database refuses: NUL (PostgreSQL) and lone surrogates (both)."""
    return text.replace("\0", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")


def storable_json(value: Any) -> Any:
    """The same for every text in a JSON value."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable_json(key): storable_json(one) for key, one in value.items()}
    return [storable_json(one) for one in value] if isinstance(value, list) else value
