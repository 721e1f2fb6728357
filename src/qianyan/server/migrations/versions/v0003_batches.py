"""Make the table of batches; tasks may belong to one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table and the column."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("owner_id", sa.String(80), nullable=False),
        sa.Column("endpoint", sa.String(80), nullable=False),
        sa.Column("input_file_id", sa.String(80), nullable=False),
        sa.Column("completion_window", sa.String(10), nullable=False),
        sa.Column("note", sa.JSON(), nullable=True),
        sa.Column("model", sa.String(255), nullable=True),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=True),
        sa.Column("output_file_id", sa.String(80), nullable=True),
        sa.Column("error_file_id", sa.String(80), nullable=True),
        *(
            sa.Column(f"{name}_at", sa.Double(), nullable=name not in ("created", "expires"))
            for name in (
                "created",
                "expires",
                "in_progress",
                "finalizing",
                "completed",
                "failed",
                "expired",
                "cancelling",
                "cancelled",
            )
        ),
    )
    op.create_index("batches_of_owner", "batches", ["owner_id", "created_at", "id"])
    op.create_index("batches_by_state", "batches", ["state"])
    with op.batch_alter_table("tasks") as tasks:
        tasks.add_column(sa.Column("batch_id", sa.String(80), nullable=True))
        tasks.add_column(sa.Column("line", sa.Integer(), nullable=True))
        tasks.create_foreign_key("tasks_batch", "batches", ["batch_id"], ["id"], ondelete="CASCADE")
    op.create_index("tasks_of_batch", "tasks", ["batch_id", "line"])
