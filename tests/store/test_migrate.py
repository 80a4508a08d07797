"""`tid migrate`, as a process."""

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from store.db import make_engine
from store.upgrade import current_revision, newest_revision

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, url: str, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "TID_DATABASE_URL": url, "TID_HOME": str(home), "TID_START_SECONDS": "0"}
    return subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_tables_are_made_once(empty_database_url: str, tmp_path: Path) -> None:
    made = run("store.upkeep.migrate", empty_database_url, tmp_path)
    assert (made.returncode, made.stdout) == (0, f"the tables went from none to revision {newest_revision()}\n")
    assert current_revision(empty_database_url) == newest_revision()
    again = run("store.upkeep.migrate", empty_database_url, tmp_path)
    assert (again.returncode, again.stdout) == (0, f"the tables were at revision {newest_revision()} already\n")


def test_tables_of_a_newer_version_stay_as_they_are(database_url: str, tmp_path: Path) -> None:
    engine = make_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    refused = run("store.upkeep.migrate", database_url, tmp_path)
    assert refused.returncode == 1
    assert "revision 9999" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    server = run("api", database_url, tmp_path)
    assert server.returncode == 3
    assert "9999" in server.stderr
    assert len(server.stderr.splitlines()) == 1
    assert current_revision(database_url) == "9999"


def test_a_server_without_its_tables_says_so_in_one_line(postgres_server, tmp_path: Path) -> None:
    refused = run("api", postgres_server.url("postgres"), tmp_path)
    assert refused.returncode == 3
    (line,) = refused.stderr.splitlines()
    assert "`tid migrate`" in line
    away = run("api", f"postgresql://postgres:hunter2@/x?host={tmp_path}", tmp_path)
    assert away.returncode == 3
    (line,) = away.stderr.splitlines()
    assert line.startswith("the server cannot start: ")
    assert "hunter2" not in line
