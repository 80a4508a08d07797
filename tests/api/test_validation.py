from typing import Any

import pytest
from pydantic import ValidationError

from api.validation import field_problems
from tid_core.spec import JobSpec


def problems_of(document: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as raised:
        JobSpec.model_validate(document)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.value.errors()]
    return [(problem.field, problem.code) for problem in field_problems(errors, document)]


def spec(**changes: Any) -> dict[str, Any]:
    return {"student": {"detector": "a"}, "dataset": "d", **changes}


def test_every_problem_is_told_with_a_pointer_into_the_document() -> None:
    document = spec(training={"epochs": 0, "milestones": [0.5, 7]}, loss={"a/b~": 1}, student={})
    assert problems_of(document) == [
        ("/student/detector", "missing"),
        ("/loss/a~1b~0", "extra_forbidden"),
        ("/training/epochs", "greater_than_equal"),
        ("/training/milestones/1", "less_than_equal"),
    ]


def test_of_a_union_only_the_member_that_was_meant_speaks() -> None:
    document = spec(teacher={"weights": {"job": "x", "checkpoint": "bset"}})
    assert problems_of(document) == [("/teacher/weights/checkpoint", "string_pattern_mismatch")]


def test_a_value_of_no_member_s_type_is_one_problem_that_names_all_forms() -> None:
    document = spec(student={"detector": "a", "weights": 3})
    with pytest.raises(ValidationError) as raised:
        JobSpec.model_validate(document)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.value.errors()]
    (problem,) = field_problems(errors, document)
    assert (problem.field, problem.code) == ("/student/weights", "union")
    assert "FileWeights" in problem.detail
    assert "string" in problem.detail


def test_a_document_that_is_no_object() -> None:
    assert problems_of([1]) == [("", "model_type")]


def test_one_value_where_a_list_stands_is_told_how_to_write_it() -> None:
    document = spec(data={"min_size": 320})
    with pytest.raises(ValidationError) as raised:
        JobSpec.model_validate(document)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.value.errors()]
    (problem,) = field_problems(errors, document)
    assert (problem.field, problem.expected) == ("/data/min_size", "a list, in [brackets]")


def test_a_key_that_is_no_text_is_told_by_its_place() -> None:
    assert problems_of(spec(**{"a\ud800": 1})) == [("/a\\ud800", "string_unicode")]
    assert problems_of(spec(loss={"\ud800": 1})) == [("/loss/\\ud800", "string_unicode")]
