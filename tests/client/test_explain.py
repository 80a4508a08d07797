"""`tid explain`: real pictures of stored runs, and plain words where something is not there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from api.schemas import ClassGain, ErrorFigures
from client import explain_bars, explain_curves, pictures
from client.client import Client
from client.explain import sections
from client.explain_bars import draw_classes, draw_errors
from client.explain_curves import Run, Section, draw_run
from store import checkpoints, claims, metrics, outputs
from store.artifacts import FolderArtifacts
from store.db import Database
from store.fencing import Claim
from store.metrics import Point
from store.states import Outcome
from tid_core.error_kinds import ERROR_KINDS

TERMS = ("loss/task", "loss/classification", "loss/distill", "distill/high", "distill/medium", "distill/low")
GRADIENTS = {"grad/task": 0.5, "grad/distill": 2.0}
AREAS = {f"areas/{area}/p{level}": 0.1 * level for area in ("high", "key", "weak") for level in (3, 4)}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has(pixels: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels.astype(int) - wanted).max(-1) <= 2).sum() > 30)


def make_run(role: str, names: Mapping[str, float]) -> Run:
    steps = {name: [(step, value / step) for step in range(1, 21)] for name, value in names.items()}
    return Run(role, steps, [(1, 0.1), (2, 0.2)], epoch_steps=10)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of files."""
    figures: list[Figure] = []
    for module in (explain_bars, explain_curves):
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure) or path)
    return figures


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_panels_of_one_method_and_of_several() -> None:
    names = dict.fromkeys((*TERMS, "distill/features/p3", "loss/total", *AREAS), 1.0)
    task, distillation, areas = sections(make_run("student", names), ["tid"])
    assert [metric for _, metric in task.panels] == ["loss/task", "loss/classification"]
    assert [title for title, _ in distillation.panels] == ["distillation, sum", "high", "medium", "low"]
    assert [metric for _, metric in areas.panels] == ["areas/key", "areas/weak", "areas/high"]
    both = dict.fromkeys(("loss/distill", "distill/tid/low", "distill/tid/high", "distill/pkd/features"), 1.0)
    measured = dict.fromkeys(("distill/pkd/features/p3", "distill/pkd/features/p4"), 1.0)
    _, distillation, _ = sections(make_run("student", both | measured), ["tid", "pkd"])
    assert [title for title, _ in distillation.panels] == ["distillation, sum", "tid/high", "tid/low", "pkd/features"]
    _, alone, _ = sections(make_run("student", {"distill/features": 1.0, "loss/distill": 1.0}), ["fitnet"])
    assert alone.panels == [("features", "distill/features")], "a sum of one is said once"


def test_curves_show_both_runs_gradients_and_every_level(drawn: list[Figure], tmp_path: Path) -> None:
    student = make_run("student", dict.fromkeys(TERMS, 1.0) | GRADIENTS | AREAS)
    baseline = make_run("baseline", {"loss/task": 2.0})
    draw_run(student, baseline, 0.3, sections(student, ["tid"]), tmp_path / "a.png", title="t")
    (figure,) = drawn
    panels = dict(zip(titles(figure), figure.axes, strict=True))
    assert list(panels)[:2] == ["mAP on the validation images", "gradient norms, student"]
    assert len(panels) == 2 + 2 + 4 + 3
    assert panels["gradient norms, student"].get_yscale() == "log"
    colours = {line.get_color() for line in panels["task, sum"].lines}
    assert colours == {pictures.LOOKS["student"].colour, pictures.LOOKS["baseline"].colour}
    assert [line.get_label() for line in panels["key"].lines] == ["P3", "P4"]
    assert len({line.get_color() for line in panels["key"].lines}) == 2
    assert panels["key"].get_ylim()[0] == 0


def test_plain_training_shows_the_norm_of_all_weights(drawn: list[Figure], tmp_path: Path) -> None:
    run = make_run("student", {"loss/task": 1.0, "grad/norm": 3.0})
    draw_run(run, None, None, sections(run, ["none"]), tmp_path / "a.png", title="t")
    norms = drawn[0].axes[1]
    assert [line.get_label() for line in norms.lines] == ["all weights"]
    assert titles(drawn[0])[2:] == ["task, sum"]


