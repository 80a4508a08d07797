"""What a sweep becomes: its jobs, what they share, in which order, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from tid_core.spec import FileWeights, JobSpec, JobWeights
from tid_core.sweep import MAX_JOBS, SweepInvalid, SweepJob, SweepSpec, expand, in_points, locate

BASE: dict[str, Any] = {
    "teacher": {"detector": "fcos_conv10_small", "weights": {"file": "/data/t.pt"}},
    "student": {"detector": "fcos_conv5_tiny"},
    "dataset": "digits",
    "training": {"epochs": 2},
}


def sweep(axes: dict[str, Any], **base: Any) -> SweepSpec:
    return SweepSpec.model_validate({"name": "s", "base": {**BASE, **base}, "axes": axes})


def names(jobs: list[SweepJob]) -> list[str]:
    return [job.spec.name for job in jobs]


def refused(axes: dict[str, Any], **base: Any) -> SweepInvalid:
    with pytest.raises(SweepInvalid) as caught:
        expand(sweep(axes, **base))
    return caught.value


def codes(axes: dict[str, Any], **base: Any) -> set[tuple[str, str]]:
    return {(problem.code, problem.field) for problem in refused(axes, **base).problems}


def test_the_product_of_the_axes_seed_by_seed_with_one_baseline_a_seed() -> None:
    jobs = expand(sweep({"method": ["fitnet", ["tid", "pkd"]], "training.seed": [3, 1]}))
    assert names(jobs) == [
        "s baseline seed=3",
        "s fitnet seed=3",
        "s tid+pkd seed=3",
        "s baseline seed=1",
        "s fitnet seed=1",
        "s tid+pkd seed=1",
    ]
    assert [job.baseline for job in jobs] == [None, 0, 0, None, 3, 3]
    assert [job.label for job in jobs[:3]] == ["baseline", "fitnet", "tid+pkd"]
    assert jobs[0].values == {"training.seed": 3}
    assert jobs[2].values == {"method": ["tid", "pkd"], "training.seed": 3}


def test_a_job_and_its_baseline_differ_in_nothing_but_the_teaching() -> None:
    jobs = expand(sweep({"method": ["fitnet", "tid"], "training.lr": [0.01, 0.02], "training.seed": [0, 1]}))
    assert len(jobs) == 12
    for job in jobs:
        if job.baseline is None:
            continue
        baseline = jobs[job.baseline].spec
        assert baseline.model_dump(exclude={"name"}) == job.spec.baseline_twin().model_dump(exclude={"name"})
        for part in ("student", "data", "training", "evaluation", "dataset", "resources"):
            assert getattr(job.spec, part) == getattr(baseline, part)


def test_a_point_without_distillation_is_the_baseline() -> None:
    jobs = expand(sweep({"method": ["none", "tid"], "tid.tasks": ["cls", "both"], "training.seed": [0]}))
    assert names(jobs) == ["s baseline seed=0", "s tid tasks=cls seed=0", "s tid tasks=both seed=0"]
    assert jobs[0].spec.teacher is None
    assert [job.baseline for job in jobs] == [None, 0, 0]


def test_settings_that_a_method_does_not_use_make_no_second_job() -> None:
    jobs = expand(sweep({"method": ["fitnet", "tid"], "loss": [{"high": 2}, {"high": 1}]}))
    assert [(job.label, job.values) for job in jobs if job.role == "point"] == [
        ("fitnet", {"method": "fitnet"}),
        ("tid loss(high=2)", {"method": "tid", "loss": {"high": 2}}),
        ("tid loss(high=1)", {"method": "tid", "loss": {"high": 1}}),
    ]
    fitnet = next(job.spec for job in jobs if job.label == "fitnet")
    assert fitnet.tid == JobSpec.model_validate(BASE).tid


def test_axes_of_the_recipe_have_baselines_of_their_own_and_axes_of_the_teaching_none() -> None:
    recipe = expand(sweep({"training.lr": [0.01, 0.02], "loss.distill": [1, 2]}))
    assert [job.label for job in recipe if job.role == "baseline"] == ["baseline lr=0.01", "baseline lr=0.02"]
    of_task = expand(sweep({"loss.task": [1, 2]}))
    assert [job.label for job in of_task if job.role == "baseline"] == ["baseline task=1", "baseline task=2"]
    only_one = expand(sweep({"method": ["tid"], "training.seed": [0, 1]}))
    assert [job.values for job in only_one if job.role == "baseline"] == [{"training.seed": 0}, {"training.seed": 1}]


def test_without_a_baseline_there_is_none_unless_a_point_is_one() -> None:
    assert [job.role for job in expand(sweep({"method": ["tid", "fitnet"]}, baseline=False))] == ["point", "point"]
    jobs = expand(sweep({"method": ["tid", "none"]}, baseline=False))
    assert [(job.role, job.baseline) for job in jobs] == [("baseline", None), ("point", 0)]
    plain = expand(sweep({"student.detector": ["fcos_conv5_tiny", "gfl_conv5_tiny"]}, teacher=None))
    assert [(job.role, job.label) for job in plain] == [
        ("point", "detector=fcos_conv5_tiny"),
        ("point", "detector=gfl_conv5_tiny"),
    ]


def test_a_section_is_merged_and_other_values_replace() -> None:
    jobs = expand(sweep({"training": [{"batch_size": 4}, {"batch_size": 8, "epochs": 5}]}))
    assert [(job.spec.training.epochs, job.spec.training.batch_size) for job in jobs] == [(2, 4), (5, 8)] * 2
    jobs = expand(sweep({"teacher.weights": [{"job": "a" * 12}, {"file": "/data/u.pt"}]}))
    assert [type(job.spec.teacher.weights) for job in jobs[1:]] == [JobWeights, FileWeights]
    filled = expand(sweep({"training.seed": [0]}, recipe="cpu_smoke"))
    assert filled[0].spec.training.lr_scaling is not None
    assert expand(sweep({"fitnet.weight": [1, 2]}, method="fitnet", fitnet=None))[1].spec.fitnet.weight == 1


def test_two_axes_of_one_last_name_are_told_apart() -> None:
    jobs = expand(sweep({"training.schedule": ["cosine"], "loss.schedule": ["constant", "warmup"]}))
    assert jobs[1].label == "training.schedule=cosine loss.schedule=constant"


def test_names_and_labels_have_an_end() -> None:
    milestones = [[index / 100, *(0.5 + step / 100 for step in range(40))] for index in range(2)]
    for job in expand(sweep({"training.milestones": milestones, "training.seed": [2**32 - 1]})):
        assert len(job.spec.name) <= 120
        assert len(job.label) <= 120
        JobSpec.model_validate(job.spec.model_dump())


def test_the_same_sweep_expands_alike_after_a_trip_through_json() -> None:
    first = sweep({"method": ["tid", "fitnet"], "loss": [{"low": 0}, {"high": 3, "low": 1}], "training.seed": [0, 1]})
    assert expand(SweepSpec.model_validate_json(first.model_dump_json())) == expand(first)


@pytest.mark.parametrize(
    ("axes", "code", "field"),
    [
        ({"training.sed": [1, 2]}, "axis_unknown", "/axes/training.sed"),
        ({"": [1]}, "axis_unknown", "/axes/"),
        ({"a/b~c": [1]}, "axis_unknown", "/axes/a~1b~0c"),
        ({"dataset.x": ["a"]}, "axis_unknown", "/axes/dataset.x"),
        ({"training.milestones.0": [1]}, "axis_unknown", "/axes/training.milestones.0"),
        ({"teacher.weights.file.x": ["a"]}, "axis_unknown", "/axes/teacher.weights.file.x"),
        ({"__class__": [1]}, "axis_unknown", "/axes/__class__"),
        ({"model_config.extra": ["allow"]}, "axis_unknown", "/axes/model_config.extra"),
        ({"name": ["a"]}, "axis_reserved", "/axes/name"),
        ({"baseline": [True, False]}, "axis_reserved", "/axes/baseline"),
        ({"method": ["tid", "fitnet", "tid"]}, "values_repeated", "/axes/method/2"),
        ({"loss": [{"high": 1, "low": 2}, {"low": 2, "high": 1}]}, "values_repeated", "/axes/loss/1"),
        ({"loss": [{"high": 1}], "loss.low": [1]}, "axes_overlap", "/axes/loss"),
        ({"tid.tasks": ["cls", "reg"], "method": ["fitnet"]}, "values_alike", "/axes/tid.tasks/1"),
        ({"method": ["tid", ["tid"]]}, "values_alike", "/axes/method/1"),
        ({"training.seed": list(range(MAX_JOBS + 1))}, "too_many_jobs", "/axes/training.seed"),
        ({"training.seed": list(range(MAX_JOBS // 2 + 1))}, "too_many_jobs", "/axes"),
        ({"training.seed": list(range(100)), "training.lr": [0.01 + x / 1e6 for x in range(100)]}, "too_many_jobs",
         "/axes/training.seed"),
    ],
)  # fmt: skip
def test_axes_that_make_no_sense_are_named(axes: dict[str, Any], code: str, field: str) -> None:
    assert codes(axes) == {(code, field)}


def test_what_would_be_right_is_said() -> None:
    (problem,) = refused({"training.sed": [1]}).problems
    assert "training.seed" in problem.expected
    many = refused({"training.seed": list(range(600))}).problems[0]
    assert str(MAX_JOBS) in many.expected


def test_an_axis_inside_of_something_that_is_no_mapping() -> None:
    axes = {"teacher.weights.job": ["a" * 12, "b" * 12]}
    teacher = {"detector": "fcos_resnet50_fpn", "weights": "COCO_V1"}
    assert codes(axes, teacher=teacher) == {("axis_unplaceable", "/axes/teacher.weights.job")}
    assert codes({"training.seed": [0]}, training=[1]) == {("axis_unplaceable", "/axes/training.seed")}


def test_all_jobs_may_not_be_larger_than_what_one_transaction_takes() -> None:
    teacher = {"detector": "fcos_conv10_small", "weights": {"file": "/t.pt", "classes": ["x" * 100] * 2000}}
    axes = {"training.seed": list(range(200))}
    assert codes(axes, teacher=teacher) == {("sweep_too_large", "/base")}
    assert len(expand(sweep({"training.seed": [0, 1]}, teacher=teacher))) == 4


def test_points_that_are_no_jobs_come_all_at_once_with_their_places() -> None:
    asked = sweep({"method": ["tid", "teleport"], "training.epochs": [1, 0, 2]})
    with pytest.raises(SweepInvalid) as caught:
        expand(asked)
    assert caught.value.num_points == 6
    assert [point.choice for point in caught.value.points] == [(0, 1), (1, 0), (1, 1), (1, 2)]
    assert locate(asked, (1, 1), ["training", "epochs"]) == "/axes/training.epochs/1"
    assert locate(asked, (1, 1), ["method"]) == "/axes/method/1"
    assert locate(asked, (1, 1), ["training"]) == "/axes/training.epochs/1"
    assert locate(asked, (1, 1), ["student", "detector"]) == "/base/student/detector"
    assert locate(asked, (1, 1), []) == "/axes"
    told = in_points(asked, [point.choice for point in caught.value.points], 6)
    assert told.startswith("in 4 of 6 points: tid epochs=0, teleport epochs=1, teleport epochs=0, ...")


def test_errors_without_end_are_not_gathered_for_every_point() -> None:
    asked = sweep({"training.seed": list(range(200))}, **{f"x{index}": 1 for index in range(11_000)})
    with pytest.raises(SweepInvalid) as caught:
        expand(asked)
    assert len(caught.value.points) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 61},
        {"name": "a\0"},
        {"axes": {}},
        {"axes": {"training.seed": []}},
        {"axes": {"training.seed": 1}},
        {"axes": [["training.seed", 1]]},
        {"axes": {f"a{index}": [1] for index in range(17)}},
        {"axes": {"method": ["a\0"]}},
        {"axes": {"me\x1bthod": ["a"]}},
        {"axes": {"method": [float("nan")]}},
        {"axes": {"method": [{"a": float("inf")}]}},
        {"base": {"a": {"\ud800": 1}}},
        {"base": {"a": ["\ud800"]}},
        {"base": []},
        {"base": None},
        {"seeds": 3},
    ],
)
def test_bodies_that_are_no_sweep(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepSpec.model_validate({"name": "s", "base": BASE, "axes": {"training.seed": [0]}, **change})


def test_nesting_has_an_end() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    with pytest.raises(ValidationError, match="nested deeper"):
        SweepSpec.model_validate({"name": "s", "base": BASE, "axes": {"method": [deep]}})
