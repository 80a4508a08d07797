"""docker/requirements-*.txt belong to pyproject.toml, hold everything, and name no package index."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"api": {"otel"}, "worker": {"embedded", "otel", "worker"}}
AGAIN = "run `uv run python docker/pins.py`"


def pinned(name: str) -> dict[str, set[str]]:
    """Versions by package; more than one where the version of Python decides."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / f"docker/requirements-{name}.txt").read_text().splitlines():
        if match := re.match(r"([a-z0-9.-]+)(?:\[[^]]*\])?==([^ ;]+)", line):
            found.setdefault(canonicalize_name(match[1]), set()).add(match[2])
    return found


def direct(extras: set[str]) -> list[Requirement]:
    table = PROJECT["project"]
    wanted = [*table["dependencies"], *(text for extra in extras for text in table["optional-dependencies"][extra])]
    requirements = [Requirement(text) for text in wanted]
    return [one for one in requirements if one.name != "tid-service"]


def below(requirements: list[Requirement]) -> Iterator[Requirement]:
    """What they need, and what that needs, as far as it is installed here."""
    seen, todo = set[tuple[str, str]](), list(requirements)
    while todo:
        one = todo.pop()
        yield one
        for extra in ("", *sorted(one.extras)):
            if (key := (canonicalize_name(one.name), extra)) in seen:
                continue
            seen.add(key)
            todo += [need for need in _needs(one.name) if need.marker is None or need.marker.evaluate({"extra": extra})]


def _needs(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:  # for another platform, or another version of Python
        return []


@pytest.mark.parametrize("image", EXTRAS)
def test_every_package_of_an_image_is_there_at_the_tested_version(image: str) -> None:
    found = pinned(image)
    missing = {one.name for one in below(direct(EXTRAS[image])) if canonicalize_name(one.name) not in found}
    assert not missing, f"{missing} are needed; {AGAIN}"
    for one in direct(EXTRAS[image]):
        for version in found[canonicalize_name(one.name)]:
            assert one.specifier.contains(version), f"{one} allows no {version}; {AGAIN}"
    _agree(found, PROJECT["tool"]["uv"]["constraint-dependencies"])


def test_what_builds_the_images_is_what_was_tested() -> None:
    found = pinned("build")
    for text in PROJECT["build-system"]["requires"]:
        one = Requirement(text)
        (version,) = found[canonicalize_name(one.name)]
        assert one.specifier.contains(version), AGAIN
    _agree(found, PROJECT["tool"]["uv"].get("build-constraint-dependencies", []))
    assert "uv" in found


def _agree(found: dict[str, set[str]], constraints: list[str]) -> None:
    for constraint in map(Requirement, constraints):
        versions = found.get(canonicalize_name(constraint.name), set())
        assert all(constraint.specifier.contains(version) for version in versions), f"{constraint}: {AGAIN}"


@pytest.mark.parametrize("name", ["api", "worker", "build"])
def test_hashes_say_what_may_come_and_no_index_is_named(name: str) -> None:
    text = (ROOT / f"docker/requirements-{name}.txt").read_text()
    assert not re.search(r"://|^-|\.whl|\.tar", text, re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.partition("\n")[2]):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


def test_the_api_is_free_of_torch() -> None:
    assert not {name for name in pinned("api") if re.match("torch|nvidia|cuda|triton|numpy|scikit", name)}
