"""What was measured since an instant, for those who follow a job: live, or come back after a while."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import CTE, func, select
from sqlalchemy.orm import Session

from store.models import Metric, MetricLatest


class Measured(NamedTuple):
    step: int
    epoch: int
    attempt: int
    name: str
    value: float


class Newest(NamedTuple):
    """The newest point of a series, and when it was written."""

    name: str
    at: datetime
    step: int
    epoch: int
    value: float


def newest(job_ids: Collection[str], *, session: Session) -> dict[str, list[Newest]]:
    """By job; no series is read for it."""
    row = MetricLatest
    statement = select(row.job_id, row.name, row.at, row.step, row.epoch, row.value).where(row.job_id.in_(job_ids))
    found: dict[str, list[Newest]] = {job_id: [] for job_id in job_ids}
    for job_id, name, at, step, epoch, value in session.execute(statement):
        found[job_id].append(Newest(name, at, step, epoch, value))
    return found


def measured(job_id: str, after: datetime, until: datetime, *, limit: int, session: Session) -> list[Measured]:
    """Points that were written after one instant and not after another, the newest first, at most `limit`.

    Points that were written anew, by a later attempt that began further back, are among them.
    """
    news = _news(job_id, after)
    beyond = (Metric.step > news.c.known, Metric.step <= news.c.step)
    statement = select(Metric.step, Metric.epoch, Metric.attempt, Metric.name, Metric.value)
    statement = statement.join(news, (Metric.name == news.c.name) & beyond[0] & beyond[1])
    statement = statement.where(Metric.job_id == job_id, ~Metric.superseded, Metric.at > after, Metric.at <= until)
    rows = session.execute(statement.order_by(Metric.at.desc(), Metric.step.desc()).limit(limit))
    return [Measured(*row) for row in rows]


def _news(job_id: str, after: datetime) -> CTE:
    """The series that have news, with the last step that is none.

    The valid points of a series were written in the order of their steps: what a later attempt does not repeat is
    superseded. So the news are the end of a series, and looking back from there is cheap however long it is.
    """
    latest = MetricLatest
    old = select(Metric.step).where(Metric.job_id == latest.job_id, Metric.name == latest.name)
    old = old.where(Metric.step <= latest.step, ~Metric.superseded, Metric.at <= after)
    known = old.order_by(Metric.step.desc()).limit(1).correlate(latest).scalar_subquery()
    statement = select(latest.name, latest.step, func.coalesce(known, -1).label("known"))
    # Materialised, so that no database looks back once for each point.
    return statement.where(latest.job_id == job_id, latest.at > after).cte("news").prefix_with("MATERIALIZED")
