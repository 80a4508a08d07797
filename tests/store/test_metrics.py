"""Series: written once whatever happens, read whole or thinned without losing a peak."""

import math
import random

import pytest

from store import metrics
from store.metrics import Point

NAME = "loss/total"


def record(world, claim, steps, *, name=NAME, value=float):
    with world.database.write() as session:
        metrics.record(claim, [Point(name, step, step // 10, value(step)) for step in steps], session=session)


def read(world, claim, name=NAME, **options):
    with world.database.read() as session:
        return metrics.read(claim.job_id, name, session=session, **options)


def test_a_batch_that_is_sent_twice_counts_once_and_its_last_value_holds(world, running):
    record(world, running, range(5))
    record(world, running, range(3, 8), value=lambda step: step + 0.5)
    assert [(s.step, s.epoch, s.value) for s in read(world, running)] == [
        (0, 0, 0.0), (1, 0, 1.0), (2, 0, 2.0), (3, 0, 3.5), (4, 0, 4.5), (5, 0, 5.5), (6, 0, 6.5), (7, 0, 7.5),
    ]  # fmt: skip
    assert [s.step for s in read(world, running, since_step=5)] == [6, 7]
    with world.database.read() as session:
        assert metrics.latest(running.job_id, session=session)[NAME].step == 7


def test_a_late_batch_does_not_set_the_latest_value_back(world, running):
    record(world, running, [10])
    record(world, running, [9])
    with world.database.read() as session:
        assert metrics.latest(running.job_id, session=session)[NAME] == (10, 1, 10.0)


def test_a_batch_holds_any_names_steps_and_numbers(world, running):
    names = ["a,b", '"', "{}", "NULL", "\\", "%s", "?", "é", "a\0b"]
    points = [Point(name, step, 0, value) for name in names for step, value in ((0, 1), (1, 0.1), (2**40, -5e-324))]
    with world.database.write() as session:
        metrics.record(running, points, session=session)
    for name in names:
        series = read(world, running, name.replace("\0", "\ufffd"))
        assert [(s.step, s.value) for s in series] == [(0, 1.0), (1, 0.1), (2**40, -5e-324)], name


def test_values_that_are_not_finite_are_left_out(world, running):
    values = [1.0, math.nan, math.inf, -math.inf, 2.0]
    record(world, running, range(5), value=lambda step: values[step])
    assert [s.value for s in read(world, running)] == [1.0, 2.0]


def test_what_a_dead_attempt_measured_beyond_the_resume_is_superseded(world, running):
    record(world, running, range(1, 31))
    record(world, running, [10, 20, 30], name="val/AP", value=lambda step: step / 100)
    assert world.job(running.job_id).best_ap == 0.3
    world.expire(running.job_id)
    second = world.start(running.job_id, resumed_from_step=20)

    assert [s.step for s in read(world, second)] == list(range(1, 21))
    assert [s.step for s in read(world, second, max_points=4)][-1] == 20
    assert world.job(second.job_id).best_ap == 0.2
    with world.database.read() as session:
        assert metrics.latest(second.job_id, session=session)["val/AP"] == (20, 2, 0.2)

    # Every other step this time: what is not measured again stays set aside.
    record(world, second, range(22, 41, 2), value=lambda step: -step)
    assert [s.step for s in read(world, second)] == [*range(1, 21), *range(22, 41, 2)]
    assert [s.value for s in read(world, second, since_step=20)] == [-float(step) for step in range(22, 41, 2)]


def test_an_attempt_from_the_start_supersedes_everything(world, running):
    record(world, running, [0, 1, 2])
    record(world, running, [0], name="teacher/AP", value=lambda _: 0.7)
    world.expire(running.job_id)
    second = world.start(running.job_id, resumed_from_step=0)
    with world.database.read() as session:
        assert metrics.names(second.job_id, session=session) == []
    record(world, second, [0], name="teacher/AP", value=lambda _: 0.6)
    assert [s.value for s in read(world, second, "teacher/AP")] == [0.6]
    assert read(world, second) == []


def test_a_thinned_series_keeps_its_ends_its_extremes_and_nothing_invented(world, running):
    draw = random.Random(0)
    steps = sorted(draw.sample(range(100_000), 900))
    values = {step: draw.gauss(0, 1) for step in steps}
    values[steps[441]], values[steps[442]] = 99.0, -99.0
    record(world, running, steps, value=lambda step: values[step])
    for max_points in (2, 3, 4, 17, 100):
        thinned = read(world, running, max_points=max_points)
        assert max_points // 2 <= len(thinned) <= max_points
        assert (thinned[0].step, thinned[-1].step) == (steps[0], steps[-1])
        assert [s.step for s in thinned] == sorted({s.step for s in thinned})
        assert all(values[s.step] == s.value for s in thinned)
        assert max_points < 4 or {99.0, -99.0} <= {s.value for s in thinned}


def test_each_range_of_a_thinned_series_keeps_its_own_extremes(world, running):
    record(world, running, range(1000), value=lambda step: (step * 7919) % 1009)
    every = {s.step: s.value for s in read(world, running)}
    thinned = {s.step: s.value for s in read(world, running, max_points=22)}
    for low in range(0, 1000, 100):
        whole = [every[step] for step in range(low, low + 100)]
        kept = [value for step, value in thinned.items() if low <= step < low + 100]
        assert (min(kept), max(kept)) == (min(whole), max(whole))


def test_a_short_series_is_given_whole(world, running):
    record(world, running, range(20))
    assert len(read(world, running, max_points=20)) == 20
    assert len(read(world, running, max_points=20, since_step=9)) == 10
    with pytest.raises(ValueError, match="at least 2"):
        read(world, running, max_points=1)
