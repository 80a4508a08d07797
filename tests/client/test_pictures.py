"""The pictures: real PNG files with something on them, and axes that do not flatter."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from client import pictures
from client.pictures import Curves, draw_curves, draw_detections, epoch_means
from client.scenes import Annotated

RUNS = [
    Curves("teacher", {"loss/classification": [(0.5, 0.9), (1.5, 0.5)]}, [(1, 0.4), (2, 0.7)]),
    Curves("baseline", {"loss/classification": [(0.5, 1.1), (1.5, 0.8)]}, [(1, 0.2), (2, 0.5)]),
    Curves(
        "student", {"loss/classification": [(0.5, 1.0), (1.5, 0.7)], "loss/high": [(0.5, 2.0)]}, [(1, 0.3), (2, 0.6)]
    ),
]


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def _has(pixels: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels.astype(int) - wanted).max(-1) <= 2).sum() > 30)


def test_curves_show_every_run_in_its_own_colour(tmp_path: Path) -> None:
    pixels = _read(draw_curves(RUNS, tmp_path / "new" / "curves.png", title="t", note="n"))
    assert pixels.shape == (930, 1980, 3)
    assert all(_has(pixels, pictures.LOOKS[run.name].colour) for run in RUNS)
    without = _read(draw_curves(RUNS[:2], tmp_path / "two.png", title="t"))
    assert not _has(without, pictures.LOOKS["student"].colour)


def test_axes_of_values_start_at_zero(monkeypatch, tmp_path: Path) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure) or path)
    draw_curves(RUNS, tmp_path / "curves.png", title="t")
    assert len(drawn[0].axes) == 3
    assert {axes.get_ylim()[0] for axes in drawn[0].axes} == {0.0}
    top = drawn[0].axes[0].get_ylim()[1]
    assert 70 < top <= 100, "AP is drawn in percent, up to a little above the best"


def test_curves_of_a_run_without_any_point_are_still_a_picture(tmp_path: Path) -> None:
    assert _read(draw_curves([Curves("student")], tmp_path / "empty.png", title="t")).size


def test_a_point_at_the_end_of_an_epoch_belongs_to_it() -> None:
    assert epoch_means([(0.5, 1.0), (1.0, 3.0), (1.5, 5.0), (2.0, 7.0)]) == [(0.75, 2.0), (1.75, 6.0)]


def test_detections_side_by_side(server, tmp_path: Path) -> None:
    data = Annotated.read(server.data / "val.json", server.data / "val")
    image = data.images[0]
    box = data.truth[image["id"]][0].box
    right = {"image_id": image["id"], "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "score": 0.9}
    names = {name: number for number, name in data.classes.items()}
    right["category_id"] = names[data.truth[image["id"]][0].label]
    faint = {**right, "score": 0.1}
    scenes = data.scenes({"teacher": [right], "student": [faint]}, count=2, min_score=0.3)
    assert [panel.marks[0].verdict for panel in scenes[0].found.values()] == ["right", "missed"]
    pixels = _read(draw_detections(scenes, tmp_path / "detections.png", title="t", note="n"))
    assert pixels.shape[1] > pixels.shape[0], "three columns, two rows"
    assert pixels.std() > 20
