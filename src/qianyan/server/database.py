"""The server's database: one SQLite file in the state folder, or PostgreSQL by URL.

SQLite runs with a write-ahead log, so that reading never waits for writing, and every commit is
on disk when it returns: what was promised survives kill -9. A transaction that writes takes the
lock when it begins (one that began by reading could not take it later without failing), and waits
for it as long as BUSY_TIMEOUT_S. In PostgreSQL an advisory lock does the same, so that writers see
what the one before has written there too. Tables are made and brought up to date by alembic when
the database is opened; a database of a newer qianyan is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Dialect, Double, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from qianyan.errors import ConfigError
from qianyan.server.errors import RefusedError

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
DATABASE_FILE = "server.sqlite3"
BUSY_TIMEOUT_S = 10
MAX_CONNECTIONS, POOL_SIZE = 64, 5
"""How many may be open, more than there are threads that use them, and how many stay open."""
RETRY_AFTER_S = 5
WRITERS_LOCK = 0x7169616E79616E
"""The number of the advisory lock in PostgreSQL: "qianyan" in hexadecimal."""


class StorageError(RefusedError):
    """The database or the disk does not take or give what it should: locked, full, unreadable."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503, code="storage_failed", retry_after_s=RETRY_AFTER_S)


class NotFoundError(RefusedError):
    """What was asked for is not there, or belongs to another key, which is not told apart."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404, code="not_found")


class QuotaError(RefusedError):
    """What was sent is larger than is taken, or its owner has no room for it."""

    def __init__(self, message: str, *, code: str = "quota_exceeded") -> None:
        super().__init__(message, status=413, code=code)


class ConflictError(RefusedError):
    """What was asked for cannot be done in the state that the thing is in."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400, code="wrong_state")


class Rows(DeclarativeBase):
    """What every table's rows are made of."""


class UtcTime(TypeDecorator[datetime]):
    """A time, kept as seconds since 1970 and read as an aware datetime in UTC."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> float | None:
        """Write a time as seconds."""
        return None if value is None else value.timestamp()

    def process_result_value(self, value: float | None, _dialect: Dialect) -> datetime | None:
        """Read seconds as a time."""
        return None if value is None else datetime.fromtimestamp(value, UTC)


def utc_now() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


def make_state_folder(folder: Path) -> Path:
    """Make the folder of all state, for this user's eyes only; ConfigError when it cannot be."""
    chosen = folder.expanduser()
    try:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The state folder {chosen} cannot be made ({error.strerror}). "
            "Name another one with --state-dir."
        ) from error
    return chosen


class Database:
    """Transactions on the server's tables; safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        writing = engine.execution_options(begin="BEGIN IMMEDIATE")
        self._reading = sessionmaker(engine, expire_on_commit=False)
        self._writing = sessionmaker(writing, expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that only reads; StorageError when the database fails."""
        with _told(), self._reading.begin() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that writes; all of it is on disk at the end, or none of it.

        Raises StorageError when the database fails or stays locked.
        """
        with _told(), self._writing.begin() as session:
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise RefusedError(
            "A value of the request holds what the database does not keep; expected text without "
            "NUL characters.",
            status=400,
            code="invalid_value",
        ) from error
    except (DBAPIError, NoConnectionError) as error:
        raise StorageError(
            "The server's database cannot be used now: it is locked, full or damaged. "
            "Try again later."
        ) from error


def open_database(state: Path, url: str | None = None) -> Database:
    """Open the database and bring its tables up to date.

    Args:
        state: the state folder, where the SQLite file lies when no URL is given.
        url: an SQLAlchemy URL of another database, SQLite or PostgreSQL.

    Raises:
        ConfigError: the database cannot be opened, or a newer qianyan wrote it.
    """
    try:
        if url is None:
            (state / DATABASE_FILE).touch(mode=0o600)  # its other files take that over
        engine = create_engine(
            url or f"sqlite:///{state / DATABASE_FILE}",
            hide_parameters=True,  # errors go to the log, rows do not
            max_overflow=MAX_CONNECTIONS - POOL_SIZE,
            pool_size=POOL_SIZE,
            pool_timeout=BUSY_TIMEOUT_S,
        )
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        elif engine.dialect.name == "postgresql":
            _prepare_postgresql(engine)
        else:
            raise ConfigError(
                f"The database URL is one of {engine.dialect.name}; expected one of sqlite or "
                "postgresql+psycopg."
            )
        database = Database(engine)
        with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
            _upgrade(connection)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ConfigError(
            "The database URL is none that can be used; expected for instance "
            "postgresql+psycopg://user@host/qianyan, with the driver it names installed "
            "(pip install 'qianyan[postgresql]')."
        ) from error
    except (DBAPIError, OSError) as error:
        raise ConfigError(
            "The server's database cannot be opened: it is locked, damaged or not to be written. "
            "Check the file in the state folder, or name another folder with --state-dir."
        ) from error
    return database


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: see `begin`
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.execute(f"SET lock_timeout = {BUSY_TIMEOUT_S * 1000}")
        connection.commit()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if "begin" in connection.get_execution_options():
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(
            "The server's database was written by a newer qianyan. "
            "Upgrade qianyan, or name another folder with --state-dir."
        ) from error
