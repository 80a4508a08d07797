"""Which tid-service this is: the version that is installed, and the revision of its source where that is known."""

import re
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Final

_TREE: Final = Path(__file__).resolve().parents[1]


def version() -> str:
    """As the tags of the source say it (docs/releasing.md); 0 where nothing was ever installed."""
    try:
        return installed("tid-service")
    except PackageNotFoundError:
        return "0"


def described() -> str:
    """Version, revision and whether files differ from it: `0.2.0`, or `0.2.1.dev3, revision 18cc50ab2, changed`.

    What runs in a clone is what is checked out there now, not what was when it was installed. The revision of a
    release is its tag.
    """
    number, _, local = version().partition("+")
    told = _of_clone() if (_TREE / ".git").exists() else _of_build(local)
    return ", ".join([number, *told])


def _of_build(local: str) -> list[str]:
    found = re.fullmatch(r"g(?P<revision>[0-9a-f]+)(?P<date>\.d\d+)?", local)
    if found is None:
        return []
    return [f"revision {found['revision']}", *(["changed"] if found["date"] else [])]


def _of_clone() -> list[str]:
    command = ["git", "-C", str(_TREE), "describe", "--always", "--dirty", "--abbrev=9", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or a clone of somebody else
        return []
    revision, _, is_dirty = done.stdout.strip().partition("-")
    return [f"revision {revision}", *(["changed"] if is_dirty else [])]
