"""Seats: the further workers of a job that several train together."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "seats",
        sa.Column("job_id", sa.String(12), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(64)),
        sa.Column("port", sa.Integer()),
        sa.Column("worker_id", sa.Text()),
        sa.Column("token", sa.String(32)),
        sa.Column("lease_expires_at", sa.BigInteger()),
        sa.Column("last_rung_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("reason", sa.String(64)),
        sa.Column("detail", sa.Text()),
        sa.CheckConstraint("(token IS NULL) = (lease_expires_at IS NULL)", name=op.f("ck_seats_lease")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_seats_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "node", name=op.f("pk_seats")),
    )
    op.create_index(op.f("ix_seats_worker_id"), "seats", ["worker_id"])
    several = sa.text("nodes > 1")
    op.create_index("ix_jobs_several", "jobs", ["state", "queue"], sqlite_where=several, postgresql_where=several)


def downgrade() -> None:
    op.drop_index("ix_jobs_several", "jobs")
    op.drop_index(op.f("ix_seats_worker_id"), "seats")
    op.drop_table("seats")
