"""API keys, and the record of who wrote what."""

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Filled in with the models that need it."""


def downgrade() -> None:
    """Filled in with the models that need it."""
