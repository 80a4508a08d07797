"""A job's spec on disk, and what is wrong with it, told without a server."""

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from api.validation import field_problems
from client.errors import ClientError, describe_error
from tid_core.spec import JobSpec

Spec = TypeVar("Spec", bound=BaseModel)


class SpecError(ClientError):
    """The file is no spec; `problems` has one line per field."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{path} has {count}", *(f"  - {problem}" for problem in problems)]))


def read_document(path: Path, kind: type[BaseModel] = JobSpec) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, not yet checked to be of this kind, but fit to be sent as JSON.

    Raises:
        ClientError: no such file, not YAML, not a mapping, or a value that JSON cannot hold.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ClientError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ClientError(f"{path} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ClientError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(document, dict):
        raise ClientError(f"{path} must hold a mapping such as `student: {{detector: ...}}`")
    try:
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # YAML also knows dates, .nan, bytes and references to itself
        parse_as(kind, path, document)
        raise ClientError(f"{path} holds a value that JSON has no form for: {error}") from error
    return document


def parse(path: Path, document: dict[str, Any]) -> JobSpec:
    """The spec, every default filled in.

    Raises:
        SpecError: a field is unknown, missing or out of range.
    """
    return parse_as(JobSpec, path, document)


def parse_as(kind: type[Spec], path: Path, document: dict[str, Any]) -> Spec:
    """As `parse`, for any kind of document."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        problems = field_problems(located, document)
        raise SpecError(path, [describe_error(one.model_dump()) for one in problems]) from error


def preflight(spec: JobSpec) -> list[tuple[str, str]]:
    """(severity, text) of what does not fit, as far as it shows without a server.

    The dataset is looked at where `dataset` is a folder on this machine.
    """
    from tid_core.facts import DatasetError, read_facts
    from tid_core.preflight import check

    facts, found = None, list[tuple[str, str]]()
    if Path(spec.dataset).is_dir():
        try:
            facts = read_facts(Path(spec.dataset), spec.dataset, check_images=False)
        except DatasetError as error:
            found.append(("error", f"/dataset: {error}"))
    problems = check(spec, dataset=facts, teacher=None)
    return found + [(one.severity, describe_error(one.model_dump())) for one in problems]
