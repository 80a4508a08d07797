"""The migrations make the tables that the code expects, on both databases."""

import subprocess
import sys

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import CheckConstraint, delete, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from store.db import Database, db_now, make_engine
from store.models import Base, Lease
from store.upgrade import current_revision, newest_revision

UPGRADE = "import sys; from store.upgrade import upgrade; upgrade(sys.argv[1])"


def test_up_from_nothing_by_two_processes_at_once(empty_database_url):
    assert current_revision(empty_database_url) is None
    processes = [subprocess.Popen([sys.executable, "-c", UPGRADE, empty_database_url]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert current_revision(empty_database_url) == newest_revision()


def test_the_models_need_no_further_migration(database_url, monkeypatch, pytestconfig):
    monkeypatch.setenv("TID_DATABASE_URL", database_url)
    command.check(Config(str(pytestconfig.rootpath / "alembic.ini")))


def test_the_migrations_make_every_check_of_the_models(database_url):
    # Alembic does not compare CHECK constraints.
    engine = make_engine(database_url)
    for table in Base.metadata.sorted_tables:
        expected = {str(check.name) for check in table.constraints if isinstance(check, CheckConstraint)}
        found = {str(check["name"]) for check in inspect(engine).get_check_constraints(table.name)}
        assert found == expected, table.name
    engine.dispose()


def test_down_to_nothing(database_url, monkeypatch, pytestconfig):
    monkeypatch.setenv("TID_DATABASE_URL", database_url)
    command.downgrade(Config(str(pytestconfig.rootpath / "alembic.ini")), "base")
    engine = make_engine(database_url)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_a_session_for_reading_refuses_to_write(database):
    with pytest.raises(DBAPIError), database.read() as session:
        session.execute(delete(Lease))
    with database.write() as session:
        session.add(Lease(name="x", token="y", expires_at=db_now()))
    with database.read() as session:
        assert session.get_one(Lease, "x").expires_at.tzinfo is not None


def test_rows_of_a_job_go_with_it_and_cannot_be_without_it(world, running):
    with world.database.write() as session:
        session.execute(text("DELETE FROM jobs"))
        assert session.scalar(text("SELECT count(*) FROM attempts")) == 0
    orphan = "INSERT INTO resume_states VALUES ('nobody', 1, 1, 'k', 1, 1)"
    with pytest.raises(IntegrityError), world.database.write() as session:
        session.execute(text(orphan))


def test_a_failed_transaction_leaves_nothing(database: Database):
    def _fail() -> None:
        with database.write() as session:
            session.add(Lease(name="x", token="y", expires_at=db_now()))
            session.flush()
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        _fail()
    with database.read() as session:
        assert session.get(Lease, "x") is None
