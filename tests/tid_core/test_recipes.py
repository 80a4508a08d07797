"""Recipes fill in what a job leaves out, and nothing else; the resolved spec is the whole record."""

from typing import Any

import pytest
from pydantic import ValidationError

from tid_core.preflight import check
from tid_core.recipes import RECIPES
from tid_core.spec import DataSpec, JobSpec, TrainingSpec, preset

STUDENT = {"detector": "gfl_resnet50_fpn"}


def job(recipe: str | None, **changes: Any) -> JobSpec:
    return JobSpec.model_validate({"recipe": recipe, "student": STUDENT, "dataset": "coco", **changes})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_to_a_job_that_preflight_takes_and_that_stays_as_it_is(recipe: str) -> None:
    resolved = job(recipe, training={"batch_size": 4})
    assert check(resolved, dataset=None, teacher=None) == []
    again = JobSpec.model_validate(resolved.model_dump(mode="json"))
    assert again == resolved
    assert JobSpec.model_validate_json(resolved.model_dump_json()) == resolved
    assert set(preset(recipe)) == {"recipe", "student", "data", "training", "evaluation"}


def test_the_usual_schedule_of_papers() -> None:
    spec = job("coco_1x")
    assert (spec.data.min_size, spec.data.max_size, spec.data.flip) == ([800], 1333, 0.5)
    training = spec.training
    assert (training.epochs, training.batch_size, training.optimizer, training.lr) == (12, 16, "sgd", 0.01)
    assert (training.momentum, training.weight_decay, training.warmup_steps) == (0.9, 1e-4, 500)
    assert training.milestones == [8 / 12, 11 / 12]
    assert (spec.student.weights, spec.student.norm) == ("imagenet", "frozen")
    long = job("coco_2x_multiscale")
    assert (long.training.epochs, long.training.milestones) == (24, [16 / 24, 22 / 24])
    assert (min(long.data.min_size), max(long.data.min_size)) == (640, 800)


def test_validation_sees_the_last_short_side_and_training_every_one() -> None:
    """torchvision's transform takes the last size in eval mode, so the order of the recipe's sizes is part of it."""
    import torch

    from tid_core.detectors.build import build_detector

    data = job("coco_2x_multiscale").data.model_copy(update={"min_size": [64, 72, 80], "max_size": 133})
    assert job("coco_2x_multiscale").data.min_size[-1] == 800
    transform = build_detector("fcos_conv5_tiny", num_classes=2, data=data).model.transform
    image = torch.rand(3, 30, 40)
    torch.manual_seed(0)
    trained = {min(transform.train()([image])[0].image_sizes[0]) for _ in range(40)}
    validated = {min(transform.eval()([image])[0].image_sizes[0]) for _ in range(10)}
    assert (trained, validated) == ({64, 72, 80}, {80})


def test_what_the_job_says_wins_field_by_field() -> None:
    spec = job("coco_1x", training={"epochs": 6, "seed": 7}, data={"min_size": [600]}, evaluation={"maps": 0})
    assert (spec.training.epochs, spec.training.seed, spec.training.warmup_steps) == (6, 7, 500)
    assert (spec.data.min_size, spec.data.workers) == ([600], 4)
    assert spec.evaluation.maps == 0
    built = JobSpec(recipe="coco_1x", student=STUDENT, dataset="coco", data=DataSpec(min_size=[600]))
    assert (built.data.min_size, built.data.workers) == ([600], 4)


@pytest.mark.parametrize(
    ("recipe", "training", "lr"),
    [
        ("coco_1x", {"batch_size": 8}, 0.005),
        ("coco_1x", {"batch_size": 64}, 0.04),
        ("coco_1x", {"batch_size": 4, "optimizer": "adamw"}, 0.00005),
        ("small_data", {"batch_size": 16}, 0.0004),
        ("small_data", {"batch_size": 4}, 0.0002),
        ("coco_1x", {"batch_size": 8, "lr": 0.02}, 0.02),
        ("coco_1x", {"batch_size": 8, "lr_scaling": {"lr": 0.01, "images": 8}}, 0.01),
        ("coco_1x", {"batch_size": 8, "lr_scaling": None}, 0.01),
    ],
)
def test_the_learning_rate_follows_the_batch_unless_the_job_gives_one(
    recipe: str, training: dict[str, Any], lr: float
) -> None:
    spec = job(recipe, training=training)
    assert spec.training.lr == pytest.approx(lr, rel=1e-12)
    by_hand = "lr" in training or training.get("lr_scaling", {}) is None
    assert (spec.training.lr_scaling is None) == by_hand


