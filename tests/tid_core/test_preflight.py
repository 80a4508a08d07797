"""What does not fit is found before anything is trained, and the message says what would."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tid_core.catalogue import DETECTORS
from tid_core.data.problems import DETAILS, DataProblem
from tid_core.facts import DatasetFacts, SizeRange, SplitFacts
from tid_core.preflight import Problem, TeacherFacts, check
from tid_core.spec import JobSpec

SIZE = SizeRange(smallest=96, mean=96, largest=96)


def spec(**changes: Any) -> JobSpec:
    """A sound job, with fields replaced by dotted name (`student__norm="group"`)."""
    document: dict[str, Any] = {
        "teacher": {"detector": "retinanet_resnet50_fpn_v2", "weights": "COCO_V1"},
        "student": {"detector": "fcos_resnet18_fpn", "weights": "imagenet"},
        "dataset": "pets",
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return JobSpec.model_validate(document)


def split(**changes: Any) -> SplitFacts:
    facts: dict[str, Any] = {
        "images": 64,
        "boxes": 90,
        "empty_images": 4,
        "per_class": {"cat": 50, "dog": 40},
        "box_side": SIZE,
        "box_side_histogram": [],
        "image_short_side": SIZE,
        "image_long_side": SIZE,
        "images_checked": "present",
        "problems": [],
    }
    return SplitFacts.model_validate({**facts, **changes})


def dataset(*, classes: list[str] | None = None, train: SplitFacts | None = None, val: bool = True) -> DatasetFacts:
    splits = {"train": train or split()} | ({"val": split()} if val else {})
    return DatasetFacts(name="pets", classes=classes or ["cat", "dog"], splits=splits)


def problems(job: JobSpec, **facts: Any) -> dict[str, Problem]:
    found = check(job, dataset=facts.get("dataset"), teacher=facts.get("teacher"))
    assert [p.severity for p in found] == sorted(p.severity for p in found), "errors first"
    return {p.code: p for p in found}


def data_problem(code: str) -> DataProblem:
    return DataProblem(code=code, count=3, examples=["annotation 7"], detail=DETAILS[code])


def test_sound_jobs_have_no_problem() -> None:
    assert problems(spec(), dataset=dataset()) == {}
    assert problems(spec(teacher__detector="fcos_resnet50_fpn"), dataset=dataset()) == {}, "FCOS falls to t_pos, t_neg"
    assert problems(spec(teacher=None), dataset=dataset(classes=["zebu", "yak"])) == {}


@pytest.mark.parametrize(
    ("changes", "code", "field", "detail", "expected"),
    [
        ({"student__detector": "fcos_resnet_18_fpn"}, "unknown_detector", "/student/detector", "fcos_resnet_18_fpn",
         "one of: fcos_resnet18_fpn"),
        ({"teacher__detector": "retinanet"}, "unknown_detector", "/teacher/detector", "'retinanet'", "one of"),
        ({"teacher__detector": "yolo"}, "unknown_detector", "/teacher/detector", "'yolo'", "a name of GET"),
        ({"student__weights": "COCO_V2"}, "unknown_weights", "/student/weights", "COCO_V2", "imagenet, IMAGENET1K_V1"),
        ({"teacher__weights": "imagenet"}, "unknown_weights", "/teacher/weights", "nothing to teach", "COCO_V1"),
        ({"student__weights": {"file": "notes.txt"}}, "unknown_weights", "/student/weights/file", "notes.txt",
         ".safetensors"),
        ({"student__norm": "group"}, "norm_unfit", "/student/norm", "imagenet", "auto"),
        ({"student__trainable_layers": 6}, "trainable_layers_out_of_range", "/student/trainable_layers", "5 stages",
         "0 to 5"),
        ({"student__detector": "fcos_conv5_tiny", "student__weights": None}, "levels_differ", "/student/detector",
         "3 pyramid levels", "fcos_resnet18_fpn"),
        ({"student__inherit": ["neck", "head"]}, "inherit_unfit", "/student/inherit/1", "heads", "without 'head'"),
        ({"data__scale_jitter": [1.2, 0.8]}, "range_reversed", "/data/scale_jitter", "1.2 down to 0.8", "[0.8, 1.2]"),
        ({"loss__distill": 0}, "distillation_off", "/loss/distill", "plain training", "method: none"),
        ({"loss": {"high": 0, "medium": 0, "low": 0}}, "distillation_off", "/loss", "all 0", "positive"),
        ({"resources__gpus": 3}, "batch_indivisible", "/training/batch_size", "3 GPUs", "a multiple of 3, e.g. 18"),
        ({"resources__gpus": 4, "training__accumulate": 8}, "batch_indivisible", "/training/batch_size",
         "16 in 8 parts", "a multiple of 32, e.g. 32"),
        ({"resources__nodes": 3}, "batch_indivisible", "/training/batch_size", "3 nodes", "a multiple of 3, e.g. 18"),
        ({"resources__nodes": 3, "resources__gpus": 2}, "batch_indivisible", "/training/batch_size",
         "3 nodes of 2 GPUs", "a multiple of 6, e.g. 18"),
        ({"training__epochs": 6, "evaluation__map_epochs": [9, 3, 7]}, "map_epochs_beyond_run",
         "/evaluation/map_epochs", "6 epochs, so there is nothing to draw after 7, 9", "1 to 6"),
    ],
)  # fmt: skip
def test_errors_of_the_spec(changes: dict[str, Any], code: str, field: str, detail: str, expected: str) -> None:
    (problem,) = problems(spec(**changes)).values()
    assert (problem.code, problem.field, problem.severity) == (code, field, "error")
    assert detail in problem.detail
    assert expected in problem.expected


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"student__weights": None, "student__norm": "frozen"}, "norm_frozen_at_random"),
        ({"student__weights": None, "student__trainable_layers": 2}, "trainable_layers_ignored"),
        ({"training__lr": 0.2}, "lr_high"),
        ({"training__lr": 0.01, "training__optimizer": "adamw"}, "lr_high"),
        ({"data__max_size": 640}, "sizes_contradict"),
        ({"evaluation__map_epochs": [1], "evaluation__maps": 0}, "maps_off"),
        ({"evaluation__map_epochs": [1], "teacher": None}, "maps_off"),
    ],
)
def test_warnings_of_the_spec(changes: dict[str, Any], code: str) -> None:
    (problem,) = problems(spec(**changes)).values()
    assert (problem.code, problem.severity) == (code, "warning")


def test_other_widths_need_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, "narrow", replace(DETECTORS["fcos_resnet18_fpn"], name="narrow", channels=128))
    monkeypatch.setitem(DETECTORS, "fine", replace(DETECTORS["narrow"], name="fine", strides=(4, 8, 16, 32, 64)))
    adapter = problems(spec(student__detector="narrow"))["adapter_needed"]
    assert adapter.severity == "warning"
    assert "128 channels meet 256" in adapter.detail
    assert problems(spec(student__detector="fine"))["strides_differ"].severity == "error"
    assert "strides_differ" not in problems(spec(student__detector="fine", method="none"))


def test_classes_that_the_teacher_lacks_are_named() -> None:
    problem = problems(spec(), dataset=dataset(classes=["cat", "yak"]))["classes_missing"]
    assert problem.field == "/teacher/weights"
    assert "yak" in problem.detail
    assert "cat" not in problem.detail
    assert "person" in problem.expected

    of_job = spec(teacher={"weights": {"job": "abc"}})
    facts = TeacherFacts(detector="fcos_resnet50_fpn", classes=["yak", "cat"])
    assert problems(of_job, dataset=dataset(classes=["cat", "yak"]), teacher=facts) == {}
    assert "dog" in problems(of_job, dataset=dataset(), teacher=facts)["classes_missing"].detail
    of_file = spec(teacher__weights={"file": "t.pt", "classes": ["cat"]})
    assert "dog" in problems(of_file, dataset=dataset())["classes_missing"].detail


def test_teacher_jobs() -> None:
    facts = TeacherFacts(detector="fcos_resnet18_small", ap=0.51, student_ap=0.5)
    found = problems(spec(teacher={"weights": {"job": "abc"}}), teacher=facts)
    assert found.keys() == {"levels_differ", "teacher_not_better"}
    assert found["teacher_not_better"].severity == "warning"
    stated = problems(spec(teacher={"detector": "fcos_resnet50_fpn", "weights": {"job": "abc"}}), teacher=facts)
    assert "trained fcos_resnet18_small" in stated["teacher_differs"].detail
    good = facts.model_copy(update={"ap": 0.6})
    assert "teacher_not_better" not in problems(spec(teacher={"weights": {"job": "abc"}}), teacher=good)


def test_dataset_problems() -> None:
    assert problems(spec(), dataset=dataset(val=False))["split_missing"].severity == "error"
    empty = dataset(train=split(boxes=0, per_class={"cat": 0, "dog": 0}))
    assert problems(spec(), dataset=empty).keys() == {"no_boxes"}
    assert (
        "dog"
        in problems(spec(), dataset=dataset(train=split(per_class={"cat": 9, "dog": 0})))[
            "classes_without_boxes"
        ].detail
    )

    small = problems(spec(data__drop_empty=True), dataset=dataset(train=split(images=16, empty_images=3)))
    assert (small["batch_exceeds_dataset"].severity, small["batch_exceeds_dataset"].expected) == (
        "warning",
        "at most 13",
    )
    for several in ({"resources__gpus": 2}, {"resources__nodes": 2}):
        shared = problems(spec(data__drop_empty=True, **several), dataset=dataset(train=split(images=16)))
        assert shared["batch_exceeds_dataset"].severity == "error"

    flawed = dataset(train=split(problems=[data_problem("zero_size_box"), data_problem("clipped_box")]))
    dropped = problems(spec(), dataset=flawed)
    assert {code: p.severity for code, p in dropped.items()} == {"zero_size_box": "warning"}
    refused = problems(spec(data__invalid_boxes="refuse"), dataset=flawed)["zero_size_box"]
    assert refused.severity == "error"
    assert "3 x zero_size_box" in refused.detail
    assert "annotation 7" in refused.detail
    unlabelled = dataset(train=split(problems=[data_problem("outside_0_1"), data_problem("malformed_label")]))
    assert {p.severity for p in problems(spec(data__invalid_boxes="refuse"), dataset=unlabelled).values()} == {"error"}
    leaked = DatasetFacts(
        name="pets",
        classes=["cat", "dog"],
        splits={"train": split(), "val": split(problems=[data_problem("leaked_image")])},
    )
    assert {code: p.severity for code, p in problems(spec(), dataset=leaked).items()} == {"leaked_image": "warning"}
    absent = dataset(train=split(problems=[data_problem("missing_image")]))
    assert problems(spec(), dataset=absent)["missing_image"].severity == "error"


def test_free_of_torch() -> None:
    code = "import sys, tid_core.preflight; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_more_steps_than_can_be_counted() -> None:
    job = spec(training__epochs=10_000, training__batch_size=1)
    found = problems(job, dataset=dataset(train=split(images=250_000)))["too_many_steps"]
    assert (found.severity, found.field) == ("error", "/training/epochs")
    assert "2,500,000,000 steps" in found.detail
    assert "too_many_steps" not in problems(job, dataset=dataset(train=split(images=200_000)))
