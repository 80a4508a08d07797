"""What preflight finds, and what it is told of a teacher."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NAMED = 10
"""Names listed in a message before the rest is counted."""


class Problem(BaseModel):
    model_config = ConfigDict(frozen=True)

    code: str
    field: str = Field(description="JSON pointer into the spec.")
    detail: str = Field(description="What is wrong.")
    expected: str = Field(description="What would be right.")
    severity: Literal["error", "warning"] = "error"


class TeacherFacts(BaseModel):
    """What is known of a teacher beyond the spec: that of a finished job, or of a file."""

    model_config = ConfigDict(frozen=True)

    detector: str
    classes: list[str] | None = Field(None, description="Names of its outputs; null = the dataset's own classes.")
    ap: float | None = Field(None, description="Its AP on this job's validation split (0..1), where it is known.")
    student_ap: float | None = Field(None, description="AP of the same student without distillation, where known.")


def some(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
