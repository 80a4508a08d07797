"""Documents that are mostly right, and JSON that is anything at all."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tid_core.methods import METHODS
from tid_core.recipes import RECIPES
from tid_core.spec import JobSpec

Document = dict[str, Any]

SMALL = ("fcos_resnet18_small", "retinanet_resnet18_small", "fcos_conv5_tiny")
LARGE = ("fcos_resnet50_fpn", "retinanet_resnet50_fpn")
NAMES = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
"""Halves of surrogate pairs and control characters among them."""
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**31, 2**53, 2**63, 10**400, -1, 0, 1e308, 5e-324]))


def anything() -> SearchStrategy[Any]:
    """Any JSON value, with the NaN and Infinity that many parsers take."""
    leaves = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | _objects(inner), max_leaves=8)


def _objects(values: SearchStrategy[Any]) -> SearchStrategy[Document]:
    return st.dictionaries(TEXTS, values, max_size=3)


def jobs(datasets: Sequence[str] = ("pets",), teachers: Sequence[str] = ()) -> SearchStrategy[Document]:
    """Jobs that are mostly accepted: plain trainings, and distillations."""
    job = st.sampled_from([None, *({"job": teacher} for teacher in teachers)])
    student = st.fixed_dictionaries({"detector": st.sampled_from(SMALL)}, optional={"weights": job})
    plain = {"student": student, "dataset": st.sampled_from(datasets)}
    by_job = st.fixed_dictionaries({"weights": job.filter(bool)}) if teachers else st.nothing()
    by_name = st.fixed_dictionaries({"detector": st.sampled_from(LARGE), "weights": st.just("COCO_V1")})
    taught = {
        "student": st.fixed_dictionaries({"detector": st.sampled_from((*LARGE, *SMALL))}),
        "dataset": st.sampled_from(datasets),
        "teacher": by_name | by_job,
        "method": st.sampled_from(sorted(METHODS)) | st.lists(st.sampled_from(sorted(METHODS)), min_size=1, max_size=3),
    }
    optional = _sections()
    distillation = st.fixed_dictionaries(taught, optional={**optional, "baseline": st.booleans()})
    return st.fixed_dictionaries(plain, optional=optional) | distillation


def _sections() -> dict[str, SearchStrategy[Any]]:
    return {
        "name": NAMES,
        "recipe": st.sampled_from([*sorted(RECIPES), None]),
        "loss": st.fixed_dictionaries({}, optional={"distill": st.floats(0, 1e300), "task": st.floats(1e-300, 9)}),
        "training": st.fixed_dictionaries({}, optional=_training()),
        "evaluation": st.fixed_dictionaries({}, optional={"maps": st.integers(0, 64), "teacher": st.booleans()}),
        "resources": st.fixed_dictionaries({}, optional={"gpus": st.integers(0, 64)}),
    }


def _training() -> dict[str, SearchStrategy[Any]]:
    return {
        "epochs": st.integers(1, 10_000),
        "batch_size": st.integers(1, 64),
        "lr": st.floats(5e-324, 1.7e308),
        "seed": st.integers(0, 2**32 - 1),
        "milestones": st.lists(st.floats(0, 1), max_size=3),
    }


@st.composite
def damaged(draw: st.DrawFn, documents: SearchStrategy[Document]) -> Any:
    """A document with anything in place of one of its values, or one more."""
    document = draw(documents)
    here: Any = document
    while isinstance(here, dict) and here and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(here)))
        if not isinstance(here[key], dict) or draw(st.booleans()):
            here[key] = draw(anything())
            return document
        here = here[key]
    if isinstance(here, dict):
        here[draw(st.sampled_from(sorted(JobSpec.model_fields)) | TEXTS)] = draw(anything())
    return document


def sweeps(datasets: Sequence[str] = ("pets",)) -> SearchStrategy[Document]:
    """Sweeps that are mostly accepted, of few jobs."""
    axes = st.fixed_dictionaries(
        {"training.seed": st.lists(st.integers(0, 99), min_size=1, max_size=2)},
        optional={
            "training.lr": st.lists(st.floats(1e-6, 1), min_size=1, max_size=2),
            "loss": st.lists(st.fixed_dictionaries({"distill": st.floats(0, 9)}), min_size=1, max_size=2),
            "method": st.lists(st.sampled_from(sorted(METHODS)), min_size=1, max_size=2),
        },
    )
    return st.fixed_dictionaries({"name": NAMES, "base": jobs(datasets), "axes": axes})


def folders(roots: Sequence[str]) -> SearchStrategy[Document]:
    """Datasets to register, of few names, so that few are looked through."""
    root = st.none() | st.sampled_from(roots)
    return st.fixed_dictionaries({"name": st.sampled_from(["waiting", "a", "b"])}, optional={"root": root})
