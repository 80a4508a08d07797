"""A checkpoint that cannot be imported, and how the keys in the way are told."""

from collections.abc import Sequence

NAMED = 6
"""Keys named in a message before the rest is counted."""


class ImportRefused(ValueError):
    """What is wrong with the file or the options, and what would be right.

    Attributes:
        code: a stable word such as `unknown_keys`.
        detail: a sentence for the user.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def some(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + rest
