"""Datasets, workers and logs."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from store import datasets, logs, workers
from store.errors import NameTaken, NotFound, OutsideRoots
from store.models import Worker


@pytest.fixture
def register(world, tmp_path):
    (tmp_path / "data" / "bccd").mkdir(parents=True)

    def _register(root=tmp_path / "data" / "bccd", name="bccd"):
        with world.database.write() as session:
            return datasets.register(name=name, root=root, options={}, roots=[tmp_path / "data"], session=session)

    return _register


def test_a_dataset_is_found_by_name_and_by_id(world, register):
    dataset = register()
    for key in ("bccd", dataset.id):
        with world.database.read() as session:
            found = datasets.get(key, session=session)
        assert (found.id, found.state, found.source) == (dataset.id, "validating", "folder")
    with pytest.raises(NotFound), world.database.read() as session:
        datasets.get("coco", session=session)
    with world.database.read() as session:
        assert [row.name for row in datasets.page(session=session)] == ["bccd", "digits"]


def test_a_name_belongs_to_one_dataset(register):
    first = register()
    with pytest.raises(NameTaken, match=f"{first.id}; choose another name"):
        register()


@pytest.mark.parametrize(
    ("state", "way"), [("invalid", "delete it"), ("uploading", "send its archive with the same options, delete it")]
)
def test_a_taken_name_says_how_to_have_it(register, world, state, way):
    first = register()
    with world.database.write() as session:
        datasets.get(first.id, session=session).state = state
    with pytest.raises(NameTaken, match=rf"\({state}\); {way}, or choose another name"):
        register()


def test_links_and_dots_do_not_lead_out_of_the_roots(register, tmp_path):
    outside = tmp_path / "secret"
    outside.mkdir()
    (tmp_path / "data" / "link").symlink_to(outside)
    (tmp_path / "data-of-others").mkdir()
    for root in ("data/link", "data/../secret", "data-of-others", "secret"):
        with pytest.raises(OutsideRoots, match="TID_DATA_ROOTS"):
            register(root=tmp_path / root)
    assert register(root=tmp_path / "data" / "link" / ".." / "data" / "bccd").root == str(tmp_path / "data" / "bccd")


def test_a_worker_is_online_while_it_is_heard_of(world):
    def online() -> list[bool]:
        with world.database.read() as session:
            return [seen.online for seen in workers.seen(heartbeat_seconds=5.0, session=session)]

    def beat() -> bool:
        with world.database.write() as session:
            return workers.heartbeat("w", current_job=None, telemetry={"load": 1.0}, session=session)

    def sign_on() -> None:
        with world.database.write() as session:
            workers.register("w", hostname="h", pid=1, queues=["default"], device={"kind": "cpu"}, session=session)

    assert not beat()
    sign_on()
    assert online() == [True]
    with world.database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert online() == [False]
    assert beat()
    assert online() == [True]
    with world.database.write() as session:
        workers.sign_off("w", session=session)
    assert not beat()
    assert online() == [False]
    sign_on()
    assert online() == [True]


def test_a_log_is_read_in_pieces_that_join_to_the_whole(world, running):
    text = "".join(f"line {i}: Δloss → 0.{i}\n" for i in range(5000))
    for first in range(0, len(text), 30_000):
        with world.database.write() as session:
            logs.append(running, text[first : first + 30_000], cap_bytes=1 << 20, session=session)
    pieces, offset = [], 0
    while True:
        with world.database.read() as session:
            page = logs.read(running.job_id, offset=offset, limit_bytes=9_999, session=session)
        if not page.text:
            break
        assert page.start == offset
        assert len(page.text.encode()) <= 9_999
        pieces.append(page.text)
        offset = page.end
    assert "".join(pieces) == text
    assert page.size == len(text.encode())
    with world.database.read() as session:
        assert logs.tail(running.job_id, num_lines=2, session=session) == "\n".join(text.splitlines()[-2:])


def test_a_log_beyond_its_cap_keeps_its_end_and_its_offsets(world, running):
    for number in range(40):
        with world.database.write() as session:
            logs.append(running, f"{number:03d}" + "x" * 996 + "\n", cap_bytes=10_000, session=session)
    with world.database.read() as session:
        page = logs.read(running.job_id, session=session)
    assert (page.start, page.end, page.size) == (30_000, 40_000, 40_000)
    assert page.text.startswith("030x")
    with world.database.read() as session:
        assert logs.read("0" * 12, session=session) == ("", 0, 0, 0)


def test_a_log_takes_what_databases_refuse(world, running):
    with world.database.write() as session:
        logs.append(running, "a\0b\udc80c", cap_bytes=1 << 20, session=session)
    with world.database.read() as session:
        assert logs.read(running.job_id, session=session).text == "a\ufffdb?c"
