"""Recipes: named schedules that fill in what a job leaves out. Free of torch.

A recipe is data: values of the spec's own fields, by section. What the job itself gives wins, field by field; the
resolved spec then holds everything, and the recipe's name for the record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from tid_core.catalogue import DETECTORS, close_names

Values = dict[str, Any]

SGD_LR = {"lr": 0.01, "images": 16, "rule": "linear"}
"""Goyal et al., arXiv 1706.02677: twice the batch, twice the learning rate."""
ADAMW_LR = {"lr": 0.0001, "images": 16, "rule": "sqrt"}
"""Malladi et al., arXiv 2205.10287: an adaptive step grows with the root of the batch."""
MULTI_SCALE = [640, 672, 704, 736, 768, 800]
"""Short sides in steps of the coarsest trunk stride. The last one is the validation's."""


@dataclass(frozen=True)
class Recipe:
    name: str
    title: str
    data: Values
    training: Values
    evaluation: Values = field(default_factory=dict)
    lr: dict[str, Values] = field(default_factory=lambda: {"sgd": SGD_LR, "adamw": ADAMW_LR})
    """`training.lr_scaling` for each optimiser."""
    detector: str | None = None
    """The student's, where the job names none."""
    pretrained: bool = True
    """Whether the student's backbone starts from ImageNet weights, its statistics frozen, or, where there are none or
    the job wants none, from scratch with group normalisation."""

    def student(self, given: Values) -> Values:
        """What this recipe says of a student that is described by `given`."""
        values: Values = {} if self.detector is None else {"detector": self.detector}
        if not self.pretrained:
            return values
        info = DETECTORS.get(str(given.get("detector", self.detector)))
        weights = given.get("weights", "imagenet" if info is not None and info.has_imagenet else None)
        norms = {"imagenet": "frozen", None: "group"}
        norm = norms.get(weights, "auto") if weights is None or isinstance(weights, str) else "auto"
        return {**values, "weights": weights, "norm": norm}


def _multistep(epochs: int, *drops: int) -> Values:
    return {
        "epochs": epochs,
        "batch_size": 16,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "multistep",
        "milestones": [drop / epochs for drop in drops],
        "gamma": 0.1,
        "warmup_steps": 500,
        "warmup_factor": 0.001,
    }


_COCO_DATA: Values = {"min_size": [800], "max_size": 1333, "flip": 0.5, "workers": 4}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "coco_1x",
            "COCO, 12 epochs at a short side of 800: the usual schedule of papers, and of TID's students.",
            data=_COCO_DATA,
            training=_multistep(12, 8, 11),
        ),
        Recipe(
            "coco_2x_multiscale",
            "COCO, 24 epochs, short side drawn from 640 to 800, 800 in validation: for teachers.",
            data={**_COCO_DATA, "min_size": MULTI_SCALE},
            training=_multistep(24, 16, 22),
        ),
        Recipe(
            "voc_1x",
            "PASCAL VOC 07+12, 12 epochs at a short side of 600, one drop at 9, as mmdetection's VOC schedule.",
            data={"min_size": [600], "max_size": 1000, "flip": 0.5, "workers": 4},
            training=_multistep(12, 9),
            evaluation={"metrics": ["coco", "voc"]},
        ),
        Recipe(
            "small_data",
            "A few hundred pictures of your own: a pretrained backbone, AdamW, strong augmentation, many epochs.",
            data={
                "min_size": [480, 512, 544, 576, 608, 640],
                "max_size": 1067,
                "flip": 0.5,
                "photometric": 0.5,
                "scale_jitter": [0.6, 1.6],
                "workers": 2,
            },
            training={
                "epochs": 80,
                "batch_size": 8,
                "optimizer": "adamw",
                "weight_decay": 0.01,
                "schedule": "cosine",
                "warmup_steps": 100,
                "clip_grad_norm": 10.0,
            },
            evaluation={"every_epochs": 4},
            lr={"sgd": {**SGD_LR, "lr": 0.005}, "adamw": {**ADAMW_LR, "lr": 0.0004}},
        ),
        Recipe(
            "cpu_smoke",
            "Does it run? A tiny student from scratch at 96 pixels: about a minute for 300 pictures on two cores.",
            data={"min_size": [96], "max_size": 128, "flip": 0.5},
            training={
                "epochs": 3,
                "batch_size": 8,
                "optimizer": "adamw",
                "weight_decay": 0.01,
                "schedule": "cosine",
                "warmup_steps": 10,
                "clip_grad_norm": 10.0,
                "device": "cpu",
            },
            evaluation={"every_epochs": 3, "maps": 1},
            lr={"sgd": SGD_LR, "adamw": {"lr": 0.002, "images": 8, "rule": "sqrt"}},
            detector="fcos_conv5_tiny",
            pretrained=False,
        ),
    )
}


def known_recipe(name: str) -> str:
    """
    Raises:
        PydanticCustomError: there is no such recipe; the message names those that are close, or all.
    """
    if name not in RECIPES:
        names = ", ".join(close_names(name, list(RECIPES)) or RECIPES)
        context = {"name": repr(name), "names": names}
        raise PydanticCustomError("recipe_unknown", "there is no recipe {name}; did you mean {names}?", context)
    return name


def fill_in(job: Mapping[str, Any]) -> dict[str, Any]:
    """`job` with what its recipe says where it says nothing itself.

    A section that is neither a mapping nor a model stays as it is, for the validation to refuse. The learning rate is
    the recipe's only where the job gives neither `lr` nor `lr_scaling`.
    """
    recipe = RECIPES[job["recipe"]]
    filled = dict(job)
    for section in ("student", "data", "training", "evaluation"):
        given = _as_values(job.get(section, {}))
        if given is None:
            continue
        values = recipe.student(given) if section == "student" else getattr(recipe, section)
        filled[section] = {**values, **given}
        if section == "training" and not given.keys() & {"lr", "lr_scaling"}:
            scaling = recipe.lr.get(str(filled[section].get("optimizer")))
            filled[section] |= {"lr_scaling": scaling} if scaling else {}
    return filled


def _as_values(section: Any) -> Values | None:
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return dict(section) if isinstance(section, Mapping) else None
