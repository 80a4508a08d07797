"""Sweeps: jobs that were submitted together, and what each of them is in its sweep."""

import sqlalchemy as sa
from alembic import op

MICROSECONDS = sa.BigInteger()
ROLES = "sweep_role IN ('baseline', 'point')"

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(length=12), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_at", MICROSECONDS, nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_hash", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
        sa.UniqueConstraint("idempotency_key", name="uq_sweeps_idempotency_key"),
    )
    op.create_index("ix_sweeps_created_at_id", "sweeps", ["created_at", "id"])
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("sweep_id", sa.String(length=12), nullable=True))
        batch.add_column(sa.Column("sweep_role", sa.String(length=16), nullable=True))
        batch.add_column(sa.Column("sweep_label", sa.String(length=120), nullable=True))
        batch.add_column(sa.Column("sweep_point", sa.JSON(), nullable=True))
        batch.create_foreign_key("fk_jobs_sweep_id", "sweeps", ["sweep_id"], ["id"], ondelete="SET NULL")
        batch.create_check_constraint(op.f("ck_jobs_sweep_role"), ROLES)
        batch.create_index("ix_jobs_sweep_id", ["sweep_id"])


def downgrade() -> None:
    """Jobs stay; that they belonged together is forgotten."""
    with op.batch_alter_table("jobs") as batch:
        batch.drop_index("ix_jobs_sweep_id")
        batch.drop_constraint(op.f("ck_jobs_sweep_role"), type_="check")
        batch.drop_constraint("fk_jobs_sweep_id", type_="foreignkey")
        for name in ("sweep_id", "sweep_role", "sweep_label", "sweep_point"):
            batch.drop_column(name)
    op.drop_table("sweeps")
