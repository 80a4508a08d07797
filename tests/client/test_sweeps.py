"""Sweeps as people meet them: the client, the command, the files it writes."""

import csv
import io
import json
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from api.sweeps.schemas import SweepReport, SweepRow, SweepRun
from client import sweep_pictures, sweep_watching
from client.errors import ApiError, NoSuchSweep
from client.sweep_pictures import draw_sweep
from store import checkpoints, claims, metrics
from store.metrics import Point
from store.states import Outcome
from tid_core.sweep import SweepSpec
from tid_core.sweep.statistics import deviation, interval_95, mean

AXES: dict[str, Any] = {"method": ["none", "tid"], "training.seed": [0, 1]}


@pytest.fixture
def document(server) -> Iterator[dict[str, Any]]:
    weights = server.data / "teacher.pt"
    weights.write_bytes(b"not looked into before a training begins")
    teacher = {"detector": "fcos_conv10_small", "weights": {"file": str(weights)}}
    base = {"teacher": teacher, "student": {"detector": "fcos_conv5_tiny"}, "dataset": "digits"}
    yield {"name": f"sweep-{secrets.token_hex(4)}", "base": base, "axes": AXES}
    weights.unlink()


@pytest.fixture
def file(document, tmp_path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def work(database, job_id: str, ap: float, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """What a worker would write of a job."""
    with database.write() as session:
        claim = claims.claim(job_id, "tester", lease_seconds=600, session=session)
        assert claim is not None
        claims.mark_started(claim, resumed_from_step=0, total_steps=20, epochs=2, session=session)
        points = [Point(name, 20, 2, value) for name, value in (("val/AP", ap), ("val/AP50", ap), ("teacher/AP", 0.7))]
        metrics.record(claim, points, session=session)
        checkpoints.record(
            claim, name="best", file_format="safetensors", key=job_id, sha256="0" * 64, num_bytes=1, step=20, epoch=2,
            ap=ap, session=session,
        )  # fmt: skip
        claims.finish(claim, outcome, reason="tested" if outcome is Outcome.FAILED else None, session=session)


def test_the_client_speaks_of_sweeps(client, document) -> None:
    dry = client.dry_run_sweep(document)
    assert dry.ok
    assert [job.role for job in dry.jobs] == ["baseline", "point"] * 2
    sweep = client.submit_sweep(SweepSpec.model_validate(document), idempotency_key=document["name"])
    assert client.submit_sweep(document, idempotency_key=document["name"]).id == sweep.id
    assert client.sweep(sweep.id) == sweep
    assert [one.id for one in client.sweeps(search=document["name"])] == [sweep.id]
    assert {job.id for job in client.jobs(sweep=sweep.id)} == {job.id for job in sweep.jobs}
    assert client.find_sweep(document["name"]).id == client.find_sweep(sweep.id[:9]).id == sweep.id
    assert client.cancel_sweep(sweep.id).state == "cancelled"
    assert client.sweep_report(sweep.id).complete
    with pytest.raises(ApiError) as caught:
        client.submit_sweep({**document, "axes": {"training.sed": [0]}})
    assert "/axes/training.sed" in str(caught.value)
    assert "training.seed" in str(caught.value)


def test_a_name_that_fits_two_sweeps_is_told(client, document) -> None:
    ids = [client.submit_sweep(document).id for _ in range(2)]
    with pytest.raises(NoSuchSweep) as caught:
        client.find_sweep(document["name"])
    assert all(sweep_id in str(caught.value) for sweep_id in ids)


def test_the_whole_life_of_a_sweep_on_the_command_line(tid, client, file, document, database, tmp_path) -> None:
    name = document["name"]
    dry = tid("sweep", file, "--dry-run")
    assert "is fine: 4 jobs" in dry.out
    assert f"{name} tid seed=1" in dry.out
    submitted = tid("sweep", file)
    assert submitted.code == 0, submitted.err
    assert "queued: 4 jobs, 2 of them baselines" in submitted.out
    sweep_id = submitted.out.split()[0]
    assert "0/4" in next(line for line in tid("sweep", "list").out.splitlines() if sweep_id in line)
    for job in client.sweep(sweep_id).jobs[:3]:
        work(database, job.id, {"baseline": 0.4, "tid": 0.5}[job.label])
    assert sweep_id in tid("show", f"{name} tid seed=0").out
    shown = tid("sweep", "show", name).out
    assert "3/4 jobs done (1 queued, 3 succeeded)" in shown
    assert "baseline" in shown
    cancelled = tid("sweep", "cancel", sweep_id)
    assert "1 cancelled" in cancelled.out

    told = tid("sweep", "report", name, "--out", tmp_path / "new" / "folder")
    assert told.code == 0, told.err
    row = next(line for line in told.out.splitlines() if line.startswith(" tid"))
    assert re.search(r"1/2\s+50\.0\s+50\.0\s+\+10\.0\s+-\s+1/1", row)
    assert "teacher: AP 70.0" in told.out
    assert "failed or cancelled: 1 of 4 jobs" in told.out
    stem = tmp_path / "new" / "folder" / f"{name}-{sweep_id}"
    assert str(stem) in told.out
    lines = list(csv.DictReader(io.StringIO(stem.with_suffix(".csv").read_text())))
    assert [(line["label"], line["ap_mean"]) for line in lines] == [("baseline", "0.4"), ("tid", "0.5")]
    with Image.open(stem.with_suffix(".png")) as image:
        assert image.format == "PNG"
    assert json.loads(tid("sweep", "report", name, "--json").out)["sweep_id"] == sweep_id


def test_watch_shows_the_way_and_ends_with_the_sweep(tid, client, file, document, database, monkeypatch) -> None:
    monkeypatch.setattr(sweep_watching, "POLL_SECONDS", 0.01)
    heard = threading.Event()
    told = sweep_watching._tell

    def tell(console: Console, sweep: Any) -> dict[str, int]:
        heard.set()
        return told(console, sweep)

    monkeypatch.setattr(sweep_watching, "_tell", tell)
    for outcome, code in ((Outcome.SUCCEEDED, 0), (Outcome.FAILED, 1)):
        name = f"{document['name']}-{outcome.value}"
        heard.clear()
        worker = threading.Thread(target=_work_all, args=(client, database, name, outcome, heard))
        worker.start()
        watched = tid("sweep", "submit", "--name", name, "--watch", file)
        worker.join()
        assert watched.code == code
        assert "0/4 done, 4 queued" in watched.out
        end = watched.out if code == 0 else watched.err
        assert f"tid sweep report {client.find_sweep(name).id}" in end
        assert ("tid seed=1  failed: tested" in end) == (code == 1)


def _work_all(client, database, name: str, last: Outcome, heard: threading.Event) -> None:
    assert heard.wait(60)
    jobs = client.sweep(client.find_sweep(name).id).jobs
    for job in jobs:
        work(database, job.id, 0.5, last if job is jobs[-1] else Outcome.SUCCEEDED)


def test_on_a_terminal_a_bar_and_what_is_at_work(client, document, database) -> None:
    sweep = client.submit_sweep(document)
    with database.write() as session:
        claim = claims.claim(sweep.jobs[1].id, "tester", lease_seconds=600, session=session)
        claims.mark_started(claim, resumed_from_step=0, total_steps=20, epochs=2, session=session)
    work(database, sweep.jobs[0].id, 0.3)
    printed = io.StringIO()
    Console(file=printed, width=120).print(sweep_watching.board(client.sweep(sweep.id)))
    assert "1/4 done, 2 queued, 1 running" in printed.getvalue()
    assert f"{document['name']} tid seed=0" in printed.getvalue()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"axes": {"training.sed": [0]}}, "/axes/training.sed"),
        ({"axes": {"method": ["tid", "teleport"]}}, "/axes/method/1"),
        ({"axes": {}}, "/axes"),
        ({"base": {"datset": "digits"}}, "/base/datset"),
        ({"seeds": 3}, "/seeds"),
    ],
)
def test_what_is_wrong_is_said_by_its_place(tid, document, tmp_path, change: dict[str, Any], field: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**document, **change}))
    for options in ((), ("--dry-run",)):
        refused = tid("sweep", path, *options)
        assert refused.code == 1
        assert field in refused.err
        assert "Traceback" not in refused.err


