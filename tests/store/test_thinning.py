"""A thinned series against the whole one, for any steps and values."""

from collections.abc import Iterable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import metrics
from store.ids import new_id
from store.metrics import Point, Sample

# Dense runs and wide gaps, values that repeat, rise, fall and jump.
STEPS = st.lists(st.one_of(st.integers(0, 60), st.integers(0, 10**12)), min_size=1, max_size=60, unique=True)
VALUES = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(allow_nan=False, allow_infinity=False, width=32))


def ranges(whole: list[Sample], max_points: int) -> Iterable[list[Sample]]:
    """The points of each of the equally wide ranges of steps whose extremes are kept."""
    count = (max_points - 2) // 2
    first = whole[0].step
    width = (whole[-1].step - first) // count + 1 if count else 0
    for number in range(count):
        low = first + number * width
        if inside := [sample for sample in whole if low <= sample.step < low + width]:
            yield inside


@given(data=st.data(), steps=STEPS, max_points=st.integers(2, 40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_thinning_keeps_ends_and_extremes_and_invents_nothing(world, running, data, steps, max_points):
    name = new_id()
    values = data.draw(st.lists(VALUES, min_size=len(steps), max_size=len(steps)))
    since = data.draw(st.one_of(st.none(), st.integers(-1, max(steps) - 1)))
    points = [Point(name, step, 1, value) for step, value in zip(steps, values, strict=True)]
    with world.database.write() as session:
        metrics.record(running, points, session=session)
    with world.database.read() as session:
        whole = metrics.read(running.job_id, name, since_step=since, session=session)
        thinned = metrics.read(running.job_id, name, since_step=since, max_points=max_points, session=session)
    wanted = sorted((step, value) for step, value in zip(steps, values, strict=True) if since is None or step > since)
    assert [(sample.step, sample.value) for sample in whole] == wanted
    if len(whole) <= max_points:
        assert thinned == whole
        return
    assert len(thinned) <= max_points
    assert [sample for sample in whole if sample in set(thinned)] == thinned
    assert (thinned[0], thinned[-1]) == (whole[0], whole[-1])
    for inside in ranges(whole, max_points):
        kept = [sample.value for sample in thinned if sample in inside]
        assert (min(kept), max(kept)) == (min(s.value for s in inside), max(s.value for s in inside))
    if max_points >= 4:
        assert min(s.value for s in thinned) == min(s.value for s in whole)
        assert max(s.value for s in thinned) == max(s.value for s in whole)
