"""From a sweep to its jobs: every combination once, and behind them the baselines that they share.

A point is one combination of the axes' values, a choice the index of its value on each axis. Points whose jobs are the
same (but for the name) are one job: what a method does not use is left out of its job before they are compared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, Literal

from pydantic import ValidationError

from tid_core.methods import METHODS
from tid_core.preflight.problem import Problem
from tid_core.spec import JobSpec
from tid_core.sweep.axes import check_axes, place, pointer_of
from tid_core.sweep.labels import label_of, shortened
from tid_core.sweep.spec import MAX_JOBS, SEED, SweepSpec

Role = Literal["baseline", "point"]
Choice = tuple[int, ...]

_MAX_NAME: Final = 120
_MAX_ERRORS: Final = 10_000
"""Of all points together, after which no more points are looked at."""
_POINTS_NAMED: Final = 3
_OF_TEACHING: Final = {"method", "loss", "teacher", *METHODS}


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep.

    Attributes:
        values: axis to value, without the axes that make no difference to this job.
        label: what it is called beside the other settings; the same for every seed.
        baseline: place of its baseline among the jobs.
        choice: of its first point.
    """

    spec: JobSpec
    role: Role
    values: dict[str, Any]
    label: str
    baseline: int | None
    choice: Choice


@dataclass(frozen=True)
class InvalidPoint:
    """A point that is no job; `document` is what its errors are about."""

    choice: Choice
    document: dict[str, Any]
    error: ValidationError


class SweepInvalid(ValueError):
    """A sweep that cannot be expanded: its axes are wrong, or else some of its points are no jobs."""

    def __init__(self, problems: Sequence[Problem], points: Sequence[InvalidPoint] = (), num_points: int = 0) -> None:
        super().__init__(problems[0].detail if problems else f"{len(points)} points of the sweep are no jobs")
        self.problems = list(problems)
        self.points = list(points)
        self.num_points = num_points
        """How many were looked at."""


@dataclass
class _Group:
    """Points that are the same job."""

    spec: JobSpec
    choices: list[Choice] = field(default_factory=list)
    baseline: str | None = None
    is_baseline: bool = False


def expand(sweep: SweepSpec) -> list[SweepJob]:
    """The jobs in the order in which they are to run: seed by seed, and for each seed its baselines first.

    Raises:
        SweepInvalid: with every problem of the axes or, where there is none, with every point that is no job.
    """
    if problems := check_axes(sweep):
        raise SweepInvalid(problems)
    specs = _validated(sweep)
    groups = _grouped(specs)
    if problems := _alike(sweep, specs) or _too_many(groups):
        raise SweepInvalid(problems)
    return _in_order(sweep, groups)


def locate(sweep: SweepSpec, choice: Choice, parts: Sequence[str]) -> str:
    """JSON pointer into the sweep of a field of the job at `choice`: in a value of an axis, or in the base."""
    axes = [(tuple(path.split(".")), path, index) for path, index in zip(sweep.axes, choice, strict=True)]
    for names, path, index in axes:
        if tuple(parts[: len(names)]) == names:
            return pointer_of(path, index, *parts[len(names) :])
    inside = [(path, index) for names, path, index in axes if names[: len(parts)] == tuple(parts)]
    if len(inside) == 1:
        return pointer_of(*inside[0])
    return "/axes" if inside else "".join(f"/{part}" for part in ("base", *parts))


def in_points(sweep: SweepSpec, choices: Sequence[Choice], num_points: int) -> str:
    """`in 2 of 6 points: tid seed=0, tid seed=1`."""
    named = ", ".join(_point_name(sweep, choice) for choice in choices[:_POINTS_NAMED])
    return f"in {len(choices)} of {num_points} points: {named}{', ...' if len(choices) > _POINTS_NAMED else ''}"


def _point_name(sweep: SweepSpec, choice: Choice) -> str:
    values = _values(sweep, choice)
    return _with_seed(label_of(values, sweep.axes, otherwise=""), values)


def _with_seed(label: str, values: dict[str, Any]) -> str:
    return f"{label} seed={shortened(str(values[SEED]), 20)}".strip() if SEED in values else label


def _values(sweep: SweepSpec, choice: Choice) -> dict[str, Any]:
    return {path: values[index] for (path, values), index in zip(sweep.axes.items(), choice, strict=True)}


