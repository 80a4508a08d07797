"""What a run tells beside its AP: kinds of errors, pictures of the areas, norms of gradients."""

import random
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from tid_core.error_breakdown import KINDS
from tid_core.events import Event
from tid_core.training.area_maps import AreaMaps, moment_name
from tid_core.training.files import sha256_of
from tid_core.training.precision import choose_precision
from tid_core.training.setup import build_parts

ONE_EPOCH = {"epochs": 1}
NAMES = {f"error/{kind}/{value}" for kind in KINDS for value in ("count", "dAP50")}


def errors_of(series: Mapping[str, Mapping[int, float]], prefix: str) -> dict[str, Mapping[int, float]]:
    found = {name.removeprefix(f"{prefix}/"): points for name, points in series.items() if name.startswith(prefix)}
    return {name: points for name, points in found.items() if name.startswith("error/")}


def map_names(events: list[Event]) -> list[str]:
    return [event.name for event in events if event.type == "artifact" and event.kind == "map"]


def test_errors_of_the_best_student_and_of_the_teacher_are_told_where_their_ap_is(make_plan, run):
    done = run(make_plan(evaluation={"score_threshold": 0.001}))
    best = [checkpoint for checkpoint in done.of("checkpoint") if checkpoint.name == "best"][-1]
    student, teacher = errors_of(done.series, "val"), errors_of(done.series, "teacher")
    assert student.keys() == teacher.keys() == NAMES
    assert {tuple(points) for points in student.values()} == {(best.step,)}
    assert {tuple(points) for points in teacher.values()} == {(0,)}
    assert all(0 <= value <= 1 for name in NAMES if "dAP50" in name for value in student[name].values())
    # Neither has learned anything: what they give is nearly all wrong, and boxes are left.
    assert sum(points[best.step] for name, points in student.items() if "count" in name) > 20


def test_the_twin_tells_its_own(make_plan, run):
    plan = make_plan(training=ONE_EPOCH)
    twin = run(plan.model_copy(update={"spec": plan.spec.baseline_twin(), "teacher": None}))
    assert errors_of(twin.series, "val").keys() == NAMES
    assert not errors_of(twin.series, "teacher")


def test_errors_are_neither_lost_nor_told_twice_over_attempts(make_plan, run):
    """Stopped at every question in turn: each attempt tells what the others have not, or the same at the same step."""
    options = {"training": ONE_EPOCH, "evaluation": {"batch_size": 4}}
    whole = run(make_plan(out="whole", **options))
    plan = make_plan(out="stopped", **options)
    told: dict[str, dict[int, float]] = {}
    attempts = 0
    for questions in range(20):
        attempt = run(plan, stop_after=questions)
        attempts += 1
        for name, points in attempt.series.items():
            told.setdefault(name, {}).update(points)
        if attempt.finished.outcome != "stopped":
            break
    assert attempt.finished.outcome == "succeeded"
    assert attempts > 3
    for prefix in ("val", "teacher"):
        assert errors_of(told, prefix) == errors_of(whole.series, prefix)
    again = run(plan)  # the row of its success was lost: it delivers once more
    assert errors_of(again.series, "val") == errors_of(whole.series, "val")
    assert not errors_of(again.series, "teacher")


def test_areas_are_drawn_at_the_epochs_asked_for_and_at_the_end(make_plan, run):
    plan = make_plan(evaluation={"maps": 1, "map_epochs": [2, 1, 2], "every_epochs": 2})
    done = run(plan)
    assert done.finished.outcome == "succeeded", done.finished
    assert map_names(done.events) == ["00000-epoch-001.png", "00000-epoch-002.png", "00000-best.png"]
    for event in done.of("artifact"):
        if event.kind == "map":
            width, height = Image.open(event.path).size
            assert width > height > 100
    first, second = ((plan.out_dir / f"maps/00000-epoch-00{epoch}.png").read_bytes() for epoch in (1, 2))
    assert first != second


