"""Every code that a job or an attempt can carry is explained, and every code that is explained is used."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.reasons import MEANINGS

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("store", "worker", "tid_core")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "reasons.py" and "migrations" not in path.parts
]
FIRST_ARGUMENT = {"TrainingFailure", "Ending"}
BY_KEYWORD = {"Finished", "finish", "hand_back", "crashed", "move", "let_go", "try_again"}


def codes_of(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if name in FIRST_ARGUMENT and call.args:
            yield from strings_of(call.args[0], tree)
        if name in BY_KEYWORD:
            for keyword in (one for one in call.keywords if one.arg == "reason"):
                yield from strings_of(keyword.value, tree)


def strings_of(value: ast.expr, tree: ast.Module) -> Iterator[str]:
    """What an expression can be, where it is a literal, a constant, or a name that is given literals in this file."""
    if not isinstance(value, ast.Name):
        yield from (n.value for n in ast.walk(value) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(getattr(one, "id", "") == value.id for one in node.targets):
            yield from strings_of(node.value, tree)
        if isinstance(node, ast.ImportFrom) and any(one.name == value.id for one in node.names):
            yield getattr(importlib.import_module(node.module or ""), value.id)


def test_every_code_in_use_is_explained():
    used = {code: path.name for path in SOURCES for code in codes_of(path)}
    assert len(used) > 20, "the search finds what is there"
    assert {"storage_failed", "rank_lost", "out_of_memory", "worker_lost"} <= used.keys()
    assert {code: where for code, where in used.items() if code not in MEANINGS} == {}


@pytest.mark.parametrize("code", MEANINGS)
def test_every_explained_code_is_in_use_and_fits_its_column(code):
    text = "".join(path.read_text() for path in SOURCES)
    assert f'"{code}"' in text or code.upper() in text
    assert len(code) <= 64
    assert MEANINGS[code].endswith(".")
