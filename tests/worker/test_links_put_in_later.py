"""A folder or a file that is exchanged for a link after it was registered leads out of no data root."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tid_core.events import TrainingFailure
from tid_core.plan import RunPlan
from worker.planning import prepare
from worker.uploads import Storage


@pytest.fixture
def placed(lite: Any, digits: Path, tmp_path: Path) -> Path:
    """The dataset in a data root of its own."""
    root: Path = tmp_path.resolve() / "roots" / "digits"
    shutil.copytree(digits, root)
    lite.settings = lite.settings.model_copy(update={"data_roots": (root.parent,)})
    lite.dataset_id = lite.register("placed", root)
    return root


@pytest.fixture
def planned(lite: Any, placed: Path, tmp_path: Path) -> Callable[..., RunPlan]:
    """What a worker makes of a job, just before it starts the training."""

    def planned(**changes: Any) -> RunPlan:
        claim = lite.claim(lite.submit(**changes), "worker-1")
        return prepare(
            claim, lite.database, lite.settings, Storage(lite.settings, claim), tmp_path / claim.job_id / "1"
        )

    return planned


def test_a_dataset(planned: Callable[..., RunPlan], placed: Path, tmp_path: Path) -> None:
    assert planned().train.images == placed
    elsewhere = tmp_path / "elsewhere"
    placed.rename(elsewhere)
    placed.symlink_to(elsewhere)
    with pytest.raises(TrainingFailure, match="is a link now, which leads out of the data roots") as caught:
        planned()
    assert caught.value.reason == "dataset_invalid"
    assert str(elsewhere) not in caught.value.detail


def test_a_teachers_file(planned: Callable[..., RunPlan], placed: Path, tmp_path: Path) -> None:
    file, secret = placed.parent / "teacher.pt", tmp_path / "secret"
    secret.write_text("of somebody else")
    file.symlink_to(secret)
    with pytest.raises(TrainingFailure, match="is a link now") as caught:
        planned(teacher={"detector": "fcos_conv5_tiny", "weights": {"file": str(file)}})
    assert caught.value.reason == "checkpoint_invalid"


def test_a_link_within_the_data_roots_is_followed(planned: Callable[..., RunPlan], placed: Path) -> None:
    """A host may keep the folder elsewhere among its data."""
    placed.rename(placed.with_name("moved"))
    placed.symlink_to(placed.with_name("moved"))
    assert planned().train.images == placed