def test_a_run_that_has_hardly_begun_is_a_picture(tmp_path: Path) -> None:
    run = Run("student", {"loss/task": [(1, 2.0)], "grad/task": [(1, 0.0)]})
    path = draw_run(
        run, Run("baseline"), None, [Section("losses", [("task", "loss/task")])], tmp_path / "a.png", title="t"
    )
    assert read(path).std() > 5


def gain(name: str, student: float | None, baseline: float | None, teacher: float | None = None) -> ClassGain:
    known = student is not None and baseline is not None
    difference = student - baseline if known else None  # type: ignore[operator]
    return ClassGain(name=name, student=student, baseline=baseline, teacher=teacher, gain=difference)


def test_classes_are_sorted_and_the_largest_changes_kept(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [gain(f"class {i}", 0.5 + 0.01 * (i - 20), 0.5, 0.6) for i in range(40)]
    rows += [gain("unknown", None, 0.5)]
    draw_classes(rows, tmp_path / "a.png", title="t")
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == explain_bars.MAX_CLASSES
    assert (names[0], names[-1]) == ("class 0", "class 39"), "the worst below, the best above"
    assert not {"class 20", "class 18", "unknown"} & set(names), "what hardly changed is left out"
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == sorted(widths)
    assert any("30 of 40 classes" in text.get_text() for text in drawn[0].texts)


def test_better_and_worse_differ_in_colour(tmp_path: Path) -> None:
    pixels = read(draw_classes([gain("a", 0.6, 0.5), gain("b", 0.4, 0.5)], tmp_path / "a.png", title="t"))
    assert has(pixels, pictures.BLUE)
    assert has(pixels, pictures.VERMILION)


def test_errors_side_by_side_and_of_those_that_are_known(drawn: list[Figure], tmp_path: Path) -> None:
    own = {kind: ErrorFigures(count=10 * i, dap50=i / 100) for i, kind in enumerate(ERROR_KINDS)}
    undefined = {kind: ErrorFigures(count=3, dap50=None) for kind in ERROR_KINDS}
    draw_errors({"student": own, "teacher": undefined}, tmp_path / "a.png", title="t", note="n")
    lost, counts = drawn[0].axes
    assert [bar.get_width() for bar in lost.patches] == pytest.approx(list(range(6)))
    written = [text.get_text() for text in counts.texts]
    assert written == [count for i in range(6) for count in ("3", str(10 * i))], "the teacher above the student"
    shown = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert shown == ["teacher", "student"]


def test_errors_have_the_colours_of_the_curves(tmp_path: Path) -> None:
    own = {kind: ErrorFigures(count=10, dap50=0.1) for kind in ERROR_KINDS}
    pixels = read(draw_errors(dict.fromkeys(explain_bars.ROLES, own), tmp_path / "a.png", title="t", note=""))
    assert all(has(pixels, pictures.LOOKS[role].colour) for role in explain_bars.ROLES)


class Pair:
    """A job and its twin in the server's database, written as a worker would."""

    def __init__(self, client: Client, spec: dict[str, Any], database: Database, home: Path) -> None:
        self.database, self.home = database, home
        teacher = client.submit({**spec, "name": "teacher"}).id
        self.finish(self.start(teacher), ap=0.6)
        weights = {"job": teacher, "checkpoint": "best"}
        settings = {"maps": 1, "map_epochs": [1]}
        taught = {"teacher": {"weights": weights}, "method": "tid", "baseline": True, "evaluation": settings}
        job = client.submit({**spec, **taught, "name": f"pair of {teacher}"})
        assert job.baseline_job_id is not None
        self.student, self.baseline, self.teacher = job.id, job.baseline_job_id, teacher

    def start(self, job_id: str) -> Claim:
        with self.database.write() as session:
            claim = claims.claim(job_id, "tester", lease_seconds=600, session=session)
            assert claim is not None
            claims.mark_started(claim, resumed_from_step=0, total_steps=20, epochs=2, session=session)
        return claim

    def record(self, claim: Claim, values: Mapping[str, float], *steps: int) -> None:
        points = [Point(name, step, 1 + (step > 10), value) for name, value in values.items() for step in steps]
        with self.database.write() as session:
            metrics.record(claim, points, session=session)

    def train(self, claim: Claim, *, ap: float) -> None:
        self.record(claim, dict.fromkeys(TERMS, 1.0) | GRADIENTS | AREAS, *range(1, 21))
        self.record(claim, {"val/AP": ap, "val/AP50": ap + 0.1, "val/class/3/AP": ap, "val/class/7/AP": 0.2}, 10, 20)

    def finish(self, claim: Claim, *, ap: float) -> None:
        errors = {f"val/error/{kind}/count": 12.0 for kind in ERROR_KINDS}
        self.record(claim, errors | {f"val/error/{kind}/dAP50": 0.05 for kind in ERROR_KINDS}, 20)
        with self.database.write() as session:
            where: dict[str, Any] = {"key": "k", "sha256": "0" * 64, "num_bytes": 1, "file_format": "safetensors"}
            checkpoints.record(claim, name="best", step=20, epoch=2, ap=ap, session=session, **where)
            claims.finish(claim, Outcome.SUCCEEDED, session=session)

    def draw(self, claim: Claim, name: str, picture: Path) -> None:
        stored = FolderArtifacts(self.home / "artifacts").put(f"jobs/{claim.job_id}/{name}", picture)
        place = {"key": stored.key, "sha256": stored.sha256, "num_bytes": stored.num_bytes}
        with self.database.write() as session:
            outputs.record(claim, kind="map", name=name, session=session, **place)  # type: ignore[arg-type]


@pytest.fixture
def pair(client: Client, spec: dict[str, Any], database: Database, server: Any) -> Pair:
    return Pair(client, spec, database, server.home)


def test_a_pair_from_its_first_step_to_its_end(pair: Pair, tid: Callable[..., Any], tmp_path: Path) -> None:
    """What is there is drawn, what is not is said; the same command brings it up to date."""
    out = tmp_path / "why"
    early = tid("explain", pair.student, "--out", out)
    assert early.code == 0, early.err
    assert "no curves.png: no metric yet; the job is queued" in early.out
    assert list(out.iterdir()) == []

    student = pair.start(pair.student)
    pair.train(student, ap=0.5)
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "map.png")
    pair.draw(student, "00000-epoch-001.png", tmp_path / "map.png")
    halfway = tid("explain", pair.student, "-o", out)
    assert {path.name for path in out.iterdir()} == {"curves.png", "maps"}
    assert "no errors.png: errors are told when the best student is known; the job is running" in halfway.out
    assert f"no classes.png: job {pair.baseline} is queued" in halfway.out

    pair.finish(student, ap=0.5)
    twin = pair.start(pair.baseline)
    pair.train(twin, ap=0.3)
    pair.finish(twin, ap=0.3)
    done = tid("explain", pair.student, "-o", out)
    assert {path.name for path in out.iterdir()} == {"curves.png", "classes.png", "errors.png", "maps"}
    assert (out / "maps/00000-epoch-001.png").read_bytes() == (tmp_path / "map.png").read_bytes()
    assert all(read(out / name).std() > 5 for name in ("curves.png", "classes.png", "errors.png"))
    assert "gain +20.0 AP" in done.out
    assert "gained most: 3 +20.0" in done.out
    assert "lost most" not in done.out
    (row,) = (line.split() for line in done.out.splitlines() if line.split()[:1] == ["duplicate"])
    assert row[1:] == ["5.0", "12", "5.0", "12"], "baseline and student"
    assert "curves.png, classes.png, errors.png, maps/ (1)" in done.out


def test_a_baseline_names_the_job_that_compares_it(pair: Pair, tid: Callable[..., Any], tmp_path: Path) -> None:
    told = tid("explain", pair.baseline, "--out", tmp_path / "twin").out
    assert f"tid explain {pair.student} compares it" in told
    assert "no maps/: without a teacher there are no areas" in told


def test_a_plain_training_is_explained_by_itself(
    pair: Pair, tid: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tid("explain", pair.teacher)
    assert done.code == 0
    folder = tmp_path / f"{pair.teacher}-explained"
    assert [path.name for path in folder.iterdir()] == ["errors.png"], "this one logged nothing but its end"
    assert "no classes.png: plain training has no baseline" in done.out
