"""A sweep from POST to report, by a real worker: what the report says is what the jobs say."""

import csv
import io
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from api.sweeps.schemas import Sweep, SweepReport
from client.client import Client
from client.commands.sweeps import print_report
from client.sweep_pictures import draw_sweep
from client.sweep_watching import follow_sweep
from tid_core.detectors.build import build_detector

pytestmark = pytest.mark.timeout(600)  # four trainings, one after the other

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def teacher(service: Any) -> dict[str, Any]:
    """Knows nothing, but is another network than any student, with features of an ordinary size."""
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    network = build_detector("fcos_conv5_tiny", num_classes=len(CLASSES)).train()
    with torch.no_grad():
        for _ in range(10):  # until BatchNorm's statistics have settled
            network.model.backbone(torch.randn(4, 3, 64, 64))
    file = Path(service.client.dataset("digits").root).parent / "teacher.safetensors"
    save_file(network.model.state_dict(), file)
    return {"detector": "fcos_conv5_tiny", "weights": {"file": str(file), "classes": CLASSES}}


@pytest.fixture(scope="module")
def done(service: Any, spec: dict[str, Any], teacher: dict[str, Any]) -> Sweep:
    training = {**spec["training"], "epochs": 3, "optimizer": "adamw", "lr": 0.003, "save_every_steps": 0}
    base = {**spec, "teacher": teacher, "training": training, "evaluation": {"maps": 0, "score_threshold": 0.0}}
    axes = {"method": ["none", "fitnet"], "training.seed": [0, 1]}
    sweep = service.client.submit_sweep({"name": "tiny", "base": base, "axes": axes})
    assert follow_sweep(service.client, sweep.id) == 0
    ended: Sweep = service.client.sweep(sweep.id)
    return ended


def test_the_jobs_ran_in_order_and_all_of_them(service: Any, done: Sweep) -> None:
    assert (done.state, done.done, done.total) == ("succeeded", 4, 4)
    assert [(job.label, job.seed) for job in done.jobs] == [
        ("baseline", 0),
        ("fitnet", 0),
        ("baseline", 1),
        ("fitnet", 1),
    ]
    began = [service.client.job(job.id).started_at for job in done.jobs]
    assert began == sorted(began)


def test_the_report_says_what_the_jobs_say(service: Any, done: Sweep) -> None:
    client: Client = service.client
    report: SweepReport = client.sweep_report(done.id)
    assert report.complete
    baseline, fitnet = report.rows
    own = {job.id: client.report(job.id) for job in done.jobs}
    for row in report.rows:
        for run in row.runs:
            assert (run.ap, run.ap50) == (own[run.job_id].student.ap, own[run.job_id].student.ap50)
            assert run.gpu_seconds == client.job(run.job_id).cost.gpu_seconds > 0
        assert row.ap_mean == pytest.approx(fmean(run.ap for run in row.runs))
        assert row.ap_sd == pytest.approx(stdev(run.ap for run in row.runs))
    gains = [own[run.job_id].gain for run in fitnet.runs]
    assert [run.gain for run in fitnet.runs] == pytest.approx(gains)
    assert fitnet.gain_mean == pytest.approx(fmean(gains))
    assert fitnet.gain_low is not None
    assert fitnet.wins == sum(gain > 0 for gain in gains)
    assert report.teacher_ap == own[fitnet.runs[0].job_id].teacher.ap
    assert report.gpu_seconds_total == pytest.approx(sum(run.gpu_seconds for row in report.rows for run in row.runs))
    assert len({run.ap for row in report.rows for run in row.runs}) > 1, "the runs are not all alike"
    assert baseline.remark is None


def test_student_and_baseline_began_alike(service: Any, done: Sweep) -> None:
    def first_loss(job_id: str) -> float:
        (series,) = service.client.metrics(job_id, "loss/task").series
        value: float = series.points[0].value
        return value

    losses = [first_loss(job.id) for job in done.jobs]
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert losses[0] != losses[2]


def test_its_files(service: Any, done: Sweep, tmp_path: Path) -> None:
    report = service.client.sweep_report(done.id)
    print_report(report)
    assert draw_sweep(report, tmp_path / "tiny.png").stat().st_size > 10_000
    lines = list(csv.DictReader(io.StringIO(service.client.sweep_report_csv(done.id))))
    assert [float(line["ap_mean"]) for line in lines] == [row.ap_mean for row in report.rows]