def test_a_resolved_learning_rate_is_not_kept_for_another_batch() -> None:
    resolved = job("coco_1x", training={"batch_size": 8}).model_dump(mode="json")
    assert resolved["training"]["lr_scaling"] == {"lr": 0.01, "images": 16, "rule": "linear"}
    resolved["training"]["batch_size"] = 16
    with pytest.raises(ValidationError, match=r"training.lr \(0.005\) is not what .* for batches of 16 \(0.01\)"):
        JobSpec.model_validate(resolved)
    del resolved["training"]["lr"]
    assert JobSpec.model_validate(resolved).training.lr == 0.01


def test_without_a_recipe_nothing_is_filled_in() -> None:
    spec = job(None)
    assert (spec.recipe, spec.training.lr_scaling, spec.student.weights, spec.data) == (None, None, None, DataSpec())
    assert spec.training == TrainingSpec()


@pytest.mark.parametrize(
    ("student", "weights", "norm"),
    [
        ({"detector": "gfl_resnet50_fpn"}, "imagenet", "frozen"),
        ({"detector": "retinanet_resnet50_fpn_v2"}, "imagenet", "frozen"),
        ({"detector": "gfl_resnet50_fpn", "weights": None}, None, "group"),
        ({"detector": "fcos_conv10_small"}, None, "group"),
        ({"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}, "COCO_V1", "auto"),
        ({"detector": "gfl_resnet50_fpn", "norm": "batch"}, "imagenet", "batch"),
    ],
)
def test_a_backbone_is_frozen_where_it_is_pretrained_and_grouped_from_scratch(
    student: dict[str, Any], weights: str | None, norm: str
) -> None:
    spec = job("coco_1x", student=student)
    assert (spec.student.weights, spec.student.norm) == (weights, norm)
    assert check(spec, dataset=None, teacher=None) == []


def test_a_students_own_file_keeps_its_normalisation() -> None:
    spec = job("small_data", student={**STUDENT, "weights": {"file": "/w/a.pth"}})
    assert spec.student.norm == "auto"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("coco_1", "coco_1x"), ("voc", "voc_1x"), ("smoke", "cpu_smoke"), ("qqq", "coco_1x, coco_2x_multiscale, voc_1x")],
)
def test_an_unknown_recipe_is_told_with_the_close_ones(name: str, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        job(name)
    (error,) = caught.value.errors()
    assert (error["loc"], error["type"]) == (("recipe",), "recipe_unknown")
    assert f"there is no recipe '{name}'; did you mean" in error["msg"]
    assert expected in error["msg"]


@pytest.mark.parametrize("section", ["data", "training", "student"])
def test_a_section_that_is_none_is_refused_as_without_a_recipe(section: str) -> None:
    with pytest.raises(ValidationError) as caught:
        job("coco_1x", **{section: "much"})
    assert [error["loc"][0] for error in caught.value.errors()] == [section]


def test_a_bad_scaling_is_told_by_its_own_field() -> None:
    with pytest.raises(ValidationError) as caught:
        job(None, training={"lr_scaling": {"lr": -1, "images": 16}, "batch_size": "many"})
    assert {error["loc"] for error in caught.value.errors()} == {
        ("training", "lr_scaling", "lr"),
        ("training", "batch_size"),
    }


@pytest.mark.parametrize("batch_size", [float("inf"), float("nan"), 10**400, -4, 0, [], None])
def test_a_batch_that_is_none_is_told_by_its_own_field(batch_size: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        job("small_data", training={"batch_size": batch_size})
    assert {error["loc"] for error in caught.value.errors()} == {("training", "batch_size")}


def test_the_twin_follows_the_same_recipe() -> None:
    teacher = {"detector": "gfl_resnet101_fpn", "weights": {"file": "/w/teacher.pth"}}
    spec = job("voc_1x", teacher=teacher, training={"batch_size": 8})
    twin = spec.baseline_twin()
    same = ("recipe", "student", "data", "training", "evaluation")
    assert [getattr(twin, name) for name in same] == [getattr(spec, name) for name in same]
    assert (twin.recipe, twin.teacher, twin.method) == ("voc_1x", None, "none")


def test_a_smoke_test_needs_no_detector_named() -> None:
    spec = JobSpec.model_validate({"recipe": "cpu_smoke", "student": {}, "dataset": "digits"})
    assert (spec.student.detector, spec.student.weights) == ("fcos_conv5_tiny", None)
    assert JobSpec.model_validate({"recipe": "cpu_smoke", "dataset": "digits"}) == spec
