"""Any document is a job, a sweep, a cursor, a setting, or is refused in the way that its users are told of."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from api.paging import decode, encode
from api.problems import ProblemError
from api.validation import field_problems
from store.jobs import Cursor
from store.settings import Settings, SettingsError, load_settings
from tests.fuzz.documents import anything, damaged, jobs, sweeps
from tid_core.facts import DatasetFacts, SplitFacts
from tid_core.preflight import TeacherFacts, check
from tid_core.spec import JobSpec
from tid_core.sweep import SweepInvalid, SweepSpec, expand
from tid_core.sweep.spec import MAX_JOBS

FUZZ = settings.get_profile("fuzz")
MANY = settings(FUZZ, max_examples=10 * FUZZ.max_examples)


def problems_of(error: ValidationError, document: Any) -> list[Any]:
    """As a request's answer has them."""
    located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
    problems = field_problems(located, document)
    assert problems
    for problem in problems:
        assert problem.code
        assert problem.detail
        assert problem.field == "" or problem.field.startswith("/")
        assert problem.field or not isinstance(document, dict)
        json.dumps(problem.model_dump(), allow_nan=False)
    return problems


def facts() -> st.SearchStrategy[DatasetFacts | None]:
    counts = st.integers(0, 50)

    def split(name: str) -> st.SearchStrategy[SplitFacts]:
        return st.builds(
            SplitFacts,
            images=counts,
            boxes=counts,
            empty_images=counts,
            per_class=st.dictionaries(st.sampled_from(["cat", "dog"]), counts),
            images_checked=st.sampled_from(["present", "decoded"]),
            problems=st.just([]),
        )

    splits = st.fixed_dictionaries({}, optional={name: split(name) for name in ("train", "val")})
    return st.none() | st.builds(DatasetFacts, classes=st.sampled_from([["cat"], ["cat", "dog"], []]), splits=splits)


TEACHERS = st.none() | st.builds(
    TeacherFacts,
    detector=st.sampled_from(["fcos_resnet50_fpn", "fcos_conv5_tiny", "nobody"]),
    classes=st.sampled_from([[], ["cat"], ["yak"]]),
    ap=st.none() | st.floats(0, 1),
    student_ap=st.none() | st.floats(0, 1),
)


@given(damaged(jobs()) | anything(), facts(), TEACHERS)
@MANY
def test_any_json_is_a_job_or_told_where_it_is_none(document: Any, dataset: Any, teacher: Any) -> None:
    try:
        job = JobSpec.model_validate(document)
    except ValidationError as error:
        event(problems_of(error, document)[0].code)
        return
    event("a job")
    for one in (job, job.baseline_twin()):
        text = one.model_dump_json()
        assert JobSpec.model_validate_json(text).model_dump_json() == text
        told = one.model_dump(mode="json")
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert yaml.safe_load(yaml.safe_dump(told)) == told
        assert JobSpec.model_validate(told) == one
        for problem in check(one, dataset=dataset, teacher=teacher):
            assert problem.severity in ("error", "warning")
            assert problem.field.startswith("/")


@given(damaged(sweeps()) | sweeps() | anything())
@MANY
def test_a_sweep_is_expanded_or_told_why_not(document: Any) -> None:
    try:
        sweep = SweepSpec.model_validate(document)
    except ValidationError as error:
        problems_of(error, document)
        return
    refused = None
    try:
        planned = expand(sweep)
    except SweepInvalid as error:
        refused = error
    if refused is not None:
        event("invalid")
        assert refused.problems or refused.points
        return
    event("expanded")
    assert 0 < len(planned) <= MAX_JOBS
    names = [job.spec.name for job in planned]
    assert len(set(names)) == len(names)
    for job in planned:
        if job.baseline is not None:
            baseline = planned[job.baseline]
            assert (baseline.role, baseline.spec.method) == ("baseline", "none")
            assert baseline.spec.training.seed == job.spec.training.seed
    again = expand(SweepSpec.model_validate_json(sweep.model_dump_json()))
    assert [job.spec.model_dump_json() for job in again] == [job.spec.model_dump_json() for job in planned]


TIMES = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))
IDS = st.text("0123456789abcdef", min_size=12, max_size=12)


@given(TIMES, IDS)
@FUZZ
def test_a_cursor_comes_back_as_it_was(at: datetime, row_id: str) -> None:
    text = encode(Cursor(at, row_id))
    assert decode(text) == Cursor(at, row_id)
    assert len(text) <= 200


@given(st.text(max_size=60) | st.builds(lambda at, i, cut: encode(Cursor(at, i))[cut:], TIMES, IDS, st.integers(1, 9)))
@MANY
def test_any_other_text_is_no_cursor(text: str) -> None:
    refused = None
    try:
        cursor = decode(text)
    except ProblemError as problem:
        refused = problem
    if refused is not None:
        assert (refused.status, refused.errors[0].code) == (422, "cursor_invalid")
        return
    assert abs(cursor.created_at - datetime(1970, 1, 1, tzinfo=UTC)) < timedelta(days=366 * 10_000)
    assert cursor.id.isalnum()


PASSWORD = "hunter2"
VALUES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20).filter(
    lambda text: PASSWORD not in text
)
SENSIBLE = st.sampled_from(["0", "1", "-1", "1e400", "nan", "inf", "true", "/data:/more", "~", "127.0.0.1"])
URLS = st.sampled_from([f"postgres://u:{PASSWORD}@h/d", f"mysql://u:{PASSWORD}@h/d", f"redis://:{PASSWORD}@["])
URLS |= st.sampled_from([f"sqlite:///x?{PASSWORD}", f"http://u:{PASSWORD}@h"])
HIDDEN = ("s3_access_key_id", "s3_secret_access_key")
VARIABLES = {
    name: URLS if name.endswith(("_url", "_endpoint")) else st.just(PASSWORD) if name in HIDDEN else VALUES | SENSIBLE
    for name in Settings.model_fields
}


@given(st.fixed_dictionaries({}, optional=VARIABLES))
@MANY
def test_any_environment_is_settings_or_names_the_variable(environment: dict[str, str]) -> None:
    found, refused = None, None
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(f"TID_{name.upper()}", value)
        try:
            found = load_settings()
        except SettingsError as error:
            refused = str(error)
    assert PASSWORD not in (refused or repr(found))
    if found is None:
        assert "TID_" in str(refused)
        return
    event("read")
    assert found.home.is_absolute()
    assert math.isfinite(found.lease_seconds)
