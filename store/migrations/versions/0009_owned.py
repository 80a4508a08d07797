"""An index that renewing a lease does not write into, in place of one on the time when leases run out."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OWNED = sa.text("lease_token IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_jobs_lease", "jobs")
    op.create_index("ix_jobs_owned", "jobs", ["worker_id"], sqlite_where=OWNED, postgresql_where=OWNED)


def downgrade() -> None:
    op.drop_index("ix_jobs_owned", "jobs")
    op.create_index("ix_jobs_lease", "jobs", ["lease_expires_at"], sqlite_where=OWNED, postgresql_where=OWNED)
