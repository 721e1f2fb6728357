"""Keep what a file is about and its MD5, and the request that put a task in line."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("files", sa.Column("description", sa.Text(), nullable=True))
    op.add_column("files", sa.Column("md5", sa.String(32), nullable=True))
    op.add_column("tasks", sa.Column("request_id", sa.String(64), nullable=True))
