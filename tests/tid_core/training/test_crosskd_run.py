"""Runs whose loss sends the student's features through the teacher's head: they learn, and go on exactly."""

from tests.tid_core.training.test_resume_exact import DEMANDING, digests
from tid_core.training.precision import choose_precision
from tid_core.training.resume import find_state
from tid_core.training.setup import build_parts


def test_a_run_stopped_and_continued_ends_in_the_same_student(make_plan, run):
    """Beside another method; the teacher, which the loss holds, is in no state and no checkpoint."""
    training = {**DEMANDING["training"], "epochs": 2}
    options = {**DEMANDING, "training": training, "method": ["fitnet", "crosskd"]}
    whole = run(make_plan(out="whole", **options))
    assert whole.finished.outcome == "succeeded", whole.finished
    plan = make_plan(out="stopped", **options)
    for stop_after in (3, 9):
        assert run(plan, stop_after=stop_after).finished.outcome == "stopped"
        state = find_state(plan.out_dir / "resume").state
        assert state is not None
        assert {key.split(".")[0] for key in state.content["module"]} == {"student"}
    assert run(plan).finished.outcome == "succeeded"
    assert digests(plan.out_dir) == digests(make_plan(out="whole").out_dir)
    for term in ("class", "box"):
        points = whole.series[f"distill/crosskd/{term}"]
        assert points[12] < points[1]


def test_heads_are_looked_into_where_the_method_asks(make_plan):
    for method, tap in (("crosskd", 1), (["pkd", "crosskd"], 1), ("fitnet", None), ("none", None)):
        plan = make_plan(method=method)
        parts = build_parts(plan, choose_precision(plan.spec.training, gpus=0), lambda _event: None)
        assert parts.student.tap == tap
        assert parts.teacher is None or parts.teacher.detector.tap == tap


def test_the_classes_of_another_order_meet(make_plan):
    """The distiller knows where the student's classes are among those of the teacher's head."""
    plan = make_plan(method="crosskd")
    assert plan.teacher is not None
    reverse = [str(digit) for digit in reversed(range(10))]
    plan = plan.model_copy(update={"teacher": plan.teacher.model_copy(update={"classes": reverse})})
    parts = build_parts(plan, choose_precision(plan.spec.training, gpus=0), lambda _event: None)
    assert parts.module.distiller.class_index_K.tolist() == list(reversed(range(10)))
