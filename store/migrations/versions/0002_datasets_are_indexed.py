"""Datasets are indexed: states, a report, and where the index lies. Those that are known are indexed anew."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
STATES = "state IN ('uploading', 'validating', 'ready', 'invalid')"
OLD_STATES = "state IN ('ready', 'invalid')"
READY = "state <> 'ready' OR (root IS NOT NULL AND facts IS NOT NULL AND index_prefix IS NOT NULL)"
OLD_SPLIT_FACTS = (
    "images", "boxes", "empty_images", "per_class", "box_side", "image_short_side", "image_long_side",
    "images_checked", "problems",
)  # fmt: skip

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DATASETS = sa.table(
    "datasets",
    sa.column("id", sa.String),
    sa.column("name", sa.String),
    sa.column("source", sa.String),
    sa.column("root", sa.Text),
    sa.column("state", sa.String),
    sa.column("options", JSON),
    sa.column("report", JSON),
    sa.column("facts", JSON),
)


def upgrade() -> None:
    with op.batch_alter_table("datasets") as batch:
        batch.drop_constraint(op.f("ck_datasets_state"), type_="check")
        batch.add_column(sa.Column("source", sa.String(length=16), nullable=True))
        batch.add_column(sa.Column("options", JSON, nullable=True))
        batch.add_column(sa.Column("progress", JSON, nullable=True))
        batch.add_column(sa.Column("report", JSON, nullable=True))
        batch.add_column(sa.Column("format", sa.String(length=16), nullable=True))
        batch.add_column(sa.Column("sha256", sa.String(length=64), nullable=True))
        batch.add_column(sa.Column("bytes", sa.BigInteger(), nullable=True))
        batch.add_column(sa.Column("index_prefix", sa.Text(), nullable=True))
        batch.alter_column("root", existing_type=sa.Text(), nullable=True)
        batch.alter_column("facts", existing_type=JSON, nullable=True)
    # Classes stay: jobs rely on their order, and the index is compared with it.
    op.execute(_DATASETS.update().values(source="folder", options={}, report=[], facts=None, state="validating"))
    with op.batch_alter_table("datasets") as batch:
        for name, kind in (("source", sa.String(length=16)), ("options", JSON), ("report", JSON)):
            batch.alter_column(name, existing_type=kind, nullable=False)
        batch.create_check_constraint(op.f("ck_datasets_state"), STATES)
        batch.create_check_constraint(op.f("ck_datasets_source"), "source IN ('folder', 'archive')")
        batch.create_check_constraint(op.f("ck_datasets_ready"), READY)


def downgrade() -> None:
    """What is not ready becomes invalid: before this revision there was no other word for it."""
    with op.batch_alter_table("datasets") as batch:
        for name in ("state", "source", "ready"):
            batch.drop_constraint(op.f(f"ck_datasets_{name}"), type_="check")
    for row in op.get_bind().execute(sa.select(_DATASETS)).all():
        values = {"root": row.root or "", "facts": _old_facts(row), "state": "ready" if row.facts else "invalid"}
        op.execute(_DATASETS.update().where(_DATASETS.c.id == row.id).values(values))
    with op.batch_alter_table("datasets") as batch:
        for name in ("source", "options", "progress", "report", "format", "sha256", "bytes", "index_prefix"):
            batch.drop_column(name)
        batch.alter_column("root", existing_type=sa.Text(), nullable=False)
        batch.alter_column("facts", existing_type=JSON, nullable=False)
        batch.create_check_constraint(op.f("ck_datasets_state"), OLD_STATES)


def _old_facts(row: Any) -> dict[str, Any]:
    facts = row.facts or {"classes": [], "splits": {}}
    splits = {
        name: {key: split[key] for key in OLD_SPLIT_FACTS if key in split} for name, split in facts["splits"].items()
    }
    return {"name": row.name, "classes": facts["classes"], "splits": splits}
