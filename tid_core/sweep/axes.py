"""Axes: the fields of a job that they name, what cannot be an axis, and how a value gets into a job."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, get_args

from tid_core.catalogue import close_names
from tid_core.fields import Model
from tid_core.preflight.problem import Problem, some
from tid_core.spec import JobSpec
from tid_core.sweep.labels import shortened
from tid_core.sweep.spec import MAX_BYTES, MAX_JOBS, SweepSpec

_RESERVED: Final = {
    "name": "a sweep names its jobs itself, after their values",
    "baseline": "a sweep adds the baselines itself; `baseline: false` in `base` leaves them out",
}
_SECTION_DEPTH: Final = 3


def check_axes(sweep: SweepSpec) -> list[Problem]:
    """What is wrong with the axes, whatever the jobs would say."""
    problems = [problem for path in sweep.axes for problem in _check_axis(sweep, path)]
    return problems + list(_overlaps(list(sweep.axes))) + list(_sizes(sweep))


def pointer_of(path: str, *rest: object) -> str:
    """JSON pointer of an axis, or of one of its values, in the sweep."""
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in ("axes", path, *rest))
    return "".join(f"/{part}" for part in escaped)


def place(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a job's `document` with the value of an axis; a mapping is merged into the section of its path."""
    *outer, last = path.split(".")
    copy = here = dict(document)
    for part in outer:
        here[part] = dict(here.get(part) or {})
        here = here[part]
    known = here.get(last)
    if isinstance(known, dict) and isinstance(value, dict) and _is_section(path):
        value = {**known, **value}
    here[last] = value
    return copy


def _check_axis(sweep: SweepSpec, path: str) -> Iterator[Problem]:
    where = pointer_of(path)
    if path in _RESERVED:
        yield Problem(code="axis_reserved", field=where, detail=f"{path} is no axis: {_RESERVED[path]}", expected="")
    elif not _kinds(path):
        detail = f"a job has no field {shortened(path, 100)}"
        close = close_names(path[:100], list(_all_paths()))
        expected = f"one of: {', '.join(close)}" if close else "a field of GET /schemas/job, such as training.seed"
        yield Problem(code="axis_unknown", field=where, detail=detail, expected=expected)
    elif (blocked := _blocked(sweep.base, path)) is not None:
        detail = f"the base holds {shortened(_text(blocked[1]), 40)} at {blocked[0]}, which is no mapping to set it in"
        yield Problem(code="axis_unplaceable", field=where, detail=detail, expected=f"an axis {blocked[0]}")
    first: dict[str, int] = {}
    for index, value in enumerate(sweep.axes[path]):
        known = first.setdefault(_text(value, sort=True), index)
        if known != index:
            detail = f"the value {shortened(_text(value), 60)} stands there twice, first at {known}"
            yield Problem(
                code="values_repeated", field=pointer_of(path, index), detail=detail, expected="each value once"
            )
            return


def _overlaps(paths: Sequence[str]) -> Iterator[Problem]:
    for path in paths:
        inner = [other for other in paths if other.startswith(f"{path}.")]
        if inner:
            detail = f"the axes {path} and {some(inner)} set the same fields"
            expected = f"one of them: values of {path} are mappings, which may hold several fields"
            yield Problem(code="axes_overlap", field=pointer_of(path), detail=detail, expected=expected)


def _sizes(sweep: SweepSpec) -> Iterator[Problem]:
    points = math.prod(len(values) for values in sweep.axes.values())
    if points > MAX_JOBS:
        product = " x ".join(f"{len(values):,}" for values in sweep.axes.values())
        longest = max(sweep.axes, key=lambda path: len(sweep.axes[path]))
        detail = f"the axes make {product} jobs; the longest of them is {shortened(longest, 100)}"
        yield Problem(
            code="too_many_jobs", field=pointer_of(longest), detail=detail, expected=f"at most {MAX_JOBS} in one sweep"
        )
        return
    widest = sum(max(len(_text(value)) for value in values) for values in sweep.axes.values())
    size = points * (len(_text(sweep.base)) + widest)
    if size > MAX_BYTES:
        detail = f"{points} jobs of {size // points:,} characters are more than one sweep may hold"
        yield Problem(
            code="sweep_too_large", field="/base", detail=detail, expected=f"at most {MAX_BYTES:,} characters together"
        )


def _blocked(base: dict[str, Any], path: str) -> tuple[str, Any] | None:
    """Where on the way to a field the base holds something that is no mapping, and what."""
    here: Any = base
    outer = path.split(".")[:-1]
    for index, part in enumerate(outer):
        here = here.get(part)
        if here is None:
            return None
        if not isinstance(here, dict):
            return ".".join(outer[: index + 1]), here
    return None


def _kinds(path: str) -> list[Any]:
    """The annotations of the field at a path; a union of models may have several, an unknown path has none."""
    kinds: list[Any] = [JobSpec]
    for part in path.split("."):
        models = [model for kind in kinds for model in _models_in(kind)]
        kinds = [model.model_fields[part].annotation for model in models if part in model.model_fields]
    return kinds


def _models_in(annotation: Any) -> list[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    if getattr(annotation, "__origin__", None) in (list, tuple, dict):
        return []
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _is_section(path: str) -> bool:
    """Whether a field is one mapping of fields (or null), not one of several kinds of things."""
    kinds = {kind for outer in _kinds(path) for kind in (get_args(outer) or (outer,))} - {type(None)}
    return len(kinds) == 1 and bool(_models_in(kinds.pop()))


def _all_paths(prefix: str = "", depth: int = _SECTION_DEPTH) -> Iterator[str]:
    kinds = _kinds(prefix) if prefix else [JobSpec]
    for name in dict.fromkeys(name for kind in kinds for model in _models_in(kind) for name in model.model_fields):
        path = f"{prefix}.{name}" if prefix else name
        if path not in _RESERVED:
            yield path
            yield from _all_paths(path, depth - 1) if depth else ()


def _text(value: Any, *, sort: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=sort)
