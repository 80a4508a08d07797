"""A run in two processes is the run in one: same losses, same student, same evaluation."""

import pytest
import torch
from safetensors.torch import load_file

from tid_core.spec import JobSpec
from tid_core.training import launcher
from tid_core.training.precision import choose_precision
from tid_core.training.setup import build_parts

# The rounding of a step is in the weights of the next: a low learning rate keeps it from growing.
STEPS = {"epochs": 1, "log_every_steps": 1, "lr": 0.001}
FREE_OF_THE_BATCH = {"norm": "group"}  # BatchNorm looks at the images of one rank
CASES = {
    "fcos, tid, micro-batches": {"training": {**STEPS, "accumulate": 2}},
    "retinanet, tid, average": {"student": {"detector": "retinanet_conv5_tiny"}, "training": {**STEPS, "ema": True}},
    "gfl, fitnet": {"student": {"detector": "gfl_conv5_tiny"}, "method": "fitnet"},
    "gfl, crosskd": {"student": {"detector": "gfl_conv5_tiny"}, "method": "crosskd"},
    "atss, standardised": {"student": {"detector": "atss_conv5_tiny"}, "tid": {"distance": "standardised_mse"}},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_two_ranks_train_as_one_with_the_whole_batch(make_plan, run, changes):
    student = {"detector": "fcos_conv5_tiny", **changes.get("student", {}), **FREE_OF_THE_BATCH}
    # Images are evaluated in the same twos, so that even the rounding agrees.
    common = {"training": STEPS, "evaluation": {"batch_size": 2}, **changes, "student": student}
    one, two = (run(make_plan(out=f"on-{n}", resources={"gpus": n}, **common), trainer=launcher.run) for n in (1, 2))
    for each in (one, two):
        assert each.finished.outcome == "succeeded", each.finished
    assert [each.of("started")[0].device for each in (one, two)] == ["cpu", "2 x cpu"]
    assert {event.type for event in one.events} == {event.type for event in two.events}
    assert one.series.keys() == two.series.keys()
    for name, points in one.series.items():
        if name.startswith(("loss/", "distill/", "areas/", "grad/", "lr")):
            assert points == pytest.approx(two.series[name], rel=2e-6, abs=1e-6), name
        elif name.startswith("teacher/"):  # the same network in both: 7 images, of which two ranks get 4 and 3
            assert points == two.series[name], name
    students = [load_file(each.of("checkpoint")[0].files["safetensors"]) for each in (one, two)]
    for name, value in students[0].items():
        assert (value - students[1][name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("detector", ["fcos_conv5_tiny", "retinanet_conv5_tiny", "gfl_conv5_tiny", "atss_conv5_tiny"])
def test_every_parameter_gets_a_gradient_also_from_images_without_boxes(make_plan, detector):
    """Else the ranks would wait for one that has nothing to average."""
    plan = make_plan(student={"detector": detector})
    parts = build_parts(plan, choose_precision(plan.spec.training, gpus=0), lambda _event: None)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    images, targets = parts.student.transform([torch.rand(3, 64, 64)] * 2, [empty] * 2)
    parts.module.train()
    parts.module(images, targets, parts.teacher(images), 1.0).total.backward()
    assert [name for name, p in parts.module.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("gpus", "training", "expected"),
    [
        (0, {"device": "cpu"}, 0),
        (1, {"device": "cpu"}, 1),
        (4, {"device": "cpu"}, 4),
        (4, {"device": "cpu", "accumulate": 4}, 2),
        (3, {"device": "cpu"}, 2),
        (7, {"device": "cpu", "batch_size": 5}, 5),
    ],
)
def test_every_rank_gets_as_many_images(gpus, training, expected):
    content = {"student": {"detector": "fcos_conv5_tiny"}, "dataset": "d", "resources": {"gpus": gpus}}
    spec = JobSpec.model_validate({**content, "training": {"batch_size": 8, **training}})
    assert launcher.count_processes(spec)[0] == expected


@pytest.mark.skipif("torch.cuda.device_count() > 1", reason="needs a machine with fewer GPUs")
def test_a_host_with_fewer_gpus_uses_what_it_has_and_says_so(make_plan, run):
    training = {**STEPS, "device": "auto"}
    done = run(make_plan(plain=True, training=training, resources={"gpus": 2}), trainer=launcher.run)
    assert done.finished.outcome == "succeeded"
    assert "the run uses 1" in done.warnings["fewer_gpus"]


@pytest.mark.skipif("torch.cuda.device_count() > 1", reason="needs a machine with fewer GPUs")
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_job_that_waited_for_gpus_does_not_begin_without_them(make_plan, gpus):
    plan = make_plan(plain=True, resources={"gpus": gpus}).model_copy(update={"gpus_required": 2})
    told = []
    finished = launcher.run(plan, told.append, lambda: False)
    assert (finished.outcome, finished.reason, told) == ("failed", "device_missing", [finished])
    assert "waited for 2 GPUs, and" in finished.detail
    assert not any(plan.out_dir.rglob("*"))
