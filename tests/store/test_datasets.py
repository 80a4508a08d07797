"""Who works on a dataset, and what becomes of it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError

from store import datasets
from store.db import Database, make_engine
from store.errors import DatasetInUse, HoldLost, NotFound, NotUploading, UploadInProgress
from store.models import Dataset, Lease
from store.upgrade import upgrade

SECONDS = 60.0


@pytest.fixture
def new(world):
    def new(name: str = "pets", root: Path | None = None) -> str:
        with world.database.write() as session:
            roots = [root] if root else []
            return datasets.register(name=name, root=root, options={}, roots=roots, session=session).id

    return new


def take(database: Database, dataset_id: str, state: str = "validating") -> datasets.Hold | None:
    with database.write() as session:
        return datasets.hold(dataset_id, state, seconds=SECONDS, session=session)


def row(database: Database, dataset_id: str) -> Dataset:
    with database.read() as session:
        return datasets.get(dataset_id, session=session)


def expire(database: Database) -> None:
    with database.write() as session:
        session.execute(update(Lease).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))


def test_the_oldest_waits_first_and_one_process_has_it(world, new, tmp_path):
    first, second, _ = new("a", tmp_path), new("b", tmp_path), new("c")
    with world.database.read() as session:
        assert datasets.waiting(session=session) == [first, second]
    assert take(world.database, first) is not None
    assert take(world.database, first) is None
    assert take(world.database, second) is not None
    assert take(world.database, new("d")) is None, "it is uploading"
    with world.database.read() as session:
        assert datasets.held_ids(session=session) == {first, second}


def test_a_hold_that_ran_out_is_another_s_and_writes_no_more(world, new, tmp_path):
    dataset_id = new(root=tmp_path)
    stale = take(world.database, dataset_id)
    expire(world.database)
    fresh = take(world.database, dataset_id)
    assert fresh is not None
    for write in (
        lambda session: datasets.keep(stale, None, seconds=SECONDS, session=session),
        lambda session: datasets.finish_invalid(stale, [], session=session),
        lambda session: datasets.finish_ready(
            stale, root=tmp_path, facts={}, classes=[], index_prefix="i", session=session
        ),
    ):
        with pytest.raises(HoldLost), world.database.write() as session:
            write(session)
    with world.database.write() as session:
        datasets.let_go(stale, session=session)
    progress = {"phase": "checking", "done": 1, "total": 2}
    with world.database.write() as session:
        datasets.keep(fresh, progress, seconds=SECONDS, session=session)
    assert row(world.database, dataset_id).progress == progress
    assert row(world.database, dataset_id).state == "validating"


def test_what_was_found_is_kept_and_the_hold_given_up(world, new, tmp_path):
    dataset_id, facts = new(root=tmp_path), {"format": "voc", "sha256": "f" * 64, "splits": {}}
    hold = take(world.database, dataset_id)
    with world.database.write() as session:
        datasets.finish_ready(hold, root=tmp_path, facts=facts, classes=["a"], index_prefix="d/1", session=session)
    found = row(world.database, dataset_id)
    assert (found.state, found.format, found.sha256, found.classes) == ("ready", "voc", "f" * 64, ["a"])
    assert take(world.database, dataset_id) is None
    with world.database.read() as session:
        assert datasets.held_ids(session=session) == set()
    with pytest.raises(HoldLost), world.database.write() as session:
        datasets.finish_invalid(hold, [], session=session)


def test_an_upload_goes_on_to_be_validated(world, new):
    dataset_id = new()

    def begin() -> datasets.Hold:
        with world.database.write() as session:
            return datasets.hold_for_upload("pets", seconds=SECONDS, session=session)

    hold = begin()
    with pytest.raises(UploadInProgress, match="pets"):
        begin()
    with world.database.write() as session:
        datasets.finish_upload(hold, num_bytes=7, session=session)
    assert (row(world.database, dataset_id).state, row(world.database, dataset_id).bytes) == ("validating", 7)
    with pytest.raises(NotUploading, match="validating"):
        begin()
    hold = take(world.database, dataset_id)
    with world.database.write() as session:
        datasets.finish_invalid(hold, [{"code": "c", "detail": "d"}], session=session)
    assert row(world.database, dataset_id).report == [{"code": "c", "detail": "d"}]


def test_a_report_is_kept_whatever_was_in_the_files(world, new, tmp_path):
    hold = take(world.database, new(root=tmp_path))
    with world.database.write() as session:
        datasets.finish_invalid(hold, [{"code": "not_coco", "detail": "a\0b \ud800"}], session=session)
    assert row(world.database, hold.dataset_id).report == [{"code": "not_coco", "detail": "a\ufffdb ?"}]


def test_a_deleted_dataset_takes_the_hold_along(world, new, tmp_path):
    dataset_id = new(root=tmp_path)
    hold = take(world.database, dataset_id)
    with world.database.write() as session:
        datasets.delete("pets", session=session)
    with pytest.raises(HoldLost), world.database.write() as session:
        datasets.keep(hold, None, seconds=SECONDS, session=session)
    with pytest.raises(NotFound), world.database.write() as session:
        datasets.delete("pets", session=session)
    with world.database.read() as session:
        assert session.get(Lease, hold.lease) is None
    new(root=tmp_path)


def test_a_dataset_with_jobs_is_not_deleted(world):
    job = world.submit()
    with pytest.raises(DatasetInUse, match=job.id), world.database.write() as session:
        datasets.delete("digits", session=session)


def test_ready_means_that_the_index_is_known(world, new):
    new()
    with pytest.raises(IntegrityError), world.database.write() as session:
        session.execute(text("UPDATE datasets SET state = 'ready' WHERE name = 'pets'"))


def test_a_job_waits_while_its_dataset_is_looked_through(world):
    job = world.submit()
    with world.database.write() as session:
        session.execute(update(Dataset).values(state="validating"))
    assert world.claim(job.id) is None
    with world.database.write() as session:
        session.execute(update(Dataset).values(state="ready"))
    assert world.claim(job.id) is not None


OLD_ROW = (
    "INSERT INTO datasets (id, name, root, facts, classes, state, created_at) VALUES ('0123456789ab', 'digits', "
    '\'/data/digits\', \'{"name": "digits", "classes": ["a"], "splits": {}}\', \'["a"]\', \'ready\', 1)'
)


def test_datasets_of_before_are_looked_through_again(empty_database_url, monkeypatch, pytestconfig):
    upgrade(empty_database_url, "0001")
    engine = make_engine(empty_database_url)
    with engine.begin() as connection:
        connection.execute(text(OLD_ROW.replace(":", "\\:")))
    engine.dispose()
    upgrade(empty_database_url)
    database = Database(empty_database_url)
    found = row(database, "digits")
    assert (found.state, found.source, found.root, found.classes) == ("validating", "folder", "/data/digits", ["a"])
    assert (found.facts, found.options, found.report) == (None, {}, [])
    hold = take(database, found.id)
    split = {"images": 1, "boxes": 2, "box_side_histogram": []}
    facts = {"name": "digits", "format": "coco", "sha256": "f" * 64, "classes": ["a"], "splits": {"train": split}}
    with database.write() as session:
        datasets.finish_ready(hold, root=Path("/d"), facts=facts, classes=["a"], index_prefix="i", session=session)
        datasets.register(name="later", root=None, options={}, roots=[], session=session)
    database.close()
    _downgrade(empty_database_url, monkeypatch, pytestconfig)
    engine = make_engine(empty_database_url)
    with engine.connect() as connection:
        rows = {one.name: one for one in connection.execute(text("SELECT name, root, state, facts FROM datasets"))}
    engine.dispose()
    assert (rows["digits"].state, rows["later"].state, rows["later"].root) == ("ready", "invalid", "")
    assert "histogram" not in str(rows["digits"].facts)
    assert "images" in str(rows["digits"].facts)
    upgrade(empty_database_url)


def _downgrade(url, monkeypatch, pytestconfig):
    monkeypatch.setenv("TID_DATABASE_URL", url)
    command.downgrade(Config(str(pytestconfig.rootpath / "alembic.ini")), "0001")
