"""What a point is called: short enough for a table, and telling it from the others."""

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from tid_core.sweep.spec import SEED

MAX_LABEL: Final = 100
_MAX_VALUE: Final = 48


def label_of(values: Mapping[str, Any], axes: Collection[str], *, otherwise: str) -> str:
    """`tid+pkd tasks=cls`: the values but for the seed; `otherwise` where there are none.

    Args:
        values: axis to value.
        axes: of the whole sweep; one is called by its last name where no other ends so.
    """
    words = [_method(values["method"])] if "method" in values else []
    words += [_word(path, value, axes) for path, value in values.items() if path not in ("method", SEED)]
    return shortened(" ".join(words), MAX_LABEL) or otherwise


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _method(value: Any) -> str:
    is_several = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return shortened("+".join(value) if is_several else _short(value), _MAX_VALUE)


def _word(path: str, value: Any, axes: Collection[str]) -> str:
    last = path.rpartition(".")[2]
    name = last if [other.rpartition(".")[2] for other in axes].count(last) == 1 else path
    if isinstance(value, dict):
        inner = ", ".join(f"{key}={_short(one)}" for key, one in value.items())
        return f"{name}({shortened(inner, _MAX_VALUE)})"
    return f"{name}={shortened(_short(value), _MAX_VALUE)}"


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