def test_a_dataset_that_is_not_there_fails_the_dry_run(tid, document, tmp_path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**document, "base": {**document["base"], "dataset": "carz"}}))
    refused = tid("sweep", path, "--dry-run")
    assert refused.code == 1
    assert "/base/dataset" in refused.err
    assert "1 problem\n" in refused.err


@pytest.mark.parametrize(
    "content", ["a: [", "- 1\n", "name: &loop [*loop]\nbase: {}\naxes: {a: [1]}", "base: !!binary aa=="]
)
def test_a_file_that_is_no_sweep(tid, tmp_path, content: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(content)
    refused = tid("sweep", path)
    assert refused.code == 1
    assert str(path) in refused.err
    assert "Traceback" not in refused.err


def test_what_is_not_there(tid, tmp_path) -> None:
    assert "cannot read" in tid("sweep", tmp_path / "none.yaml").err
    mistyped = tid("sweep", "lst")
    assert mistyped.code == 1
    assert "command" in mistyped.err
    for command in ("show", "cancel", "report"):
        missing = tid("sweep", command, "no-such-sweep")
        assert missing.code == 1
        assert "no-such-sweep" in missing.err
    assert "no sweep fits" in tid("sweep", "list", "--search", "no-such-sweep").out
    assert "submit" in tid("sweep", "--help").out


def row(label: str, aps: list[float | None], baseline: list[float | None] | None = None) -> SweepRow:
    pairs = [a - b if a is not None and b is not None else None for a, b in zip(aps, baseline or aps, strict=True)]
    gains = [gain for gain in pairs if gain is not None] if baseline else []
    interval = interval_95(gains)
    known = [ap for ap in aps if ap is not None]
    remark = None if interval is None else "no difference shown" if interval.has_zero else "better"
    runs = [
        SweepRun(
            seed=seed, job_id="0" * 12, state="succeeded" if ap is not None else "queued", ap=ap, ap50=ap,
            baseline_job_id=None, gain=pairs[seed] if baseline else None, gpu_seconds=1.0,
        )
        for seed, ap in enumerate(aps)
    ]  # fmt: skip
    return SweepRow(
        label=label, role="point" if baseline else "baseline", point={}, method="tid", runs=runs,
        baseline="baseline" if baseline else None, teacher_ap=0.7, runs_done=len(known), runs_total=len(aps),
        ap_mean=mean(known), ap_sd=deviation(known), ap50_mean=mean(known), pairs=len(gains), gain_mean=mean(gains),
        gain_low=interval.low if interval else None, gain_high=interval.high if interval else None, gain_reason=None,
        wins=0, remark=remark, gpu_seconds=1.0, extra_gpu_seconds_per_point=None, extra_reason=None,
    )  # fmt: skip


def report(*rows: SweepRow, name: str = "methods", complete: bool = True) -> SweepReport:
    return SweepReport(
        sweep_id="0" * 12, name=name, state="succeeded" if complete else "running", complete=complete, done=1, total=2,
        teacher_ap=0.7, teacher_reason=None, gpu_seconds_total=1.0, rows=rows,
    )  # fmt: skip


BASELINE: list[float | None] = [0.50, 0.58, 0.55]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    figures: list[Figure] = []
    save = sweep_pictures.save
    monkeypatch.setattr(sweep_pictures, "save", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    return figures


def test_the_picture_has_a_dot_for_every_seed_and_a_zero_line(drawn: list[Figure], tmp_path: Path) -> None:
    rows = row("baseline", BASELINE), row("tid", [0.54, 0.62, 0.6], BASELINE), row("fitnet", [0.4, 0.7, None], BASELINE)
    path = draw_sweep(report(*rows, complete=False), tmp_path / "new" / "a.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0]
    assert pixels.std() > 20
    aps, gains = drawn[0].axes
    assert [len(dots.get_offsets()) for dots in aps.collections] == [3, 3, 2]
    assert [len(dots.get_offsets()) for dots in gains.collections] == [0, 3, 2]
    assert [list(line.get_xdata()) for line in gains.lines].count([0, 0]) == 1
    low, high = gains.get_xlim()
    assert low < -10
    assert high > 12
    assert [label.get_text() for label in aps.get_yticklabels()] == ["baseline", "tid", "fitnet"]
    assert any("NOT COMPLETE" in text.get_text() for text in drawn[0].texts)
    means = [line.get_xdata()[0] for line in gains.lines if line.get_marker() == "D"]
    assert means == pytest.approx([100 * (0.04 + 0.04 + 0.05) / 3, 100 * (-0.1 + 0.12) / 2])


def test_a_wide_interval_does_not_hide_the_seeds(drawn: list[Figure], tmp_path: Path) -> None:
    wide = row("wide", [0.49, 0.62], [0.50, 0.58])
    assert wide.gain_high is not None
    assert wide.gain_high > 0.3
    draw_sweep(report(row("baseline", [0.50, 0.58]), wide), tmp_path / "a.png")
    gains = drawn[0].axes[1]
    assert gains.get_xlim()[1] < 100 * wide.gain_high
    assert {line.get_marker() for line in gains.lines} >= {"<", ">"}, "arrows say that it goes on"


def test_pictures_of_nothing_of_much_and_of_strange_names(drawn: list[Figure], tmp_path: Path, monkeypatch) -> None:
    nothing = report(row("baseline", [None, None]), row("tid", [None, None], [None, None]), name="$\\frac{$ & <b>")
    assert draw_sweep(nothing, tmp_path / "nothing.png").exists()
    monkeypatch.setattr(sweep_pictures, "MAX_ROWS", 5)
    many = [row(f"tid lr=0.{index:03d} {'x' * 80}", [0.5], [0.4]) for index in range(8)]
    assert draw_sweep(report(*many), tmp_path / "many.png").exists()
    assert len(drawn[1].axes[0].get_yticklabels()) == 5
    assert any("The first 5 of 8 rows" in text.get_text() for text in drawn[1].texts)
