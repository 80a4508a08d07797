"""Runs that cannot go on: a reason, and nothing lost."""

import json
import shutil

import pytest

from tid_core.plan import SplitPaths
from tid_core.training.resume import find_state


def test_a_loss_that_explodes_names_term_and_step(make_plan, run):
    plan = make_plan(plain=True, training={"lr": 1e30, "warmup_steps": 0, "schedule": "constant"})
    done = run(plan)
    assert done.finished.reason == "non_finite_loss"
    assert done.finished.detail.startswith(("loss/", "grad/norm"))
    assert " at step " in done.finished.detail
    assert find_state(plan.out_dir / "resume").state is None  # a broken student is not saved


def test_a_distillation_without_effect_stops_the_run(make_plan, run):
    done = run(make_plan(loss={"high": 0.0, "medium": 0.0, "low": 0.0}))
    assert done.finished.reason == "distillation_inactive"
    assert "distill/high, distill/medium, distill/low" in done.finished.detail
    assert done.of("resume_state")[-1].step == 6  # ten steps are watched; the first epoch has six


def test_a_class_that_the_teacher_lacks_is_named(make_plan, run):
    plan = make_plan()
    letters = ["a", "b", *"23456789"]
    done = run(plan.model_copy(update={"teacher": plan.teacher.model_copy(update={"classes": letters})}))
    assert done.finished.reason == "classes_missing"
    assert "0, 1" in done.finished.detail


def test_a_teacher_file_that_is_none_is_named(make_plan, run, tmp_path):
    fake = tmp_path / "teacher.safetensors"
    fake.write_bytes(b"not weights")
    plan = make_plan()
    done = run(plan.model_copy(update={"teacher": plan.teacher.model_copy(update={"file": fake, "classes": None})}))
    assert done.finished.reason == "checkpoint_invalid"
    assert str(fake) in done.finished.detail


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(make_plan, run, dataset, tmp_path, workers):
    copy = tmp_path / "digits"
    shutil.copytree(dataset, copy)
    victim = sorted((copy / "train").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:100])
    train = SplitPaths(images=copy / "train", annotations=copy / "train.json")
    done = run(make_plan(plain=True, data={"workers": workers}).model_copy(update={"train": train}))
    assert done.finished.reason == "dataset_invalid"
    assert victim.name in done.finished.detail


def test_annotations_that_are_not_coco_are_named(make_plan, run, tmp_path, dataset):
    wrong = tmp_path / "train.json"
    wrong.write_text(json.dumps({"pictures": []}))
    train = SplitPaths(images=dataset / "train", annotations=wrong)
    done = run(make_plan(plain=True).model_copy(update={"train": train}))
    assert done.finished.reason == "dataset_invalid"
    assert str(wrong) in done.finished.detail


def test_images_too_large_for_the_memory_say_what_to_lower(make_plan, run):
    done = run(make_plan(plain=True, data={"min_size": [1_000_000], "max_size": 1_000_000}))
    assert done.finished.reason == "out_of_memory"
    assert "data.min_size (now 1000000)" in done.finished.detail


def test_a_state_of_another_job_is_refused_and_kept(make_plan, run):
    assert run(make_plan(plain=True, training={"epochs": 1})).finished.outcome == "succeeded"
    other = make_plan(plain=True, training={"epochs": 1, "lr": 0.5})
    done = run(other)
    assert done.finished.reason == "checkpoint_invalid"
    assert "training.lr was 0.01, is 0.5" in done.finished.detail
    assert find_state(other.out_dir / "resume").state.step == 6
    # What does not touch the weights may change.
    allowed = make_plan(plain=True, training={"epochs": 1, "log_every_steps": 1}, evaluation={"batch_size": 3})
    assert run(allowed).finished.outcome == "succeeded"
