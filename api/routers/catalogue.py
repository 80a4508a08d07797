"""What can be asked for: detectors, methods, and the schema of a job."""

from typing import Any

from fastapi import APIRouter

from api.schemas import DetectorOut, Items, MethodOut
from tid_core.catalogue import DETECTORS, METHODS
from tid_core.spec import JobSpec

router = APIRouter()


@router.get("/detectors", tags=["detectors"], name="list")
def list_detectors() -> Items[DetectorOut]:
    """Detectors that can be a teacher or a student, with their facts."""
    return Items(data=[DetectorOut.model_validate(info) for info in DETECTORS.values()])


@router.get("/methods", tags=["methods"], name="list")
def list_methods() -> Items[MethodOut]:
    """Ways to distil, each with its source."""
    return Items(data=[MethodOut.model_validate(info) for info in METHODS.values()])


@router.get("/schemas/job", tags=["schemas"], name="job")
def job_schema() -> dict[str, Any]:
    """JSON Schema of a job, as POST /jobs takes it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}
