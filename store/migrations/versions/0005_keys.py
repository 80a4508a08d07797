"""API keys, and the record of who wrote what."""

import sqlalchemy as sa
from alembic import op

MICROSECONDS = sa.BigInteger()
ID = sa.String(length=12)
MADE = ("jobs", "sweeps", "datasets")
"""Tables whose rows name the key that asked for them."""

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", MICROSECONDS, nullable=False),
        sa.Column("expires_at", MICROSECONDS, nullable=True),
        sa.Column("revoked_at", MICROSECONDS, nullable=True),
        sa.Column("last_used_at", MICROSECONDS, nullable=True),
        sa.Column("rate_per_minute", sa.Integer(), nullable=True),
        sa.Column("max_jobs", sa.Integer(), nullable=True),
        sa.Column("max_gpus", sa.Integer(), nullable=True),
        sa.CheckConstraint("scope IN ('read', 'write', 'admin')", name=op.f("ck_api_keys_scope")),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_table(
        "audit",
        sa.Column("id", ID, nullable=False),
        sa.Column("at", MICROSECONDS, nullable=False),
        sa.Column("key_id", ID, nullable=True),
        sa.Column("peer", sa.String(length=64), nullable=True),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("target", sa.String(length=64), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at_id", "audit", ["at", "id"])
    for table in MADE:  # a column that may be null is added in place, also by SQLite
        op.add_column(table, sa.Column("created_by", ID, nullable=True))
    op.create_index("ix_jobs_created_by_state", "jobs", ["created_by", "state"])


def downgrade() -> None:
    op.drop_index("ix_jobs_created_by_state", "jobs")
    for table in MADE:
        with op.batch_alter_table(table) as batch:
            batch.drop_column("created_by")
    op.drop_table("audit")
    op.drop_table("api_keys")
