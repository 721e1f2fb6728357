"""Run the migrations on the connection that the server opened (alembic executes this file)."""

from alembic import context

from qianyan.server.database import Rows

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Rows.metadata,
    render_as_batch=True,  # SQLite changes a table by making it anew
)
context.run_migrations()
