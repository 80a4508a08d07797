"""What the models of a job are made of: their base, and the kinds of numbers in them. Free of torch."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tid_core.text import plain_text

Text = Annotated[str, AfterValidator(plain_text)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Steps = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
