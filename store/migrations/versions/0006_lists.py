"""Lists: indices that hold what jobs and datasets are found and ordered by, so that a page reads its own rows alone."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_jobs_created_at_id", "jobs")
    columns = ["created_at", "id", "state", "method", "queue", "sweep_id", "name"]
    op.create_index("ix_jobs_list", "jobs", columns)
    op.create_index("ix_datasets_list", "datasets", ["created_at", "id", "state"])


def downgrade() -> None:
    op.drop_index("ix_datasets_list", "datasets")
    op.drop_index("ix_jobs_list", "jobs")
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
