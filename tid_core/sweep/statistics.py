"""The few statistics of a sweep's report, by hand: the API has no scipy. Free of torch."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Final, NamedTuple

# 97.5 % quantiles of Student's t, as in any table.
_T: Final[dict[int, float]] = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086,
    21: 2.080, 22: 2.074, 23: 2.069, 24: 2.064, 25: 2.060, 26: 2.056, 27: 2.052, 28: 2.048, 29: 2.045, 30: 2.042,
    40: 2.021, 60: 2.000, 120: 1.980,
}  # fmt: skip


class Interval(NamedTuple):
    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        return self.low <= 0.0 <= self.high


def t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; between the rows of the table, that of the row before, which is wider.

    Raises:
        ValueError: less than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {freedom}")
    rows = list(_T)
    return _T[rows[bisect_right(rows, freedom) - 1]]


def mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of the sample (n - 1); None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def interval_95(values: Sequence[float]) -> Interval | None:
    """95 % confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = t_975(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values) - half, fmean(values) + half)
