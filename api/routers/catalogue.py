"""What can be asked for: detectors, methods, recipes, and the schema of a job."""

from typing import Any

from fastapi import APIRouter

from api.schemas import DetectorOut, Items, MethodOut, RecipeOut
from tid_core.catalogue import DETECTORS
from tid_core.methods import METHODS
from tid_core.recipes import RECIPES
from tid_core.spec import JobSpec, preset

router = APIRouter()


@router.get("/detectors", tags=["detectors"], name="list")
def list_detectors() -> Items[DetectorOut]:
    """Detectors that can be a teacher or a student, with their facts."""
    return Items(data=[DetectorOut.model_validate(info) for info in DETECTORS.values()])


@router.get("/methods", tags=["methods"], name="list")
def list_methods() -> Items[MethodOut]:
    """Ways to distil, each with its source."""
    return Items(data=[MethodOut.model_validate(info) for info in METHODS.values()])


@router.get("/recipes", tags=["recipes"], name="list")
def list_recipes() -> Items[RecipeOut]:
    """Schedules that a job can name, each with all that it fills in."""
    recipes = RECIPES.values()
    return Items(data=[RecipeOut(name=r.name, title=r.title, settings=preset(r.name)) for r in recipes])


@router.get("/schemas/job", tags=["schemas"], name="job")
def job_schema() -> dict[str, Any]:
    """JSON Schema of a job, as POST /jobs takes it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}
