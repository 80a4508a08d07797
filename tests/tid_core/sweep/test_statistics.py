"""The statistics against numbers worked out by hand, and against another implementation."""

import math
from statistics import fmean, stdev

import pytest

from tid_core.sweep.statistics import deviation, interval_95, mean, t_975


def test_three_differences_by_hand() -> None:
    # Mean 2, deviations -1, 0, 1, so the sample's deviation is 1; t with two degrees of freedom is 4.303.
    half = 4.303 / math.sqrt(3)
    assert mean([1.0, 2.0, 3.0]) == 2.0
    assert deviation([1.0, 2.0, 3.0]) == 1.0
    assert interval_95([1.0, 2.0, 3.0]) == pytest.approx((2.0 - half, 2.0 + half))


def test_two_differences_make_a_wide_interval() -> None:
    # Half of the distance is the standard error: the interval is 1.5 +- 12.706 / 2.
    interval = interval_95([1.0, 2.0])
    assert interval == pytest.approx((1.5 - 6.353, 1.5 + 6.353))
    assert interval is not None
    assert interval.has_zero


def test_equal_differences_leave_no_doubt() -> None:
    interval = interval_95([0.25, 0.25, 0.25])
    assert interval == (0.25, 0.25)
    assert interval is not None
    assert not interval.has_zero


def test_too_few_say_nothing() -> None:
    assert (mean([]), deviation([]), interval_95([])) == (None, None, None)
    assert (mean([3.0]), deviation([3.0]), interval_95([3.0])) == (3.0, None, None)
    with pytest.raises(ValueError, match="degree of freedom"):
        t_975(0)


@pytest.mark.parametrize("freedom", [*range(1, 31), 40, 60, 120])
def test_the_table_is_students(freedom: int) -> None:
    """97.5 % of the distribution lies below: its density, integrated by Simpson's rule."""
    log_front = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)

    def density(x: float) -> float:
        return math.exp(log_front - (freedom + 1) / 2 * math.log1p(x * x / freedom))

    steps, end = 20_000, t_975(freedom)
    width = end / steps
    inner = sum((4 if index % 2 else 2) * density(index * width) for index in range(1, steps))
    below = 0.5 + width / 3 * (density(0) + inner + density(end))
    assert below == pytest.approx(0.975, abs=3e-5)


def test_between_its_rows_the_wider_one_counts() -> None:
    assert t_975(35) == t_975(30)
    assert t_975(59) == t_975(40)
    assert t_975(10_000) == t_975(120)
    values = [float(value % 7) for value in range(50)]
    interval = interval_95(values)
    assert interval is not None
    assert interval.high - fmean(values) > 1.96 * stdev(values) / math.sqrt(50)
