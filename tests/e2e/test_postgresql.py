"""The server's tables in a real PostgreSQL: the tests of SQLite say the same there."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tests.served import serving

from qianyan.errors import ConfigError
from qianyan.server.batches import BatchRow
from qianyan.server.database import open_database
from qianyan.server.tasks import TaskLimits, Tasks

KEY = "sk-e2e-0123456789"
FOLDER = Path(__file__).parent
UNITS = FOLDER.parent / "unit" / "server"
FILES = ("tasks", "files", "batches", "task_runner", "openai_responses_store")
# What is killed are programs of their own, which have nothing of the plugin; the others take long,
# or count on a file's speed.
ELSEWHERE = "killed or no_line_is_lost or TestLine or longer_than_its_lease or at_a_time"


def find_binaries() -> Path | None:
    """Find where Debian and others put PostgreSQL's programs."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found).parent if found else debian[-1].parent if debian else None


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that only its socket leads to."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        as_user = []
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(folder, "postgres")
            as_user = ["runuser", "-u", "postgres", "--"]
        data = str(folder / "data")
        make = [str(binaries / "initdb"), "-D", data, "-U", "qianyan", "-A", "trust", "--no-sync"]
        subprocess.run([*as_user, *make, "-E", "UTF8"], check=True, capture_output=True, cwd=folder)
        control = [*as_user, str(binaries / "pg_ctl"), "-D", data, "-w"]
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        subprocess.run(
            [*control, "-o", options, "-l", f"{folder}/log", "start"], check=True, cwd=folder,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        yield f"postgresql+psycopg://qianyan@/postgres?host={folder}"
        subprocess.run(
            [*control, "-m", "fast", "stop"], check=True, capture_output=True, cwd=folder
        )


def test_the_tests_of_files_tasks_batches_and_responses_hold_there(url: str) -> None:
    files = [str(UNITS / f"test_{name}.py") for name in FILES]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"),
            *("-p", "postgresql_plugin", "-k", f"not ({ELSEWHERE})", *files),
        ],
        env={**os.environ, "QIANYAN_TEST_POSTGRESQL": url, "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 60


def test_runners_that_claim_at_once_never_claim_the_same(url: str, tmp_path: Path) -> None:
    assert BatchRow.__tablename__ == "batches", "tasks refer to that table"
    database = open_database(tmp_path, url)
    try:
        tasks = Tasks(database, TaskLimits())
        sent = {tasks.submit("owner", "chat", "m", {"number": number}).id for number in range(40)}

        def claim_all(runner: str) -> list[str]:
            claimed = []
            while (task := tasks.claim(runner)) is not None:
                claimed.append(task.id)
                tasks.succeed(task, runner, {})
            return claimed

        with ThreadPoolExecutor(4) as pool:
            claimed = [one for ids in pool.map(claim_all, "abcd") for one in ids]
        assert sorted(claimed) == sorted(sent)
    finally:
        database.close()


def test_a_server_keeps_its_files_there(url: str, tmp_path: Path) -> None:
    database = f"{url}&options=-csearch_path%3Dserved"
    owner = create_engine(url, poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(text("CREATE SCHEMA served"))
    settings = {"QIANYAN_API_KEYS": KEY, "QIANYAN_DATABASE_URL": database}
    with serving(tmp_path, **settings) as (_, address):
        sent = httpx2.post(
            f"{address}/v1/files",
            headers={"authorization": f"Bearer {KEY}"},
            files={"file": ("a.txt", b"Hard hats.")},
            data={"purpose": "file-extract"},
        )
    assert sent.status_code == 200, sent.text
    with owner.begin() as connection:
        kept = connection.execute(text("SELECT filename FROM served.files")).scalars().all()
    assert kept == ["a.txt"]
    assert not list(tmp_path.glob("*.sqlite3"))


def test_other_databases_are_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="URL"):
        open_database(tmp_path, "mysql+pymysql://host/x")
