"""Series thinned and logs cut at any place, on both databases: beside the plainest way to say what comes out."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import claims, jobs, logs, metrics
from store.db import Database
from store.fencing import Claim
from store.metrics import Point, Sample
from store.models import Dataset
from tid_core.spec import JobSpec

FUZZ = settings.get_profile("fuzz")
STEPS = st.lists(st.integers(0, 60) | st.integers(0, 2**62), unique=True, min_size=1, max_size=60)
VALUES = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = count()


@pytest.fixture
def running(database: Database) -> Claim:
    with database.write() as session:
        dataset = Dataset(name="digits", source="folder", state="ready", root="/data", index_prefix="i")
        dataset.facts, dataset.classes = {}, ["zero"]
        session.add(dataset)
        session.flush()
        spec = JobSpec.model_validate({"student": {"detector": "fcos_conv5_tiny"}, "dataset": "digits"})
        job = jobs.create(spec, dataset_id=dataset.id, session=session).job
        claim = claims.claim(job.id, "worker-1", lease_seconds=3600, session=session)
    assert claim is not None
    return claim


def another(database: Database, running: Claim) -> Claim:
    """Of a job of its own for each example, in the same database."""
    with database.write() as session:
        row = jobs.get(running.job_id, session=session)
        spec = JobSpec.model_validate(row.spec)
        job = jobs.create(spec, dataset_id=row.dataset_id, session=session).job
        claim = claims.claim(job.id, "worker-1", lease_seconds=3600, session=session)
    assert claim is not None
    return claim


@given(steps=STEPS, data=st.data(), max_points=st.integers(2, 20), since=st.none() | st.integers(-1, 2**62))
@FUZZ
def test_a_thinned_series_keeps_its_ends_and_its_peaks(
    database: Database, running: Claim, steps: list[int], data: st.DataObject, max_points: int, since: int | None
) -> None:
    name = f"series/{next(NUMBERS)}"
    told = {step: data.draw(VALUES) for step in steps}
    with database.write() as session:
        metrics.record(running, [Point(name, step, 0, value) for step, value in told.items()], session=session)
    with database.read() as session:
        whole = metrics.read(running.job_id, name, since_step=since, session=session)
        thin = metrics.read(running.job_id, name, since_step=since, max_points=max_points, session=session)
        latest = metrics.latest(running.job_id, session=session)[name]
    floor = -1 if since is None else since
    assert whole == [Sample(step, 0, told[step]) for step in sorted(steps) if step > floor]
    assert latest == Sample(max(steps), 0, told[max(steps)])
    assert len(thin) <= max_points
    assert set(thin) <= set(whole)
    assert thin == sorted(set(thin))
    if len(whole) <= max_points:
        assert thin == whole
        return
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    if max_points >= 4:
        values = [sample.value for sample in whole]
        assert {min(values), max(values)} <= {sample.value for sample in thin}


TEXTS = st.text(st.characters(exclude_categories=()), max_size=40)


@given(
    texts=st.lists(TEXTS, max_size=6),
    offset=st.integers(-200, 200) | st.integers(-(2**53), 2**53),
    limit=st.integers(4, 60),
)
@FUZZ
def test_a_log_is_read_from_any_byte_without_splitting_a_character(
    database: Database, running: Claim, texts: list[str], offset: int, limit: int
) -> None:
    claim = another(database, running)
    for text in texts:
        with database.write() as session:
            logs.append(claim, text, cap_bytes=1 << 20, session=session)
    whole = "".join(texts).replace("\0", "\ufffd").encode(errors="replace")
    with database.read() as session:
        page = logs.read(claim.job_id, offset=offset, limit_bytes=limit, session=session)
        pieces, at = [], 0
        while (piece := logs.read(claim.job_id, offset=at, limit_bytes=limit, session=session)).text:
            assert (piece.start, piece.size) == (at, len(whole))
            assert len(piece.text.encode()) == piece.end - piece.start <= limit
            pieces.append(piece.text)
            at = piece.end
    assert "".join(pieces).encode() == whole
    assert page.text.encode() == whole[page.start : page.end]
    wanted = min(max(len(whole) + offset, 0) if offset < 0 else offset, len(whole))
    assert 0 <= page.start - wanted <= 3
    assert page.end <= len(whole)
