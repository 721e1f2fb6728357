"""A pytest plugin that leads every SQLite file of the server's tests to PostgreSQL.

Each file becomes a schema of its own in the database that QIANYAN_TEST_POSTGRESQL names, so that
the tests say the same of both kinds. Loaded by test_postgresql.py with -p.
"""

import hashlib
import os
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from qianyan.server import database

URL = os.environ["QIANYAN_TEST_POSTGRESQL"]


def lead(url: str, **options: Any) -> Engine:
    """Open the schema that stands for a file."""
    schema = "t" + hashlib.sha256(url.encode()).hexdigest()[:20]
    owner = create_engine(URL, poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
    # Tests leave databases open; SQLite's are closed when they are collected, these are not pooled.
    options = {name: value for name, value in options.items() if "pool" not in name}
    options.pop("max_overflow", None)
    there = f"{URL}&options=-csearch_path%3D{schema}"
    return create_engine(there, poolclass=NullPool, **options)


database.create_engine = lead
