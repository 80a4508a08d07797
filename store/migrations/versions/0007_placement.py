"""Placement: what jobs need of a worker, and what workers have."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

WANTED = {"gpus_wanted": "0", "min_gpu_memory_mib": "0", "nodes": "1"}
HAD = {"gpus": "0", "gpu_memory_mib": "0"}

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Workers that run on are known to have GPUs when they are started anew."""
    for table, columns in (("jobs", WANTED), ("workers", HAD)):
        for name, default in columns.items():  # the default stays: a worker of the version before knows no such column
            op.add_column(table, sa.Column(name, sa.Integer(), nullable=False, server_default=default))
    jobs = sa.table(
        "jobs", sa.column("spec", sa.JSON().with_variant(JSONB(), "postgresql")), sa.column("gpus_wanted", sa.Integer())
    )
    wanted = jobs.c.spec["resources"]["gpus"].as_integer()
    device = jobs.c.spec["training"]["device"].as_string()
    op.execute(jobs.update().where(wanted > 1, device != "cpu").values(gpus_wanted=wanted))
    op.execute(jobs.update().where(wanted <= 1, device == "cuda").values(gpus_wanted=1))


def downgrade() -> None:
    for table, columns in (("workers", HAD), ("jobs", WANTED)):
        with op.batch_alter_table(table) as batch:
            for name in columns:
                batch.drop_column(name)
