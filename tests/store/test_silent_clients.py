"""PostgreSQL and a client that falls silent in a transaction; tests/e2e/test_hosts.py has one whose host is cut off."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from store.db import Database
from store.models import Job
from tests.store.conftest import World

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def impatient(database_url: str) -> Iterator[Database]:
    database = Database(f"{database_url}&options=-c idle_in_transaction_session_timeout=200")
    yield database
    database.close()


def test_what_it_locked_is_free_soon_and_its_next_write_finds_the_database_away(
    impatient: Database, world: World, running: Any
) -> None:
    row = select(Job.id).where(Job.id == running.job_id).with_for_update()
    with impatient.writer() as silent:
        silent.execute(row)
        with world.database.write() as session:
            assert session.scalar(row) == running.job_id  # waits for the lock
        with pytest.raises(OperationalError, match="idle-in-transaction") as caught:
            silent.execute(row)
        assert caught.value.connection_invalidated
    with impatient.read() as session:
        assert session.scalar(select(Job.id)) == running.job_id


def test_the_patience_that_an_url_chooses_is_kept(impatient: Database, world: World) -> None:
    question = text("SHOW idle_in_transaction_session_timeout")
    with impatient.read() as chosen, world.database.read() as by_default:
        assert (chosen.scalar(question), by_default.scalar(question)) == ("200ms", "1min")
