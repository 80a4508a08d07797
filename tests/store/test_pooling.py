"""What a pooler between the service and PostgreSQL asks of connections; docs/scaling.md has what was tried with one."""

import pytest
from sqlalchemy import text

from store.db import Database

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.mark.parametrize(("query", "prepared"), [("", True), ("&prepare_threshold=none", False)])
def test_statements_are_prepared_unless_the_url_says_otherwise(database_url, query, prepared):
    database = Database(database_url + query)
    with database.read() as session:
        for _ in range(8):  # psycopg prepares what it sees for the sixth time
            session.execute(text("SELECT 1"))
        names = session.scalars(text("SELECT name FROM pg_prepared_statements")).all()
    database.close()
    assert bool(names) is prepared


def test_a_threshold_that_is_no_number_is_refused(database_url):
    with pytest.raises(ValueError, match="prepare_threshold=often in the URL of the database: write a number, or none"):
        Database(f"{database_url}&prepare_threshold=often")


def test_nobody_finds_a_connection_that_was_not_to_be_kept(database_url):
    database = Database(database_url, keep_connections=False)
    backend = text("SELECT pg_backend_pid()")
    with database.read() as session:
        first = session.scalar(backend)
    with database.read() as session:
        assert session.scalar(backend) != first
    database.close()
