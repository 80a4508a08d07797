"""What the demo says about its figures."""

import pytest

from api.schemas import Figures, Report
from client.demo_results import conclusions, is_term, summary


def report(*, student: float | None, baseline: float, teacher: float = 0.7) -> Report:
    def figures(ap: float | None) -> Figures:
        rest = dict.fromkeys(
            ("job_id", "detector", "parameters", "ap50", "stats", "per_class", "errors", "cost", "reason")
        )
        return Figures(**rest, ap=ap)

    gain = None if student is None else student - baseline
    return Report(
        job_id="0" * 12,
        state="succeeded",
        complete=True,
        student=figures(student),
        baseline=figures(baseline),
        teacher=figures(teacher),
        gain=gain,
        recovery=None if gain is None else gain / (teacher - baseline),
        reason=None if gain is not None else "the job was cancelled",
        per_class=[],
    )


def test_one_seed_is_told_as_one_seed() -> None:
    gain, caution = conclusions([report(student=0.6, baseline=0.5)], quick=False)
    assert "+10.0 AP" in gain
    assert "50% of the way" in gain
    assert "--seeds" in caution


def test_a_loss_is_told_as_a_loss() -> None:
    assert "-5.0 AP" in conclusions([report(student=0.45, baseline=0.5)], quick=False)[0]


def test_several_seeds_are_told_with_their_range() -> None:
    reports = [report(student=0.6, baseline=0.5), report(student=0.52, baseline=0.5)]
    assert summary(reports)["gain"] == pytest.approx(0.06)
    told = " ".join(conclusions(reports, quick=False))
    assert "between +2.0 and +10.0" in told


def test_figures_that_are_missing_are_not_made_up() -> None:
    assert "cancelled" in conclusions([report(student=None, baseline=0.5)], quick=False)[0]


@pytest.mark.parametrize("name", ["loss/classification", "distill/high"])
def test_terms_are_drawn(name: str) -> None:
    assert is_term(name)


@pytest.mark.parametrize(
    "name", ["loss/total", "loss/task", "loss/distill", "distill/features/p3", "lr", "areas/high/p3"]
)
def test_sums_and_measures_are_not(name: str) -> None:
    assert not is_term(name)
