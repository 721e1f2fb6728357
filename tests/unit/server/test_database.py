"""The database: made, brought up to date, refused when newer, and kept through kill -9."""

import inspect
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text

from qianyan.errors import ConfigError
from qianyan.server import batch_rows, openai_responses_kept, tasks
from qianyan.server import database as module
from qianyan.server.database import (
    DATABASE_FILE,
    Rows,
    StorageError,
    make_state_folder,
    open_database,
    utc_now,
)
from qianyan.server.files import FileRow
from qianyan.server.store import ContentStore


def a_row(number: int) -> FileRow:
    return FileRow(
        id=f"file-{number:08}",
        owner_id="k",
        purpose="vision",
        filename="a",
        size_bytes=1,
        sha256="",
        created_at=utc_now(),
        expires_at=None,
    )


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    with open_database(tmp_path).engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Rows.metadata) == []
    made = {tasks.TaskRow, batch_rows.BatchRow, openai_responses_kept.ResponseRow}
    assert {row.__tablename__ for row in made} < set(Rows.metadata.tables)


def test_sqlite_is_set_up_to_be_shared(tmp_path: Path) -> None:
    with open_database(tmp_path).reading() as session:
        found = [
            session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "busy_timeout", "foreign_keys", "synchronous")
        ]
    assert found == ["wal", 10_000, 1, 2]


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    first = open_database(tmp_path)
    with first.writing() as session:
        session.add(a_row(1))
    first.close()
    with open_database(tmp_path).reading() as session:
        assert session.scalar(select(func.count()).select_from(FileRow)) == 1


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE_FILE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ConfigError, match="written by a newer qianyan"):
        open_database(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"not a database, " * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_database(tmp_path)


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/x", "sqlite:////nowhere/at/all.db"])
def test_an_url_that_cannot_be_used_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError):
        open_database(tmp_path, url)


def test_another_url_is_used_when_given(tmp_path: Path) -> None:
    open_database(tmp_path, f"sqlite:///{tmp_path / 'other.db'}").close()
    assert (tmp_path / "other.db").is_file()
    assert not (tmp_path / DATABASE_FILE).exists()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    database = open_database(tmp_path)

    def fail() -> None:
        with database.writing() as session:
            session.add(a_row(1))
            session.flush()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(FileRow)) == 0


def test_many_threads_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    database = open_database(tmp_path)

    def write(first: int) -> None:
        for number in range(first, first + 10):
            with database.writing() as session:
                session.scalar(select(func.count()).select_from(FileRow))
                session.add(a_row(number))

    threads = [threading.Thread(target=write, args=(n * 10,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(FileRow)) == 80


def test_a_database_that_stays_locked_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0)
    database = open_database(tmp_path)
    other = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"), database.writing() as session:
        session.add(a_row(1))
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(FileRow)) == 0
    other.close()


WRITER = """
import sys
from pathlib import Path
from qianyan.server.database import open_database, utc_now
from qianyan.server.files import FileRow
"""
WRITE = """
database = open_database(Path(sys.argv[1]))
for number in range(10**6):
    with database.writing() as session:
        session.add(a_row(number))
    print(number, flush=True)
"""


def test_every_row_that_was_promised_survives_kill_9(tmp_path: Path) -> None:

    imports = (
        "from qianyan.server.database import utc_now\nfrom qianyan.server.files import FileRow\n"
    )
    (tmp_path / "tests_row.py").write_text(imports + inspect.getsource(a_row))
    (tmp_path / "writer.py").write_text(WRITER + inspect.getsource(a_row) + WRITE)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "writer.py", tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    promised = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    promised += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    with open_database(tmp_path).reading() as session:
        kept = set(session.scalars(select(FileRow.id)))
    assert {a_row(number).id for number in promised} <= kept
    assert len(kept) <= len(promised) + 1


def test_the_state_folder_is_for_its_user_only(tmp_path: Path) -> None:
    folder = make_state_folder(tmp_path / "a" / "state")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert make_state_folder(folder) == folder
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        make_state_folder(tmp_path / "file" / "state")


def test_what_is_kept_is_for_its_user_only_even_in_an_open_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    database = open_database(tmp_path)
    ContentStore(tmp_path / "files").write("file-fe-12345678", [b"secret"], max_bytes=10)
    with database.writing() as session:
        session.add(a_row(1))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.pop("files") == 0o700
    assert set(modes.values()) == {0o600}
    assert f"{DATABASE_FILE}-wal" in modes
    database.close()


def test_more_threads_than_connections_stay_open_all_come_through(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    together = threading.Barrier(module.POOL_SIZE * 4)

    def read() -> None:
        with database.reading() as session:
            session.scalar(select(func.count()).select_from(FileRow))
            together.wait(30)

    with ThreadPoolExecutor(together.parties) as threads:
        for one in [threads.submit(read) for _ in range(together.parties)]:
            one.result()
    database.close()


def test_no_free_connection_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0)
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(module, "POOL_SIZE", 1)
    database = open_database(tmp_path)
    with database.reading() as session:
        session.connection()
        with pytest.raises(StorageError, match="Try again later"), database.reading() as other:
            other.connection()
    database.close()
