"""Everything that the description of the API promises, tried by schemathesis with every check it has."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic_core.core_schema import ErrorType
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.engine import events, from_schema
from schemathesis.openapi.checks import RejectedPositiveData

from tests.fuzz import documents
from tests.fuzz.seeded import Known

ALL = frozenset({"examples", "coverage", "fuzzing", "stateful"})
LONG = 20
"""Examples from which on time does not matter."""
PROBLEM = {"type", "title", "status", "detail", "code", "errors", "request_id"}
LISTS_OF_TEXT = {"name", "method"}
_IN_QUERY = re.compile(r"Invalid component: parameters? ([`\w, ]+) in query")
# What pydantic checks, JSON Schema can say as well; `value_error` is said by a function over several fields.
IN_SCHEMA = frozenset(get_args(ErrorType)) - {"value_error"}


@dataclass
class Outcome:
    requests: Counter[str] = field(default_factory=Counter)
    """By phase."""
    statuses: Counter[int] = field(default_factory=Counter)
    failures: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """A way to see each again, by operation, title and the beginning of the message."""

    def __str__(self) -> str:
        total = sum(self.requests.values())
        head = f"{total} requests {dict(self.requests)}, answers {dict(sorted(self.statuses.items()))}"
        return "\n\n".join([head, *(f"{' | '.join(key)}\n{how}" for key, how in self.failures.items())])


def hammer(
    app: FastAPI,
    known: Known,
    *,
    examples: int,
    phases: Collection[str] = ALL,
    key: str | None = None,
    with_keys: bool = True,
    without: Collection[str] = (),
) -> Outcome:
    """Try the API of a running application.

    Args:
        examples: of each operation in the phase `fuzzing`, and scenarios in `stateful`.
        key: sent with each request, but for those that are to be refused without.
        with_keys: leave what makes keys in: the first key closes the door.
        without: names of checks that cannot hold here.
    """
    config = schemathesis.Config.from_dict(_config(known, examples, phases, key, without))
    described = app.openapi()
    schema = schemathesis.openapi.from_dict(described if with_keys else _without_keys(described), config=config)
    schema.app = app
    schema.hook(filter_failure)
    schema.hook("flatmap_case")(_with_plausible_bodies(known))
    outcome = Outcome()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            outcome.failures[event.label, "not tried", str(event.value)] = event.info.format()
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished):
            _note(event, outcome)
    return outcome


def _without_keys(described: Mapping[str, Any]) -> dict[str, Any]:
    """As a server is that lets all in who reach it."""
    paths = {
        path: {method: {**operation, "security": []} for method, operation in operations.items()}
        for path, operations in described["paths"].items()
        if not path.startswith("/keys")
    }
    return {**described, "paths": paths}


def _config(
    known: Known, examples: int, phases: Collection[str], key: str | None, without: Collection[str]
) -> dict[str, Any]:
    names = known.by_parameter()
    generation = {"max-examples": examples, "deterministic": True, "database": "none", "no-shrink": examples < LONG}
    return {
        "seed": 1,
        "continue-on-failure": True,
        "generation": generation,
        "phases": {name: {"enabled": name in phases} for name in ALL},
        "checks": {name: {"enabled": False} for name in without},
        "base-url": "http://127.0.0.1",
        "auth": {"openapi": {"key": {"bearer": key}}} if key else {},
        # A stream of events ends with its job, and most jobs here never end.
        "max-stream-events": 3,
        "request-timeout": 10,
        "dictionaries": {name: {"values": list(values)} for name, values in names.items()},
        "parameters": {f"path.{name}": {"dictionary": name, "probability": 0.7} for name in names},
        "operations": [
            # There is no broker, and its description says that this is a 503.
            {
                "include-path": "/readyz",
                "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]}},
            },
            # Every value of every setting of a job: two thirds of all the time.
            {"include-name": "POST /jobs", "phases": {"coverage": {"enabled": examples >= LONG}}},
        ],
    }


def filter_failure(
    context: schemathesis.HookContext, failure: Exception, case: schemathesis.Case, response: schemathesis.Response
) -> bool:
    """A request that fits the schema may be refused for what no schema can say, and for nothing else.

    One that does not fit is taken where it cannot be told from one that does: `?name=a` is a list of one name.
    """
    if isinstance(failure, AcceptedNegativeData):
        wrong = _IN_QUERY.search(failure.message)
        return wrong is None or not set(re.findall(r"`(\w+)`", wrong[1])) <= LISTS_OF_TEXT
    if not isinstance(failure, RejectedPositiveData) or response.status_code != 422:
        return True
    problem = response.json()
    codes = {error["code"] for error in problem["errors"]} or {problem["code"]}
    return problem["code"] == "request_invalid" and not codes.isdisjoint(IN_SCHEMA)


def _with_plausible_bodies(known: Known) -> Callable[[Any, schemathesis.Case], SearchStrategy[schemathesis.Case]]:
    """What the schema allows is hardly ever a job that is accepted, and only what is accepted leads on."""
    bodies = {
        "POST /jobs": documents.jobs(known.datasets, known.jobs),
        "POST /sweeps": documents.sweeps(known.datasets),
        "POST /datasets": documents.folders([known.root, "/etc"]),
        "PUT /datasets/{name_or_id}/archive": st.just(known.archive),
    }

    def flatmap_case(context: Any, case: schemathesis.Case) -> SearchStrategy[schemathesis.Case]:
        body = bodies.get(case.operation.label)
        if body is None or not case.meta or not case.meta.generation.mode.is_positive:
            return st.just(case)
        return st.just(case) | body.map(lambda drawn: _with_body(case, drawn))

    return flatmap_case


def _with_body(case: schemathesis.Case, body: Any) -> schemathesis.Case:
    case.body = body
    return case


@schemathesis.check
def errors_are_problem_details(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Whatever goes wrong is told in one form, with the id under which the log has it."""
    headers = {name.lower(): values[0] for name, values in response.headers.items()}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"]
    if response.status_code < 400 or case.method == "HEAD" or "dependencies" in response.text:
        return
    assert headers["content-type"] == "application/problem+json", headers["content-type"]
    problem = response.json()
    assert set(problem) == PROBLEM
    assert (problem["status"], problem["request_id"]) == (response.status_code, headers["x-request-id"])
    assert problem["detail"]
    json.dumps(problem, allow_nan=False).encode()


def _note(event: events.ScenarioFinished, outcome: Outcome) -> None:
    recorder = event.recorder
    outcome.requests[event.phase.value] += len(recorder.interactions)
    for interaction in recorder.interactions.values():
        if interaction.response is not None:
            outcome.statuses[interaction.response.status_code] += 1
    for case_id, failure, how in _failures(event):
        operation = recorder.cases[case_id].value.operation.label
        interaction = recorder.interactions.get(case_id)
        answer = interaction.response.text[:500] if interaction is not None and interaction.response else ""
        key = (operation, failure.title, str(failure.message)[:120])
        outcome.failures.setdefault(key, f"{failure.message}\n{how}\n{answer}")


def _failures(event: events.ScenarioFinished) -> Iterator[tuple[str, Any, str]]:
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                yield case_id, check.failure_info.failure, check.failure_info.code_sample