def _validated(sweep: SweepSpec) -> dict[Choice, JobSpec]:
    specs, invalid, errors = dict[Choice, JobSpec](), list[InvalidPoint](), 0
    for choice in product(*(range(len(values)) for values in sweep.axes.values())):
        document = {**sweep.base, "name": sweep.name}
        for path, value in _values(sweep, choice).items():
            document = place(document, path, value)
        try:
            specs[choice] = _lean(JobSpec.model_validate(document))
        except ValidationError as error:
            invalid.append(InvalidPoint(choice, document, error))
            errors += error.error_count()
        if errors > _MAX_ERRORS:
            break
    if invalid:
        raise SweepInvalid((), invalid, len(specs) + len(invalid))
    return specs


def _lean(spec: JobSpec) -> JobSpec:
    """The job without settings of methods that it does not use: they would make equal jobs look different."""
    if not spec.methods:
        return spec.baseline_twin()
    same = spec.model_dump(exclude=set(METHODS) - set(spec.methods))
    if "tid" not in spec.methods:
        same["loss"] = {name: value for name, value in same["loss"].items() if name not in ("high", "medium", "low")}
    return JobSpec.model_validate(same)


def _identity(spec: JobSpec) -> str:
    return spec.model_dump_json(exclude={"name"})


def _grouped(specs: dict[Choice, JobSpec]) -> dict[str, _Group]:
    """Jobs by identity; those that a job is to be compared with are marked."""
    groups: dict[str, _Group] = {}
    for choice, spec in specs.items():
        groups.setdefault(_identity(spec), _Group(spec)).choices.append(choice)
    for group in [group for group in groups.values() if group.spec.methods]:
        twin = group.spec.baseline_twin()
        identity = _identity(twin)
        if group.spec.baseline or identity in groups:
            baseline = groups.setdefault(identity, _Group(twin))
            baseline.choices += group.choices
            baseline.is_baseline, group.baseline = True, identity
    return groups


def _alike(sweep: SweepSpec, specs: dict[Choice, JobSpec]) -> list[Problem]:
    """Values of an axis that make the same jobs, whatever the other axes say."""
    identities = [(choice, _identity(spec)) for choice, spec in specs.items()]
    problems = []
    for place_of_axis, (path, values) in enumerate(sweep.axes.items()):
        rows: list[list[str]] = [[] for _ in values]
        for choice, identity in identities:
            rows[choice[place_of_axis]].append(identity)
        first: dict[tuple[str, ...], int] = {}
        for index, row in enumerate(rows):
            known = first.setdefault(tuple(row), index)
            if known != index:
                detail = f"the values {known} and {index} of {path} make the same jobs"
                expected = "values that change something: a method's settings count only where the method is used"
                field_ = pointer_of(path, index)
                problems.append(Problem(code="values_alike", field=field_, detail=detail, expected=expected))
                break
    return problems


def _too_many(groups: dict[str, _Group]) -> list[Problem]:
    if len(groups) <= MAX_JOBS:
        return []
    detail = f"with their baselines these are {len(groups)} jobs"
    return [Problem(code="too_many_jobs", field="/axes", detail=detail, expected=f"at most {MAX_JOBS} in one sweep")]


def _in_order(sweep: SweepSpec, groups: dict[str, _Group]) -> list[SweepJob]:
    seeds = list(dict.fromkeys(group.spec.training.seed for group in groups.values()))
    ordered = sorted(
        groups.items(),
        key=lambda item: (seeds.index(item[1].spec.training.seed), not item[1].is_baseline, min(item[1].choices)),
    )
    places = {identity: index for index, (identity, _) in enumerate(ordered)}
    return [_job(sweep, group, places.get(group.baseline or "")) for _, group in ordered]


def _job(sweep: SweepSpec, group: _Group, baseline: int | None) -> SweepJob:
    values = _agreed(sweep, group)
    label = label_of(values, sweep.axes, otherwise="" if group.is_baseline else group.spec.method_name)
    if group.is_baseline:
        label = f"baseline {label}".strip()
    name = shortened(f"{sweep.name} {_with_seed(label, values)}", _MAX_NAME)
    role: Role = "baseline" if group.is_baseline else "point"
    spec = group.spec.model_copy(update={"name": name})
    return SweepJob(spec, role, values, label, baseline, min(group.choices))


def _agreed(sweep: SweepSpec, group: _Group) -> dict[str, Any]:
    """The values that all points of a job share. An axis of a single value says nothing of a baseline that lacks it."""
    agreed: dict[str, Any] = {}
    for index, (path, values) in enumerate(sweep.axes.items()):
        lacks = group.is_baseline and len(values) == 1 and path.partition(".")[0] in _OF_TEACHING
        if not lacks and _are_one(choice[index] for choice in group.choices):
            agreed[path] = values[group.choices[0][index]]
    return agreed


def _are_one(indices: Iterable[int]) -> bool:
    return len(set(indices)) == 1
