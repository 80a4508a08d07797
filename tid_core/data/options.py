"""How a dataset's folder is to be read. Free of torch."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tid_core.fields import Whole
from tid_core.text import plain_text

OurSplit = Literal["train", "val", "test"]


def split_names(text: str) -> list[str]:
    """The dataset's own splits, of which one of ours is made."""
    return [name.strip() for name in text.split("+")]


def _own_splits(text: str) -> str:
    for name in split_names(plain_text(text)):
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError("must be names of splits, several joined by `+`, e.g. VOC2007/trainval+VOC2012/trainval")
    return text


OwnSplits = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_own_splits)]


class IndexOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["auto", "coco", "voc", "yolo"] = Field("auto", description="auto: told by the files in the folder.")
    splits: dict[OurSplit, OwnSplits] | None = Field(
        None,
        description="Our split to the dataset's own, several joined by `+`: "
        "{train: VOC2007/trainval+VOC2012/trainval, val: VOC2007/test}; null = found by the folder's layout.",
    )
    val_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Part of the `train` images that become `val`, by a hash of val_seed and file name: an image stays "
        "on its side when others are added.",
    )
    val_seed: Whole = Field(0, ge=0, le=2**32 - 1, description="Another seed draws another `val`.")

    @model_validator(mode="after")
    def _splits_fit(self) -> Self:
        if self.splits is None:
            return self
        if "train" not in self.splits:
            raise ValueError("splits must name `train`, e.g. {train: train, val: test}")
        if self.val_fraction is not None and "val" in self.splits:
            raise ValueError("val_fraction makes `val` out of `train`; leave `val` out of splits, or val_fraction away")
        return self


def read_options(text: str) -> IndexOptions:
    """Raises:
    ValueError: not JSON, or no options, told in a line.
    """
    try:
        return IndexOptions.model_validate_json(text)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in error.errors()]
        raise ValueError("; ".join(told)) from error
