"""What the models of a job are made of: their base, and the kinds of numbers in them. Free of torch."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tid_core.text import plain_text


def whole(number: Any) -> Any:
    """JSON has one kind of number: 8.0 is an integer there."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


Text = Annotated[str, AfterValidator(plain_text)]
Whole = Annotated[int, BeforeValidator(whole), Field(strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Steps = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
