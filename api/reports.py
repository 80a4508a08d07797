"""The comparison: student against its no-distillation twin and its teacher, each at its best evaluation."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.schemas import ClassGain, ErrorFigures, Figures, Report
from api.views import job_cost
from store import metrics
from store.models import Checkpoint, Job, Metric
from store.states import ENDED
from tid_core.error_kinds import ERROR_KINDS

_CLASS_PREFIX = "class/"
_CLASS_SUFFIX = "/AP"


@dataclass(frozen=True)
class _Evaluation:
    """One COCO evaluation out of the metrics of a job."""

    stats: dict[str, float]
    per_class: dict[str, float]
    errors: dict[str, ErrorFigures]


def build_report(job: Job, *, session: Session) -> Report:
    """Read everything the report needs; figures that are not known (yet) say why."""
    baseline_job = session.get(Job, job.baseline_job_id) if job.baseline_job_id else None
    student = _own_figures(job, session=session)
    baseline = _own_figures(baseline_job, session=session) if baseline_job else _nothing(_why_no_baseline(job))
    teacher = _teacher_figures(job, session=session)
    gain, recovery, reason = _gains(student, baseline, teacher)
    return Report(
        job_id=job.id,
        state=job.state.value,
        complete=job.state in ENDED and (baseline_job is None or baseline_job.state in ENDED),
        student=student,
        baseline=baseline,
        teacher=teacher,
        gain=gain,
        recovery=recovery,
        reason=reason,
        per_class=_per_class(student, baseline, teacher),
    )


def _gains(student: Figures, baseline: Figures, teacher: Figures) -> tuple[float | None, float | None, str | None]:
    if student.ap is None or baseline.ap is None:
        return None, None, student.reason or baseline.reason
    gain = student.ap - baseline.ap
    if teacher.ap is None:
        return gain, None, teacher.reason
    if teacher.ap <= baseline.ap:
        return gain, None, "the teacher is no better than the baseline, so there is nothing to recover"
    return gain, gain / (teacher.ap - baseline.ap), None


def _own_figures(job: Job, *, session: Session) -> Figures:
    """What the job's own student reached."""
    best = session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.name == "best").limit(1)
    ).first()
    facts = job.run_facts or {}
    evaluation = _evaluation(job.id, "val/", None if best is None else best.step, session=session)
    ap = evaluation.stats.get("AP") if best is None or best.ap is None else best.ap
    return Figures(
        job_id=job.id,
        detector=job.spec["student"]["detector"],
        parameters=facts.get("student_parameters"),
        ap=ap,
        ap50=evaluation.stats.get("AP50"),
        stats=evaluation.stats or None,
        per_class=evaluation.per_class or None,
        errors=evaluation.errors or None,
        cost=job_cost(job.id, session=session),
        reason=None if ap is not None else _why_no_figures(job),
    )


def _teacher_figures(job: Job, *, session: Session) -> Figures:
    spec = job.spec.get("teacher")
    if spec is None:
        return _nothing("the job has no teacher")
    teacher_job = session.get(Job, job.teacher_job_id) if job.teacher_job_id else None
    evaluation = _evaluation(job.id, "teacher/", None, session=session)
    ap = evaluation.stats.get("AP")
    own_detector = teacher_job.spec["student"]["detector"] if teacher_job else None
    return Figures(
        job_id=job.teacher_job_id,
        detector=spec.get("detector") or own_detector,
        parameters=(job.run_facts or {}).get("teacher_parameters"),
        ap=ap,
        ap50=evaluation.stats.get("AP50"),
        stats=evaluation.stats or None,
        per_class=evaluation.per_class or None,
        errors=evaluation.errors or None,
        cost=job_cost(teacher_job.id, session=session) if teacher_job else None,
        reason=None if ap is not None else _why_no_teacher(job),
    )


def _evaluation(job_id: str, prefix: str, step: int | None, *, session: Session) -> _Evaluation:
    """The values under `prefix` at `step`; without a step, the last of each."""
    # By name: neither LIKE nor a range means the same in every database, which has its own order of characters.
    named = [name for name in metrics.names(job_id, session=session) if name.startswith(prefix)]
    rows = session.execute(
        select(Metric.name, Metric.value)
        .where(Metric.job_id == job_id, Metric.name.in_(named))
        .where(~Metric.superseded, *([] if step is None else [Metric.step == step]))
        .order_by(Metric.step)
    )
    values = {name.removeprefix(prefix): value for name, value in rows}
    return _Evaluation(
        # What lies deeper and is told nowhere here, VOC's AP of a class, is no number of the whole split.
        stats={name: value for name, value in values.items() if "/" not in name},
        per_class={
            name.removeprefix(_CLASS_PREFIX).removesuffix(_CLASS_SUFFIX): value
            for name, value in values.items()
            if name.startswith(_CLASS_PREFIX) and name.endswith(_CLASS_SUFFIX)
        },
        errors=_errors(values),
    )


def _errors(values: dict[str, float]) -> dict[str, ErrorFigures]:
    counts = {kind: values.get(f"error/{kind}/count") for kind in ERROR_KINDS}
    return {
        kind: ErrorFigures(count=round(count), dap50=values.get(f"error/{kind}/dAP50"))
        for kind, count in counts.items()
        if count is not None
    }


def _per_class(student: Figures, baseline: Figures, teacher: Figures) -> list[ClassGain]:
    columns = [figures.per_class or {} for figures in (student, baseline, teacher)]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = []
    for name in names:
        own, twin, above = (column.get(name) for column in columns)
        gain = own - twin if own is not None and twin is not None else None
        rows.append(ClassGain(name=name, student=own, baseline=twin, teacher=above, gain=gain))
    return rows


def _nothing(reason: str) -> Figures:
    unknown = dict.fromkeys(name for name in Figures.model_fields if name != "reason")
    return Figures(**unknown, reason=reason)


def _why_no_figures(job: Job) -> str:
    if job.state in ENDED:
        return f"job {job.id} ended as {job.state.value} before its first evaluation"
    return f"job {job.id} is {job.state.value} and has not been evaluated yet"


def _why_no_baseline(job: Job) -> str:
    if job.twin_of:
        return f"the job is itself the baseline of job {job.twin_of}"
    if job.sweep_role == "baseline":
        return f"the job is itself a baseline of sweep {job.sweep_id}"
    if job.spec.get("teacher") is None:
        return "plain training has no baseline"
    if job.spec["baseline"]:
        return "its baseline was deleted"
    return "the job was submitted with `baseline: false`"


def _why_no_teacher(job: Job) -> str:
    if not job.spec["evaluation"]["teacher"]:
        return "the job was submitted with `evaluation.teacher: false`"
    if job.state in ENDED:
        return f"job {job.id} ended as {job.state.value} before the teacher was evaluated"
    return "the teacher has not been evaluated yet"
