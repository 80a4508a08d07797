"""What a user asks for: a base job, and the values that each axis takes."""

import math
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tid_core.fields import Model, Text
from tid_core.text import CONTROLS

MAX_JOBS: Final = 500
"""Jobs of one sweep, its baselines among them."""
MAX_AXES: Final = 16
MAX_BYTES: Final = 32 << 20
"""Of all its specs together: they are stored in one transaction."""
SEED: Final = "training.seed"
"""The axis along which runs of one setting are repeated; all others make settings."""
_MAX_DEPTH: Final = 16


def plain_json(value: Any) -> Any:
    """
    Raises:
        PydanticCustomError: it holds what no database stores, or is nested without measure.
    """
    _look_through(value, "", _MAX_DEPTH)
    return value


def _look_through(value: Any, where: str, depth: int) -> None:
    if depth < 0:
        raise _refused(where, f"is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(where, "is not a finite number")
    if isinstance(value, str) and CONTROLS.search(value):
        raise _refused(where, "holds a control character")
    if isinstance(value, dict):
        for key, one in value.items():
            _look_through(key, where, depth)
            _look_through(one, f"{where}/{key[:40]}", depth - 1)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            _look_through(one, f"{where}/{index}", depth - 1)


def _refused(where: str, why: str) -> PydanticCustomError:
    context = {"what": f"what stands at {where[:200]}" if where else "it", "why": why}
    return PydanticCustomError("value_invalid", "{what} {why}", context)


Values = Annotated[list[Any], Field(min_length=1)]


class SweepSpec(Model):
    """A job for every combination of the axes' values, each beside the baseline of the same seed and recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="SweepSpec")

    name: Text = Field(min_length=1, max_length=60, description="For people; its jobs are named after it.")
    base: Annotated[dict[str, Any], AfterValidator(plain_json)] = Field(
        description="A job as POST /jobs takes it, as far as the axes do not say it. With `baseline: false` the sweep "
        "adds no baselines.",
    )
    axes: Annotated[dict[str, Values], AfterValidator(plain_json)] = Field(
        min_length=1,
        max_length=MAX_AXES,
        description="Field of a job, such as `method`, `training.seed` or `loss`, to the values it takes. A section's "
        f"mapping is merged into the base's. At most {MAX_JOBS} jobs, baselines included.",
    )
