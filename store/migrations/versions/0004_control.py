"""Control: priorities, the order in which jobs wait, failures that a retry forgives, and workers that drain."""

import sqlalchemy as sa
from alembic import op

WAITING = ["state", "queue", "priority", "created_at", "id"]

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("forgiven", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("traceparent", sa.String(length=55), nullable=True))
        batch.create_check_constraint(op.f("ck_jobs_priority"), "priority BETWEEN 0 AND 9")
        batch.drop_index("ix_jobs_state_priority_created_at")
        batch.create_index("ix_jobs_waiting", WAITING)
    with op.batch_alter_table("jobs") as batch:
        batch.alter_column("forgiven", existing_type=sa.Integer(), existing_nullable=False, server_default=None)
    op.create_index("ix_attempts_outcome_reason", "attempts", ["outcome", "reason"])
    with op.batch_alter_table("workers") as batch:
        batch.add_column(sa.Column("draining", sa.String(length=16), nullable=True))
        batch.create_check_constraint(op.f("ck_workers_draining"), "draining IN ('now', 'wait')")


def downgrade() -> None:
    """Jobs stay in their states, all of which were known before; what drains is forgotten."""
    with op.batch_alter_table("workers") as batch:
        batch.drop_constraint(op.f("ck_workers_draining"), type_="check")
        batch.drop_column("draining")
    op.drop_index("ix_attempts_outcome_reason", table_name="attempts")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_index("ix_jobs_waiting")
        batch.create_index("ix_jobs_state_priority_created_at", ["state", "priority", "created_at"])
        batch.drop_constraint(op.f("ck_jobs_priority"), type_="check")
        batch.drop_column("traceparent")
        batch.drop_column("forgiven")
