"""Recipes over HTTP: listed in full, and filled into the jobs that name one."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tid_core.recipes import RECIPES
from tid_core.spec import JobSpec

Spec = Callable[..., dict[str, Any]]


def test_recipes_are_listed_with_all_that_they_fill_in(client: TestClient) -> None:
    listed = {recipe["name"]: recipe for recipe in client.get("/recipes").json()["data"]}
    assert list(listed) == list(RECIPES)
    settings = listed["coco_1x"]["settings"]
    assert settings["training"]["lr_scaling"] == {"lr": 0.01, "images": 16, "rule": "linear"}
    # What is listed can be sent as it is.
    job = {**settings, "student": {**settings["student"], "detector": "gfl_resnet50_fpn"}, "dataset": "pets"}
    named = {"recipe": "coco_1x", "student": {"detector": "gfl_resnet50_fpn"}, "dataset": "pets"}
    assert JobSpec.model_validate(job) == JobSpec.model_validate(named)


@pytest.mark.usefixtures("pets")
def test_a_job_is_stored_with_its_recipe_resolved_and_so_is_its_twin(client: TestClient, spec: Spec) -> None:
    teacher = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}
    student = {"detector": "fcos_resnet18_fpn"}
    body = spec(recipe="coco_2x_multiscale", teacher=teacher, student=student, training={"batch_size": 8})
    job = client.post("/jobs", json=body).json()
    twin = client.get(f"/jobs/{job['baseline_job_id']}").json()
    for stored in (job["spec"], twin["spec"]):
        assert (stored["recipe"], stored["training"]["epochs"], stored["training"]["lr"]) == (
            "coco_2x_multiscale",
            24,
            0.005,
        )
        assert stored["student"]["weights"] == "imagenet"
    # A resolved spec can be handed in again.
    checked = client.post("/jobs?dry_run=true", json=job["spec"]).json()
    assert (checked["ok"], checked["spec"]) == (True, job["spec"])


def test_an_unknown_recipe_is_refused_by_its_field(client: TestClient, spec: Spec) -> None:
    refused = client.post("/jobs", json=spec(recipe="coco_x1"))
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert (error["code"], error["field"]) == ("recipe_unknown", "/recipe")
    assert "coco_1x" in error["detail"]
