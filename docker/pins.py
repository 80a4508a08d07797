"""Writes docker/requirements-*.txt: every package of the images, with versions and hashes, and no package index named.

    uv run python docker/pins.py

To be run after each change of dependencies or pins in pyproject.toml; `tests/docker/test_pins.py` says when it was
forgotten.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"api": ("otel",), "worker": ("embedded", "otel")}
"""The extras of tid-service in each image; the worker's has what `tid demo` needs."""
TOOLS = ("uv==0.13.9",)
"""What builds the images, beside [build-system] of pyproject.toml."""
HEAD = "# Written by `uv run python docker/pins.py`; do not edit. Any index serves these files: the hashes tell.\n"


def requirements(image: str) -> str:
    """What the wheel of an image needs at run time, as it is locked."""
    extras = [option for extra in EXTRAS[image] for option in ("--extra", extra)]
    return _uv("export", "--no-dev", "--no-emit-project", "--no-header", "--no-annotate", *extras)


def build_requirements() -> str:
    """What makes the wheel and installs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = "\n".join([*TOOLS, *project["build-system"]["requires"]])
    options = ("--universal", "--generate-hashes", "--no-header", "--no-annotate", "--python-version")
    return _uv("pip", "compile", *options, _oldest(project), "-", given=wanted)


def _oldest(project: dict[str, dict[str, str]]) -> str:
    return project["project"]["requires-python"].removeprefix(">=")


def _uv(*arguments: str, given: str | None = None) -> str:
    command = ["uv", "--quiet", *arguments]
    return subprocess.run(command, cwd=ROOT, input=given, text=True, stdout=subprocess.PIPE, check=True).stdout


def main() -> int:
    texts = {"build": build_requirements(), **{image: requirements(image) for image in EXTRAS}}
    for name, text in texts.items():
        (ROOT / "docker" / f"requirements-{name}.txt").write_text(HEAD + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
