"""Control: who asked for what, and workers that drain."""

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Filled in with the models that need it."""


def downgrade() -> None:
    """Filled in with the models that need it."""
