"""A dataset that is ready, without waiting for the indexer."""

import json
from pathlib import Path

from store import datasets
from store.artifacts import open_artifacts
from store.db import Database
from store.settings import Settings


def store_ready(name: str, database: Database, settings: Settings, looked_through: tuple[Path, Path]) -> str:
    """A dataset as the indexer leaves it; returns its id."""
    root, index = looked_through
    facts = json.loads((index / "facts.json").read_text())
    prefix = f"datasets/{name}"
    for file in index.iterdir():
        open_artifacts(settings).put(f"{prefix}/{file.name}", file)
    with database.write() as session:
        row = datasets.register(name=name, root=root, options={}, roots=[root], session=session)
        hold = datasets.hold(row.id, "validating", seconds=60, session=session)
        assert hold is not None
        datasets.finish_ready(
            hold, root=root, facts=facts, classes=facts["classes"], index_prefix=prefix, session=session
        )
    return row.id
