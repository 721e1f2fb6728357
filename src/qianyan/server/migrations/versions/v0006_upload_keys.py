"""Keep the keys under which requests name uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("files", sa.Column("upload_key", sa.Text(), nullable=True))
    op.create_index("files_by_upload_key", "files", ["owner_id", "upload_key"])
