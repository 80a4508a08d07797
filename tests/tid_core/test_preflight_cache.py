"""A teacher's outputs are kept only for images that come again as they were."""

from typing import Any

import pytest

from tid_core.preflight import check
from tid_core.spec import JobSpec


def found(data: dict[str, Any], *, cache: bool = True) -> dict[str, str]:
    """Field to what would be right."""
    teacher = {"detector": "retinanet_resnet50_fpn_v2", "weights": "COCO_V1", "cache": cache}
    document = {"teacher": teacher, "student": {"detector": "fcos_resnet18_fpn"}, "dataset": "pets", "data": data}
    problems = check(JobSpec.model_validate(document), dataset=None, teacher=None)
    return {each.field: each.expected for each in problems if each.severity == "error"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, {"/data/flip": "0"}),  # the default
        ({"flip": 0, "photometric": 0.5}, {"/data/photometric": "0"}),
        ({"flip": 0, "scale_jitter": [1.0, 1.0]}, {"/data/scale_jitter": "null"}),
        ({"flip": 0.1, "min_size": [640, 800]}, {"/data/flip": "0", "/data/min_size": "one size"}),
    ],
)
def test_what_moves_is_named_with_what_would_be_right(data, expected) -> None:
    assert found(data) == {field: f"{right}, or teacher.cache: false" for field, right in expected.items()}
    assert found(data, cache=False) == {}


def test_images_that_stand_still_are_taken() -> None:
    assert found({"flip": 0}) == {}
