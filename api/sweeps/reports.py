"""The comparison of a sweep: each setting over its seeds, and against the baseline of the same seed."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from sqlalchemy.orm import Session

from api.sweeps.runs import Run, read_runs
from api.sweeps.schemas import Remark, SweepReport, SweepRow, SweepRun
from store import sweeps
from store.models import Job, Sweep
from store.states import ENDED
from tid_core.sweep import SEED
from tid_core.sweep.statistics import deviation, interval_95, mean

_POINT = 0.01
"""A point of AP."""
_NOT_IN_CSV = {"runs", "point"}


def build_report(sweep: Sweep, *, session: Session) -> SweepReport:
    runs = {run.job.id: run for run in read_runs(sweep.id, session=session)}
    states = Counter(run.job.state for run in runs.values())
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs.values(), key=lambda run: run.job.sweep_role != "baseline"):
        groups.setdefault(run.row, []).append(run)
    rows = [_row(group, runs) for group in groups.values()]
    teacher_ap, teacher_reason = _teacher(runs.values(), complete=set(states) <= ENDED)
    return SweepReport(
        sweep_id=sweep.id,
        name=sweep.name,
        state=sweeps.state_of(states),
        complete=set(states) <= ENDED,
        done=sum(number for state, number in states.items() if state in ENDED),
        total=states.total(),
        teacher_ap=teacher_ap,
        teacher_reason=teacher_reason,
        gpu_seconds_total=sum(run.gpu_seconds for run in runs.values()),
        rows=rows,
    )


def as_csv(report: SweepReport) -> str:
    """A line for every row; APs are fractions, and what is not known is empty."""
    columns = [name for name in SweepRow.model_fields if name not in _NOT_IN_CSV]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([getattr(row, name) for name in columns] for row in report.rows)
    return text.getvalue()


def _row(group: Sequence[Run], runs: dict[str, Run]) -> SweepRow:
    job = group[0].job
    done = [run for run in group if run.ap is not None]
    pairs = [(run, runs[run.job.baseline_job_id]) for run in done if run.job.baseline_job_id in runs]
    pairs = [(run, baseline) for run, baseline in pairs if baseline.ap is not None]
    gains = [_gain(run, baseline) for run, baseline in pairs]
    interval = interval_95(gains)
    extra, extra_reason = _extra(pairs, gains)
    baseline_of_first = runs.get(job.baseline_job_id or "")
    return SweepRow(
        label=job.sweep_label or "",
        role=job.sweep_role or "point",
        point={path: value for path, value in (job.sweep_point or {}).items() if path != SEED},
        method=job.method,
        baseline=baseline_of_first.job.sweep_label if baseline_of_first else None,
        teacher_ap=next((run.teacher_ap for run in group if run.teacher_ap is not None), None),
        runs_done=len(done),
        runs_total=len(group),
        ap_mean=mean([run.ap for run in done if run.ap is not None]),
        ap_sd=deviation([run.ap for run in done if run.ap is not None]),
        ap50_mean=mean([run.ap50 for run in done if run.ap50 is not None]),
        pairs=len(pairs),
        gain_mean=mean(gains),
        gain_low=interval.low if interval else None,
        gain_high=interval.high if interval else None,
        gain_reason=_why_no_gain(job, len(pairs)),
        wins=sum(gain > 0 for gain in gains),
        remark=_remark(gains),
        gpu_seconds=mean([run.gpu_seconds for run in done]),
        extra_gpu_seconds_per_point=extra,
        extra_reason=extra_reason,
        runs=[_sweep_run(run, runs) for run in group],
    )


def _sweep_run(run: Run, runs: dict[str, Run]) -> SweepRun:
    baseline = runs.get(run.job.baseline_job_id or "")
    known = run.ap is not None and baseline is not None and baseline.ap is not None
    return SweepRun(
        seed=run.job.spec["training"]["seed"],
        job_id=run.job.id,
        state=run.job.state.value,
        ap=run.ap,
        ap50=run.ap50,
        baseline_job_id=run.job.baseline_job_id,
        gain=_gain(run, baseline) if known and baseline is not None else None,
        gpu_seconds=run.gpu_seconds,
    )


def _gain(run: Run, baseline: Run) -> float:
    return (run.ap or 0.0) - (baseline.ap or 0.0)


def _remark(gains: Sequence[float]) -> Remark | None:
    interval = interval_95(gains)
    if interval is None:
        return None
    if interval.has_zero:
        return "no difference shown"
    return "better" if interval.low > 0 else "worse"


def _why_no_gain(job: Job, pairs: int) -> str | None:
    if job.sweep_role == "baseline":
        return "this is the baseline"
    if job.baseline_job_id is None:
        return "there is no baseline to compare with"
    if pairs == 0:
        return "no seed has succeeded both here and in the baseline"
    return "an interval needs at least two seeds; there is one" if pairs == 1 else None


def _extra(pairs: Sequence[tuple[Run, Run]], gains: Sequence[float]) -> tuple[float | None, str | None]:
    gain = mean(gains)
    if gain is None:
        return None, "there is no gain to pay for"
    if gain <= 0:
        return None, "the mean gain is not positive"
    seconds = mean([run.gpu_seconds - baseline.gpu_seconds for run, baseline in pairs]) or 0.0
    return seconds / (gain / _POINT), None


def _teacher(runs: Iterable[Run], *, complete: bool) -> tuple[float | None, str | None]:
    taught = [run for run in runs if run.job.spec.get("teacher") is not None]
    teachers = {json.dumps(run.job.spec["teacher"], sort_keys=True) for run in taught}
    if len(teachers) > 1:
        return None, "there are several teachers; see the rows"
    known = next((run.teacher_ap for run in taught if run.teacher_ap is not None), None)
    if known is not None:
        return known, None
    if not taught:
        return None, "no job of the sweep has a teacher"
    if not any(run.job.spec["evaluation"]["teacher"] for run in taught):
        return None, "the jobs were submitted with `evaluation.teacher: false`"
    return None, f"no job has evaluated the teacher{'' if complete else ' yet'}"
