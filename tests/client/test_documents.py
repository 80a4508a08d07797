"""Commands that the documents tell people to type."""

import re
from pathlib import Path

import pytest
import typer

from client.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docker/**/*.md")])
COMMAND = re.compile(
    r"(?:^|`|&& |\bapi |--no-project )(?:uv run )?tid ([a-z][a-z-]*)(?: ([a-z][a-z-]*)(?![\w./-]))?", re.MULTILINE
)
"""The first two words of each, at the beginning of a line or of code."""
MESSAGES = {"already"}
"""What follows `tid` where the documents repeat what it says."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_is_one_of_tid(page: Path) -> None:
    known = vars(typer.main.get_command(app))["commands"]
    for first, second in COMMAND.findall(page.read_text()):
        assert first in known or first in MESSAGES, f"tid {first}"
        within = vars(known[first]).get("commands") if first in known else None
        assert within is None or not second or second in within, f"tid {first} {second}"


def test_they_are_found() -> None:
    found = {first for page in PAGES for first, _ in COMMAND.findall(page.read_text())}
    assert {"up", "submit", "workers", "doctor", "backup", "keys"} <= found
