"""Migrations of the server's database: alembic runs them when the server starts."""