@pytest.mark.parametrize("method", ["fitnet", ["tid", "fitnet"]])
def test_areas_are_drawn_whatever_the_method(make_plan, run, method):
    done = run(make_plan(method=method, training=ONE_EPOCH, evaluation={"maps": 1}))
    assert done.finished.outcome == "succeeded", done.finished
    assert map_names(done.events) == ["00000-best.png"]


def test_a_run_without_a_teacher_draws_none(make_plan, run):
    done = run(make_plan(plain=True, training=ONE_EPOCH, evaluation={"maps": 1, "map_epochs": [1]}))
    assert done.finished.outcome == "succeeded"
    assert map_names(done.events) == []


def test_pictures_on_the_way_change_nothing(make_plan, run):
    """Sizes are drawn at random and BatchNorm has statistics: a picture that disturbed either would move weights."""
    options = {"data": {"min_size": [48, 64]}, "training": {"ema": True}}
    digests = []
    for out, epochs in (("without", []), ("with", [1])):
        plan = make_plan(out=out, evaluation={"maps": 1, "map_epochs": epochs}, **options)
        assert run(plan).finished.outcome == "succeeded"
        digests.append([sha256_of(plan.out_dir / "checkpoints" / name) for name in ("last.pt", "best.safetensors")])
    assert digests[0] == digests[1]


def test_drawing_leaves_generators_and_student_as_they_were(make_plan):
    plan = make_plan(data={"min_size": [48, 64]}, evaluation={"maps": 2})
    precision = choose_precision(plan.spec.training, gpus=0)
    parts = build_parts(plan, precision, lambda event: None)
    parts.student.train()
    before = {name: value.clone() for name, value in parts.student.state_dict().items()}
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    events: list[Event] = []
    AreaMaps(plan, parts, precision, events.append).draw(parts.student, epoch=1)
    assert map_names(events) == ["00000-epoch-001.png", "00003-epoch-001.png"]  # of seven images with boxes
    assert torch.equal(states[0], torch.get_rng_state())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert parts.student.training
    assert all(torch.equal(value, before[name]) for name, value in parts.student.state_dict().items())


def test_names_of_many_epochs_sort(make_plan):
    spec = make_plan(training={"epochs": 1000}).spec
    names = [moment_name(epoch, spec) for epoch in (9, 999, 1000)]
    assert names == sorted(names) == ["epoch-0009", "epoch-0999", "epoch-1000"]


def test_gradients_of_task_and_distillation_are_told_and_agree(make_plan, run):
    done = run(make_plan(training={"log_every_steps": 1}))
    task, distill, ratio = (done.series[f"grad/{name}"] for name in ("task", "distill", "distill_ratio"))
    assert list(task) == list(distill) == list(ratio) == [1, 5, 10]
    assert min(*task.values(), *distill.values()) > 0
    for step, value in ratio.items():
        assert value == pytest.approx(distill[step] / task[step], rel=1e-5)
    assert {"areas/key/p3", "areas/weak/p3", "areas/high/p3"} <= done.series.keys()


def test_the_norm_of_distillation_is_that_of_its_gradient(make_plan):
    """Against autograd on the whole loss: twice the weight is twice the norm."""
    from tid_core.training.gradients import gradient_norm_of, probe_parameters

    plan = make_plan()
    parts = build_parts(plan, choose_precision(plan.spec.training, gpus=0), lambda event: None)
    image, target = parts.train[0, 0]
    images, targets = parts.student.transform([image], [{key: target[key] for key in ("boxes", "labels")}])
    assert isinstance(images, ImageList)
    losses = parts.module(images, targets, parts.teacher(images), 1.0)
    probes = probe_parameters(parts.student)
    norm = gradient_norm_of(losses.distill, probes)
    assert gradient_norm_of(2 * losses.distill, probes) == pytest.approx(2 * float(norm))
    losses.distill.backward()
    by_hand = sum(float(p.grad.square().sum()) for p in probes if p.grad is not None) ** 0.5
    assert float(norm) == pytest.approx(by_hand, rel=1e-5)
